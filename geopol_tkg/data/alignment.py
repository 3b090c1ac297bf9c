"""A dataset seen through another one's labels and clock, so that a trained network can read it."""

from dataclasses import dataclass, replace

import numpy as np

from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import DataError


@dataclass(frozen=True)
class AlignedDataset:
    """A dataset whose first labels are the reference's, in its order; unknown labels follow.

    Attributes:
        dataset: all facts, on the reference's time axis.
        num_known_entities, num_known_relations: how many labels the reference has.
    """

    dataset: Dataset
    num_known_entities: int
    num_known_relations: int

    @property
    def unknown_entities(self) -> tuple[str, ...]:
        return self.dataset.entities[self.num_known_entities :]

    @property
    def unknown_relations(self) -> tuple[str, ...]:
        return self.dataset.relations[self.num_known_relations :]

    def known_part(self) -> Dataset:
        """The dataset with known labels and the facts among them only."""
        subject, relation, object_, _ = self.dataset.facts.T
        entities, relations = self.num_known_entities, self.num_known_relations
        known = (subject < entities) & (object_ < entities) & (relation < relations)
        return replace(
            self.dataset,
            entities=self.dataset.entities[:entities],
            relations=self.dataset.relations[:relations],
            facts=self.dataset.facts[known],
            path=None,
        )


def align(
    dataset: Dataset,
    *,
    entity_to_id: dict[str, int],
    relation_to_id: dict[str, int],
    time_axis: TimeAxis,
    entity_kind: str,
    relation_kind: str,
) -> AlignedDataset:
    """Renumber a dataset's labels and times to a reference's.

    Raises:
        DataError: another kind of entity or relation, or another granularity.
    """
    _require_kind("entity", dataset.entity_kind, entity_kind)
    _require_kind("relation", dataset.relation_kind, relation_kind)
    offset = dataset.time_axis.offset_to(time_axis)
    entities, entity_ids = _renumber(dataset.entities, entity_to_id)
    relations, relation_ids = _renumber(dataset.relations, relation_to_id)
    subject, relation, object_, time = dataset.facts.T
    columns = [entity_ids[subject], relation_ids[relation], entity_ids[object_], time + offset]
    facts = np.stack(columns, axis=1).astype(np.int32)
    aligned = replace(
        dataset,
        entities=entities,
        relations=relations,
        facts=facts[np.lexsort(facts.T[[2, 1, 0, 3]])],
        split=Split(dataset.split.valid_start + offset, dataset.split.test_start + offset),
        time_axis=time_axis,
        path=None,
    )
    return AlignedDataset(aligned, len(entity_to_id), len(relation_to_id))


def _require_kind(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise DataError(
            f"the dataset's {what} labels are of kind {found}, the checkpoint's {wanted}: ingest with --{what} {wanted}"
        )


def _renumber(labels: tuple[str, ...], known: dict[str, int]) -> tuple[tuple[str, ...], np.ndarray]:
    """All labels, known ones first, and the new id of each old one: int32 [x]."""
    unknown = [label for label in labels if label not in known]
    ids = known | {label: len(known) + i for i, label in enumerate(unknown)}
    return tuple(ids), np.array([ids[label] for label in labels], np.int32)
