"""From a checkpoint to a forecaster on a dataset, its own or another; and forecasts by label."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import softmax

from geopol_tkg.checkpoint import Checkpoint, checkpoint_paths, load_checkpoint
from geopol_tkg.config import SplitName
from geopol_tkg.data.alignment import Alignment, align
from geopol_tkg.data.cameo_words import relation_meaning
from geopol_tkg.data.countries import Countries
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.history import HistoryVocabulary, load_or_build
from geopol_tkg.data.paths import PathIndex
from geopol_tkg.errors import CheckpointError, DataError, UsageError, unknown_label
from geopol_tkg.explain import Past
from geopol_tkg.models.base import Block, Expectant, Forecaster, ScoreFunction
from geopol_tkg.models.ensemble import EnsembleForecaster, Member
from geopol_tkg.models.registry import TrainedForecaster, build_context, build_forecaster, uses_vocabulary


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint with the dataset that it looks at."""

    checkpoint: Checkpoint
    name: str
    alignment: Alignment

    @property
    def dataset(self) -> Dataset:
        """The dataset in its own ids and times."""
        return self.alignment.dataset

    @property
    def known_entities(self) -> np.ndarray:
        """Entities of the dataset that the network was trained on: bool [n]."""
        ids = self.alignment.entity_ids
        return (ids >= 0) & self.checkpoint.trained_entities[ids]

    @property
    def tells_countries_apart(self) -> bool:
        return self.checkpoint.config.num_countries > 0

    def led_to(self, entity: int, time: int) -> np.ndarray:
        """Entities to which the model follows paths from one, before a time, in the checkpoint's ids: int32 [p]."""
        index = PathIndex.of_model(self.alignment.known.facts, self.checkpoint.config)
        return np.empty(0, np.int32) if index is None else index.of(time, np.array([entity])).objects[0]

    @property
    def trained_until(self) -> int:
        """Time index, as the checkpoint counts them, before which facts were learned from."""
        return self.checkpoint.trained_until

    @property
    def temperature(self) -> float:
        """That the scores are read with as probabilities."""
        return self.checkpoint.temperature_value

    def history(self) -> HistoryVocabulary | None:
        """What the network's history mode looks up, in the checkpoint's ids; None where the model has none."""
        if not uses_vocabulary(self.checkpoint.config):
            return None
        return load_or_build(self.alignment.known, window=self.checkpoint.config.history_window)[0]

    def network_forecaster(self, *, horizon: int | None = None) -> TrainedForecaster | EnsembleForecaster:
        """The trained network, asked in the checkpoint's ids and times."""
        config = self.checkpoint.config
        return build_forecaster(
            *self.checkpoint.network(),
            config=config,
            context=build_context(self.alignment.known, self.history(), config),
            name=self.name,
            horizon=horizon,
        )

    def forecaster(self, *, horizon: int | None = None) -> Forecaster:
        """The trained network, asked in the dataset's ids and times."""
        if self.alignment.is_identity:
            return self.network_forecaster(horizon=horizon)
        own_horizon = None if horizon is None else horizon + self.alignment.time_offset
        return AlignedForecaster(self.network_forecaster(horizon=own_horizon), self.alignment, horizon=horizon)


@dataclass(frozen=True)
class LoadedEnsemble(LoadedModel):
    """Several checkpoints of one dataset, whose probabilities are averaged; the first one's ids are those of all."""

    members: tuple[LoadedModel, ...]

    @property
    def known_entities(self) -> np.ndarray:
        """Entities of the dataset that all members were trained on: bool [n]."""
        return np.logical_and.reduce([member.known_entities for member in self.members])

    @property
    def tells_countries_apart(self) -> bool:
        return any(member.tells_countries_apart for member in self.members)

    def led_to(self, entity: int, time: int) -> np.ndarray:
        """Entities to which a member follows paths."""
        return np.concatenate([member.led_to(entity, time) for member in self.members])

    @property
    def trained_until(self) -> int:
        return max(member.trained_until for member in self.members)

    @property
    def temperature(self) -> float:
        """Each member is read with its own; their mean needs none."""
        return 1.0

    def network_forecaster(self, *, horizon: int | None = None) -> EnsembleForecaster:
        """All members, asked in their ids and times."""
        members = [Member(each.network_forecaster(horizon=horizon), each.temperature) for each in self.members]
        return EnsembleForecaster(members, name=self.name, horizon=horizon)


class AlignedForecaster:
    """A network that answers in the ids and times of a dataset it was not trained on.

    An unknown entity is a candidate below all known ones; a query with an unknown subject or relation
    scores all candidates alike, since nothing is known about it.
    """

    def __init__(self, network: Forecaster, alignment: Alignment, *, horizon: int | None = None) -> None:
        self.name = network.name
        self.horizon = horizon
        self._network = network
        self._time_offset = alignment.time_offset
        self._entity_ids = alignment.entity_ids
        relations = alignment.relation_ids
        inverses = np.where(relations >= 0, relations + alignment.known.num_relations, -1)
        self._relation_ids = np.concatenate([relations, inverses]).astype(np.int32)

    def at(self, time: int) -> ScoreFunction:
        """Scores float32 [b, n] of queries at a time."""
        network_score = self._network.at(time + self._time_offset)

        def score(subjects: np.ndarray, relations: np.ndarray) -> np.ndarray:
            own, known = self._own(Block(time, subjects, relations))
            scores = np.asarray(network_score(own.subjects, own.relations))[:, self._entity_ids]
            scores[:, self._entity_ids < 0] = -np.inf
            scores[~known] = 0
            return scores

        return score

    def expect(self, blocks: Iterable[Block]) -> None:
        """Make room in the network."""
        if isinstance(self._network, Expectant):
            self._network.expect(self._own(block)[0] for block in blocks)

    def _own(self, block: Block) -> tuple[Block, np.ndarray]:
        """A block as the network is asked it, and which of its queries the network knows: bool [b]."""
        subjects, relations = self._entity_ids[block.subjects], self._relation_ids[block.relations]
        known = (subjects >= 0) & (relations >= 0)
        own = Block(block.time + self._time_offset, np.where(known, subjects, 0), np.where(known, relations, 0))
        return own, known


def load_model(stem: Path, data: Dataset | None = None) -> LoadedModel:
    """Load a checkpoint, on the given dataset or the one it was trained on.

    Raises:
        CheckpointError: the training dataset has changed or gone; give one.
        DataError: the dataset has another kind of labels or another granularity.
    """
    checkpoint = load_checkpoint(stem)
    dataset = training_dataset(checkpoint, stem) if data is None else data
    name = stem.name.removesuffix(".json").removesuffix(".npz")
    if dataset.content_hash == checkpoint.dataset["content_hash"]:
        return LoadedModel(checkpoint, name, Alignment.identity(dataset))
    alignment = align(
        dataset,
        entity_to_id=checkpoint.entity_to_id,
        relation_to_id=checkpoint.relation_to_id,
        time_axis=checkpoint.time_axis,
        entity_kind=checkpoint.dataset["entity"],
        relation_kind=checkpoint.dataset["relation"],
    )
    return LoadedModel(checkpoint, name, alignment)


def member_names(name: str) -> list[str]:
    """The checkpoints that ``A+B`` names; a checkpoint with a plus in its own name is one."""
    if checkpoint_paths(Path(name))[1].is_file() or not all(parts := name.split("+")):
        return [name]
    return parts


def is_ensemble(name: str) -> bool:
    """Whether a name is of several checkpoints."""
    return len(member_names(name)) > 1


def load_named(name: str, data: Dataset | None = None) -> LoadedModel:
    """Load a checkpoint by its path, or the ensemble of those in ``A+B``.

    Raises:
        CheckpointError: as of :func:`load_model`; or members were trained on different datasets.
    """
    stems = [Path(part) for part in member_names(name)]
    members = tuple(load_model(stem, data) for stem in stems)
    first = members[0]
    if len(members) == 1:
        return first
    for stem, member in zip(stems, members, strict=True):
        if member.checkpoint.dataset["content_hash"] != first.checkpoint.dataset["content_hash"]:
            raise CheckpointError(f"{stem}: trained on another dataset than {stems[0]}: they make no ensemble")
    names = "+".join(member.name for member in members)
    return LoadedEnsemble(first.checkpoint, names, first.alignment, members)


def training_dataset(checkpoint: Checkpoint, stem: Path, *, other: str = "name one with --data") -> Dataset:
    """The dataset that a checkpoint was trained on.

    Args:
        other: how the user may name another.

    Raises:
        CheckpointError: it has changed or gone.
    """
    path = checkpoint.dataset["path"]
    if path is None or not Path(path).exists():
        raise CheckpointError(f"{stem}: its dataset {path} is gone; {other}")
    dataset = Dataset.load(Path(path))
    if dataset.content_hash != checkpoint.dataset["content_hash"]:
        raise CheckpointError(f"{stem}: its dataset {path} has changed since; {other} (it may be this one)")
    return dataset


def horizon_of(dataset: Dataset, split: SplitName) -> int:
    """First time index of a split: what multi-step forecasts of it may not see beyond."""
    return dataset.split.bounds(split)[0]


def predict(
    model: LoadedModel,
    entity: str,
    relation: str,
    *,
    direction: Literal["object", "subject"] = "object",
    at: str | None = None,
    top: int = 10,
    explain: bool = False,
) -> dict[str, Any]:
    """Rank candidates for ``(entity, relation, ?)``, or ``(?, relation, entity)``, at a time.

    Args:
        at: a time; by default the step after the dataset's last. Only facts before it count.
        explain: say of each candidate what these facts say of it.

    Returns:
        The JSON of the command. ``steps_ahead`` is how far the time is from the last facts before it; probabilities
        sum to one over all entities that the network knows, and are read with the model's temperature.

    Raises:
        DataError: a label or a time that the model does not know.
        UsageError: ``at`` is no time.
    """
    checkpoint, known = model.checkpoint, model.alignment.known
    subject = look_up(entity, checkpoint.entity_to_id, "entity")
    base = look_up(relation, checkpoint.relation_to_id, "relation")
    query = base if direction == "object" else base + known.num_relations
    time = _time_of(at, model.alignment)
    score = model.network_forecaster().at(time)
    scores = np.asarray(score(np.array([subject], np.int32), np.array([query], np.int32)))[0]
    probability = probabilities(scores, model.temperature)
    countries, led_to = None, model.led_to(subject, time) if explain else None
    if explain and model.tells_countries_apart:
        countries = Countries.from_labels(known.entities, entity_kind=known.entity_kind)
    past = Past(known, subject, base, direction=direction, time=time, countries=countries, led_to=led_to)
    predictions = [
        {
            direction: known.entities[i],
            "probability": float(probability[i]),
            "seen_before": bool(past.fact.count[i]),
            "last_seen": past.last_seen(i),
            **({"explanation": past.explanation(i)} if explain else {}),
        }
        for i in np.argsort(-scores, kind="stable")[:top].tolist()
    ]
    given = "subject" if direction == "object" else "object"
    meaning = {"meaning": relation_meaning(known.relation_kind, relation)} if explain else {}
    times = known.facts[:, 3]
    steps_ahead = time - int(times[np.searchsorted(times, time) - 1])
    asked = {given: entity, "relation": relation, **meaning, "time": known.time_axis.label(time)}
    return {**asked, "steps_ahead": steps_ahead, "predictions": predictions}


def probabilities(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Of log-probabilities [..., n], read with a temperature: float64 [..., n]."""
    return softmax(scores.astype(np.float64) / temperature, axis=-1)


def next_time(alignment: Alignment) -> int:
    """The checkpoint's index of the step after the dataset's last fact, be its labels known or not."""
    return int(alignment.dataset.facts[-1, 3]) + alignment.time_offset + 1


def _time_of(at: str | None, alignment: Alignment) -> int:
    """The checkpoint's index of a time, by default of the step after the dataset's last."""
    axis, first = alignment.known.time_axis, int(alignment.known.facts[0, 3])
    if at is None:
        return next_time(alignment)
    try:
        time = axis.index(at)
    except DataError as error:
        raise UsageError(f"--at: {error}") from error
    if time > np.iinfo(np.int32).max:
        raise DataError(f"--at {at}: too far ahead")
    if time <= first:
        raise DataError(f"--at {at}: nothing is known before the first facts, those of {axis.label(first)}")
    return time


def look_up(label: str, ids: dict[str, int], what: str) -> int:
    """Id of a label.

    Raises:
        DataError: no such label; names the nearest ones.
    """
    if label in ids:
        return ids[label]
    raise unknown_label(label, ids, what)
