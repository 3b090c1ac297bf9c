"""Opens what a user names: a checkpoint or a baseline, on its dataset. Loads jax; imported in bodies."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geopol_tkg.cli._app import Output
from geopol_tkg.cli._options import open_dataset
from geopol_tkg.config import Protocol, SplitName
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.forecasts import horizon_of, load_model
from geopol_tkg.models.base import Forecaster
from geopol_tkg.models.recurrency import baseline, is_baseline


@dataclass(frozen=True)
class OpenModel:
    """A forecaster, the dataset it is measured on, and what it was trained on (None: the train split)."""

    name: str
    forecaster: Forecaster
    dataset: Dataset
    dataset_hash: str
    known_entities: np.ndarray | None = None
    unknown_labels: dict[str, Any] = field(default_factory=dict)


def open_model(name: str, data: Path | None, *, split: SplitName, protocol: Protocol, output: Output) -> OpenModel:
    """Open a baseline by its name or a checkpoint by its path."""
    if is_baseline(name):
        dataset = open_dataset(data)
        horizon = horizon_of(dataset, split) if protocol == "multi-step" else None
        forecaster = baseline(name, dataset, horizon=horizon)
        return OpenModel(name, forecaster, dataset, dataset.content_hash)
    given = None if data is None else open_dataset(data)
    model = load_model(Path(name), given)
    horizon = horizon_of(model.dataset, split) if protocol == "multi-step" else None
    entities, relations = model.aligned.unknown_entities, model.aligned.unknown_relations
    unknown: dict[str, Any] = {}
    if entities or relations:
        unknown = {"unknown_entities": len(entities), "unknown_relations": len(relations)}
        output.note(
            f"{len(entities)} entities and {len(relations)} relations of the dataset are unknown to {model.name}"
        )
    return OpenModel(
        name=model.name,
        forecaster=model.forecaster(horizon=horizon),
        dataset=model.dataset,
        dataset_hash=(given.content_hash if given else model.checkpoint.dataset["content_hash"]),
        known_entities=model.known_entities,
        unknown_labels=unknown,
    )
