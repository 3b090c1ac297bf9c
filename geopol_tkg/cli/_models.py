"""Opens what a user names: a checkpoint or a baseline, on its dataset. Loads jax; imported in bodies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geopol_tkg.checkpoint import checkpoint_paths, load_checkpoint, read_manifest
from geopol_tkg.cli._app import Output
from geopol_tkg.cli._options import open_dataset
from geopol_tkg.config import Protocol, SplitName
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.errors import CheckpointError, UsageError
from geopol_tkg.forecasts import LoadedModel, horizon_of, load_named, member_names, training_dataset
from geopol_tkg.models.base import Forecaster
from geopol_tkg.models.recurrency import BASELINES, baseline, before_split, is_baseline


@dataclass(frozen=True)
class OpenModel:
    """A forecaster, the dataset it is measured on, and what it was trained on (None: the train split).

    Attributes:
        temperature: that the forecaster's probabilities are read with; None: it has scores only.
        remarks: what the JSON says besides.
    """

    name: str
    forecaster: Forecaster
    dataset: Dataset
    known_entities: np.ndarray | None = None
    temperature: float | None = None
    remarks: dict[str, Any] = field(default_factory=dict)


def open_model(
    name: str, dataset: Dataset | None, *, split: SplitName, protocol: Protocol, output: Output
) -> OpenModel:
    """Open a baseline by its name, a checkpoint by its path or an ensemble ``A+B``, on a dataset or its own."""
    if is_baseline(name):
        dataset = open_dataset(None) if dataset is None else dataset
        horizon = _horizon(dataset, split, protocol)
        fit_on = before_split(dataset, split) if name == "recurrency" and split != "test" else dataset
        return OpenModel(name, baseline(name, dataset, horizon=horizon, fit_on=fit_on), dataset)
    _require_members(name)
    model = load_named(name, dataset)
    return OpenModel(
        name=model.name,
        forecaster=model.forecaster(horizon=_horizon(model.dataset, split, protocol)),
        dataset=model.dataset,
        known_entities=model.known_entities,
        temperature=model.temperature,
        remarks=_remarks(model, split, output),
    )


def shared_dataset(names: Sequence[str]) -> Dataset | None:
    """The dataset that all named checkpoints were trained on; None when only baselines are named.

    Raises:
        UsageError: they were trained on different ones.
    """
    named = [name for name in names if not is_baseline(name)]
    for name in named:
        _require_members(name)
    stems = [Path(member) for name in named for member in member_names(name)]
    hashes = [read_manifest(checkpoint_paths(stem)[1])["dataset"]["content_hash"] for stem in stems]
    for stem, found in zip(stems, hashes, strict=True):
        if found != hashes[0]:
            raise UsageError(
                f"{stems[0]} and {stem} were trained on different datasets; name one to compare them on with --data"
            )
    return training_dataset(load_checkpoint(stems[0]), stems[0]) if stems else None


def _horizon(dataset: Dataset, split: SplitName, protocol: Protocol) -> int | None:
    return horizon_of(dataset, split) if protocol == "multi-step" else None


def _require_members(name: str) -> None:
    for member in member_names(name):
        if is_baseline(member):
            raise UsageError(f"{name}: {member} has no probabilities; an ensemble is one of checkpoints")
        require_checkpoint(member, or_baseline=True)


def require_checkpoint(name: str, *, or_baseline: bool = False) -> None:
    """A checkpoint is there.

    Raises:
        CheckpointError: none is, or a folder of some.
    """
    path = checkpoint_paths(Path(name))[1]
    if path.is_file():
        return
    if inside := sorted(Path(name).glob("*_best.json")):
        raise CheckpointError(f"{name}: a folder; name a checkpoint in it, such as {inside[-1].with_suffix('')}")
    nothing, advice = (" and no baseline", f", or name one of {', '.join(BASELINES)}") if or_baseline else ("", "")
    raise CheckpointError(f"{name}: no checkpoint here (no {path}){nothing}; run geopol-tkg train first{advice}")


def _remarks(model: LoadedModel, split: SplitName, output: Output) -> dict[str, Any]:
    """What to know of figures: of another dataset the labels that the model lacks, and whether it learned from them."""
    alignment, checkpoint = model.alignment, model.checkpoint
    entities, relations = alignment.num_unknown_entities, alignment.num_unknown_relations
    if entities or relations:
        output.note(f"{entities} entities and {relations} relations of the dataset are unknown to {model.name}")
    facts = model.dataset.facts_of(split)
    first = int(facts[0, 3]) + alignment.time_offset if len(facts) else model.trained_until
    overlaps = first < model.trained_until
    if overlaps:
        begin, end = (checkpoint.time_axis.label(i) for i in (first, model.trained_until))
        output.note(
            f"warning: {split} begins at {begin}, {model.name} was trained on facts up to {end}: "
            "these figures are no forecasts"
        )
    if alignment.is_identity:
        return {"overlaps_training": True} if overlaps else {}
    return {"unknown_entities": entities, "unknown_relations": relations, "overlaps_training": overlaps}
