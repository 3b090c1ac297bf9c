"""A dataset seen through another one's labels and clock, so that a trained network can read it."""

from dataclasses import dataclass, replace

import numpy as np

from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import DataError


@dataclass(frozen=True)
class Alignment:
    """How a dataset's ids and times translate to a reference's.

    Attributes:
        dataset: as it is.
        known: its facts among labels that the reference has, in the reference's ids, labels and times.
        entity_ids: int32 [n], the reference's id of each entity; -1 where it has none.
        relation_ids: int32 [r], likewise.
        time_offset: what turns a time index of the dataset into one of the reference.
    """

    dataset: Dataset
    known: Dataset
    entity_ids: np.ndarray
    relation_ids: np.ndarray
    time_offset: int

    @classmethod
    def identity(cls, dataset: Dataset) -> "Alignment":
        """Of a dataset with itself."""
        entities, relations = np.arange(dataset.num_entities), np.arange(dataset.num_relations)
        return cls(dataset, dataset, entities.astype(np.int32), relations.astype(np.int32), 0)

    @property
    def is_identity(self) -> bool:
        return self.known is self.dataset

    @property
    def num_unknown_entities(self) -> int:
        return int((self.entity_ids < 0).sum())

    @property
    def num_unknown_relations(self) -> int:
        return int((self.relation_ids < 0).sum())


def align(
    dataset: Dataset,
    *,
    entity_to_id: dict[str, int],
    relation_to_id: dict[str, int],
    time_axis: TimeAxis,
    entity_kind: str,
    relation_kind: str,
) -> Alignment:
    """Translate a dataset's labels and times to a reference's.

    Raises:
        DataError: another kind of entity or relation, another granularity, or no fact with known labels.
    """
    _require_kind("entity", dataset.entity_kind, entity_kind)
    _require_kind("relation", dataset.relation_kind, relation_kind)
    offset = dataset.time_axis.offset_to(time_axis)
    entity_ids = _ids(dataset.entities, entity_to_id)
    relation_ids = _ids(dataset.relations, relation_to_id)
    known = replace(
        dataset,
        entities=_in_order(entity_to_id),
        relations=_in_order(relation_to_id),
        facts=_translate(dataset.facts, entity_ids, relation_ids, offset),
        split=replace(
            dataset.split,
            valid_start=dataset.split.valid_start + offset,
            test_start=dataset.split.test_start + offset,
        ),
        time_axis=time_axis,
        path=None,
    )
    return Alignment(dataset, known, entity_ids, relation_ids, offset)


def _translate(facts: np.ndarray, entity_ids: np.ndarray, relation_ids: np.ndarray, offset: int) -> np.ndarray:
    """Facts among known labels, sorted as a dataset's are: int32 [f, 4]."""
    subject, relation, object_, time = facts.T
    columns = [entity_ids[subject], relation_ids[relation], entity_ids[object_], time + offset]
    translated = np.stack(columns, axis=1).astype(np.int32)
    translated = translated[(translated[:, :3] >= 0).all(axis=1)]
    if not len(translated):
        raise DataError("the dataset has no fact among labels that the model knows: nothing to forecast from")
    return translated[np.lexsort(translated.T[[2, 1, 0, 3]])]


def _require_kind(what: str, found: str, wanted: str) -> None:
    if found == wanted:
        return
    advice = "give a dataset of the same source" if wanted == "given" else f"ingest with --{what} {wanted}"
    raise DataError(f"the dataset's {what} labels are of kind {found}, the checkpoint's {wanted}: {advice}")


def _ids(labels: tuple[str, ...], known: dict[str, int]) -> np.ndarray:
    return np.array([known.get(label, -1) for label in labels], np.int32)


def _in_order(ids: dict[str, int]) -> tuple[str, ...]:
    return tuple(sorted(ids, key=ids.__getitem__))
