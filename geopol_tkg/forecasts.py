"""From the name of a model to a forecaster on a dataset: checkpoints, baselines, unknown labels."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from geopol_tkg.checkpoint import Checkpoint, load_checkpoint
from geopol_tkg.config import SplitName
from geopol_tkg.data.alignment import AlignedDataset, align
from geopol_tkg.data.dataset import Dataset, with_inverses
from geopol_tkg.data.history import build_for, load_or_build
from geopol_tkg.errors import CheckpointError, DataError
from geopol_tkg.models.base import Forecaster, ScoreFunction
from geopol_tkg.models.forecaster import ForecastContext, NetworkForecaster


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint with the dataset that it looks at, in the checkpoint's ids.

    Attributes:
        known_entities: bool [n], entities of the dataset that the network was trained on.
    """

    checkpoint: Checkpoint
    name: str
    aligned: AlignedDataset
    known_entities: np.ndarray

    @property
    def dataset(self) -> Dataset:
        return self.aligned.dataset

    def forecaster(self, *, horizon: int | None = None) -> Forecaster:
        """The trained network, looking at the dataset's facts."""
        config = self.checkpoint.config
        aligned = self.aligned
        complete = not aligned.unknown_entities and not aligned.unknown_relations
        dataset = aligned.dataset if complete else aligned.known_part()
        if dataset.path is None:
            history = build_for(dataset, window=config.history_window)
        else:
            history, _ = load_or_build(dataset, window=config.history_window)
        network = NetworkForecaster(
            *self.checkpoint.network(),
            config=config,
            context=ForecastContext.build(dataset, history, config),
            name=self.name,
            horizon=horizon,
        )
        return network if complete else KnownLabelsForecaster(network, aligned)


class KnownLabelsForecaster:
    """Lets a network answer queries of a dataset with labels that it never saw.

    An unknown entity is a candidate below all known ones; a query with an unknown subject or relation
    scores all candidates alike, since nothing is known about it.
    """

    def __init__(self, network: NetworkForecaster, aligned: AlignedDataset) -> None:
        self.name = network.name
        self.horizon = network.horizon
        self._network = network
        self._num_entities = aligned.dataset.num_entities
        self._num_relations = aligned.dataset.num_relations
        self._known_entities = aligned.num_known_entities
        self._known_relations = aligned.num_known_relations

    def at(self, time: int) -> ScoreFunction:
        """Scores float32 [b, n] of queries at a time."""
        known_score = self._network.at(time)

        def score(subjects: np.ndarray, relations: np.ndarray) -> np.ndarray:
            base = relations % self._num_relations
            known = (subjects < self._known_entities) & (base < self._known_relations)
            inverse = np.where(relations >= self._num_relations, self._known_relations, 0)
            own_relations = np.where(known, base + inverse, 0).astype(np.int32)
            own_subjects = np.where(known, subjects, 0).astype(np.int32)
            scores = np.full((len(subjects), self._num_entities), -np.inf, np.float32)
            scores[:, : self._known_entities] = known_score(own_subjects, own_relations)
            scores[~known] = 0
            return scores

        return score


def load_model(stem: Path, data: Dataset | None) -> LoadedModel:
    """Load a checkpoint, on the given dataset or the one it was trained on.

    Raises:
        CheckpointError: the training dataset has changed or gone; give one.
        DataError: the dataset has another kind of labels or another granularity.
    """
    checkpoint = load_checkpoint(stem)
    dataset = data or _training_dataset(checkpoint, stem)
    name = stem.name.removesuffix(".json").removesuffix(".npz")
    if dataset.content_hash == checkpoint.dataset["content_hash"]:
        sizes = (dataset.num_entities, dataset.num_relations)
        return LoadedModel(checkpoint, name, AlignedDataset(dataset, *sizes), checkpoint.trained_entities)
    aligned = align(
        dataset,
        entity_to_id=checkpoint.entity_to_id,
        relation_to_id=checkpoint.relation_to_id,
        time_axis=checkpoint.time_axis,
        entity_kind=checkpoint.dataset["entity"],
        relation_kind=checkpoint.dataset["relation"],
    )
    known = np.zeros(aligned.dataset.num_entities, bool)
    known[: len(checkpoint.trained_entities)] = checkpoint.trained_entities
    return LoadedModel(checkpoint, name, aligned, known)


def horizon_of(dataset: Dataset, split: SplitName) -> int:
    """First time index of a split: what multi-step forecasts of it may not see beyond."""
    return dataset.split.bounds(split)[0]


def _training_dataset(checkpoint: Checkpoint, stem: Path) -> Dataset:
    path = checkpoint.dataset["path"]
    if path is None or not Path(path).exists():
        raise CheckpointError(f"{stem}: its dataset {path} is gone; name one with --data")
    dataset = Dataset.load(Path(path))
    if dataset.content_hash != checkpoint.dataset["content_hash"]:
        raise CheckpointError(
            f"{stem}: its dataset {path} has changed since; name one with --data (it may be this one)"
        )
    return dataset


def predict(
    model: LoadedModel,
    entity: str,
    relation: str,
    *,
    direction: Literal["object", "subject"] = "object",
    at: str | None = None,
    top: int = 10,
) -> dict[str, Any]:
    """Rank candidates for ``(entity, relation, ?)``, or ``(?, relation, entity)``, at a time.

    Args:
        at: a time; by default the step after the dataset's last. Only facts before it count.

    Returns:
        The JSON of the command; probabilities sum to one over all entities that the network knows.

    Raises:
        DataError: a label or a time that the model does not know.
    """
    checkpoint, dataset = model.checkpoint, model.aligned.known_part()
    subject = look_up(entity, checkpoint.entity_to_id, "entity")
    base = look_up(relation, checkpoint.relation_to_id, "relation")
    query = np.int32(base if direction == "object" else base + dataset.num_relations)
    time = int(dataset.facts[-1, 3]) + 1 if at is None else dataset.time_axis.index(at)
    if time <= dataset.facts[0, 3]:
        raise DataError(f"--at {at}: before the first facts, {dataset.time_axis.label(int(dataset.facts[0, 3]))}")
    score = model.forecaster().at(time)
    scores = np.asarray(score(np.array([subject], np.int32), np.array([query])))[0, : dataset.num_entities]
    last_seen = _last_seen(dataset, subject, int(query), time)
    best = np.argsort(-scores, kind="stable")[:top]
    given = "subject" if direction == "object" else "object"
    predictions = [
        {
            direction: dataset.entities[i],
            "probability": float(np.exp(scores[i])),
            "seen_before": i in last_seen,
            "last_seen": dataset.time_axis.label(last_seen[i]) if i in last_seen else None,
        }
        for i in best.tolist()
    ]
    label = dataset.time_axis.label(time)
    return {given: entity, "relation": relation, "time": label, "predictions": predictions}


def look_up(label: str, ids: dict[str, int], what: str) -> int:
    """Id of a label.

    Raises:
        DataError: no such label; names the nearest ones.
    """
    if label in ids:
        return ids[label]
    near = difflib.get_close_matches(label, ids, n=3, cutoff=0.5) or difflib.get_close_matches(
        label.upper(), ids, n=3, cutoff=0.5
    )
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise DataError(f"{what} {label!r} is unknown to the model{hint}")


def _last_seen(dataset: Dataset, subject: int, query: int, time: int) -> dict[int, int]:
    """Objects seen before ``time`` for a subject and relation, with the last time index of each."""
    both = with_inverses(dataset.facts, dataset.num_relations)
    chosen = both[(both[:, 0] == subject) & (both[:, 1] == query) & (both[:, 3] < time)]
    return dict(sorted(zip(chosen[:, 2].tolist(), chosen[:, 3].tolist(), strict=True), key=lambda item: item[1]))
