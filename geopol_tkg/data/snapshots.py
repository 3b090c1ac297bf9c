"""Facts of each timestamp as flat, padded arrays that a device can cut windows from."""

from dataclasses import dataclass

import numpy as np

from geopol_tkg.config import ModelType
from geopol_tkg.data.dataset import with_inverses

_ROUND_TO = 8


def round_up(size: int) -> int:
    """The padded size of so many entries: few sizes, so that few are compiled."""
    return max(-(-size // _ROUND_TO), 1) * _ROUND_TO


@dataclass(frozen=True)
class Ragged:
    """Columns of variable-length rows laid end to end; row ``i`` is ``starts[i]:starts[i + 1]``.

    Columns carry ``round_up(max(lengths))`` entries of padding, so that a slice of that size fits anywhere: one that
    did not would be moved to the front.
    """

    columns: tuple[np.ndarray, ...]
    starts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    @classmethod
    def build(cls, row: np.ndarray, num_rows: int, *columns: np.ndarray) -> "Ragged":
        """Lay out columns whose entries are already sorted by their row number."""
        starts = np.searchsorted(row, np.arange(num_rows + 1)).astype(np.int32)
        padding = round_up(int(np.diff(starts).max(initial=0)))
        return cls(tuple(np.pad(column, (0, padding)) for column in columns), starts)


@dataclass(frozen=True)
class Snapshots:
    """Neighbours, connected entities and relation members of every timestamp.

    Attributes:
        times: int32 [t], the timestamps, ascending.
        neighbours: per snapshot distinct ``(subject, slot, count)`` of the edges in both directions, sorted
            by slot: the position of the object among the snapshot's connected entities.
        incoming: per snapshot distinct ``(relation, slot, count)`` of the same edges, sorted by slot.
        connected: per snapshot ``(entity, degree)``, ascending; the degree counts both directions.
        members: per snapshot distinct ``(relation, entity)``, sorted by relation (without
            inverses): the entities that give a relation its context.
    """

    times: np.ndarray
    neighbours: Ragged
    incoming: Ragged
    connected: Ragged
    members: Ragged

    @classmethod
    def build(cls, facts: np.ndarray, *, num_relations: int, model_type: ModelType) -> "Snapshots":
        """Arrange facts [f, 4]; RE-GCN counts subjects and objects as members, TiRGN subjects."""
        times, ordinal = np.unique(facts[:, 3], return_inverse=True)
        subject, relation, object_, _ = with_inverses(facts, num_relations).astype(np.int64).T
        row, entity, place, degree = _distinct(np.tile(ordinal, 2), object_)
        connected = Ragged.build(row, len(times), entity, degree)
        slot = np.arange(len(row)) - connected.starts[row]

        def of_edges(values: np.ndarray) -> Ragged:
            owner, value, _, count = _distinct(place, values)
            return Ragged.build(row[owner], len(times), value, slot[owner].astype(np.int32), count)

        sides = (0, 2) if model_type == "regcn" else (0,)
        members = _members(facts, ordinal, len(times), sides)
        return cls(times.astype(np.int32), of_edges(subject), of_edges(relation), connected, members)

    def before(self, time: int, history_length: int) -> np.ndarray:
        """Ordinals of the last ``history_length`` snapshots before a time; -1 pads at the front."""
        end = int(np.searchsorted(self.times, time))
        ordinals = np.arange(end - history_length, end)
        return np.where(ordinals >= 0, ordinals, -1).astype(np.int32)


def _distinct(groups: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs of int64 [e] each, ascending: group, value (int32); which one each is; how often (float32)."""
    size = int(values.max(initial=0)) + 1
    pairs, which, count = np.unique(groups * size + values, return_inverse=True, return_counts=True)
    return pairs // size, (pairs % size).astype(np.int32), which, count.astype(np.float32)


def _members(facts: np.ndarray, ordinal: np.ndarray, num_rows: int, sides: tuple[int, ...]) -> Ragged:
    triples = np.concatenate([np.stack([ordinal, facts[:, 1], facts[:, side]], axis=1) for side in sides])
    row, relation, entity = np.unique(triples, axis=0).astype(np.int32).T
    return Ragged.build(row, num_rows, relation, entity)
