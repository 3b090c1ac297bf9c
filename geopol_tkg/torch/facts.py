"""What a forecast looks at besides the weights: the last snapshots, and every triple with its past. NumPy only."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from geopol_tkg.config import ModelConfig


def snapshots_kept(config: ModelConfig) -> int | None:
    """How many of the last snapshots a model looks at; None: all, to count them."""
    return None if config.is_counting else config.history_length


@dataclass(frozen=True, eq=False)
class Matches:
    """Candidates that stood with queries before: four int arrays [p]."""

    query: np.ndarray  # ascending
    candidate: np.ndarray
    count: np.ndarray  # timestamps at which the fact was true
    last_seen: np.ndarray  # time index

    def mask(self, shape: tuple[int, int], *, since: int | None = None) -> np.ndarray:
        """Which candidates were seen, at or after a time: bool [b, candidates]."""
        kept = slice(None) if since is None else self.last_seen >= since
        seen = np.zeros(shape, bool)
        seen[self.query[kept], self.candidate[kept]] = True
        return seen


class Groups:
    """Facts in both directions (``r + R`` for inverses), those with the same number in a column side by side."""

    def __init__(self, facts: np.ndarray, column: int, size: int) -> None:
        """Facts int32 [f, 4]; numbers below ``size``."""
        self._facts = facts[np.argsort(facts[:, column], kind="stable")]
        self._starts = np.searchsorted(self._facts[:, column], np.arange(size + 1))

    def __getitem__(self, number: int) -> np.ndarray:
        """Int32 [p, 4]."""
        return self._facts[self._starts[number] : self._starts[number + 1]]


class _Lookup:
    """Finds the rows that have a key."""

    def __init__(self, keys: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable")
        self.order, self.keys = order.astype(np.int32), keys[order]

    def __call__(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the wanted key [b], and row, of every hit: two int64 [p]."""
        low, high = (np.searchsorted(self.keys, wanted, side) for side in ("left", "right"))
        lengths = high - low
        query = np.repeat(np.arange(len(wanted)), lengths)
        shifts = low - np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return query, self.order[np.arange(len(query)) + shifts[query]]


@dataclass(frozen=True, eq=False)
class KnownFacts:
    """The facts before a time, as far as a forecast needs them.

    Attributes:
        num_entities, num_relations: N, and R without inverses.
        history_length: snapshots kept; None: all.
        snapshots: facts int32 [f, 3] of the last timestamps, oldest first.
        snapshot_times: time index of each.
        triples: int32 [m, 3], distinct ``(s, r, o)``, ascending.
        counts, last_seen: int32 [m], at how many timestamps each was true, and when last.
        time_index: the step that comes next.
    """

    num_entities: int
    num_relations: int
    history_length: int | None
    snapshots: tuple[np.ndarray, ...]
    snapshot_times: tuple[int, ...]
    triples: np.ndarray
    counts: np.ndarray
    last_seen: np.ndarray
    time_index: int

    @classmethod
    def build(
        cls,
        facts: np.ndarray,
        *,
        num_entities: int,
        num_relations: int,
        history_length: int | None,
        time_index: int | None = None,
    ) -> "KnownFacts":
        """From facts [f, 4]; the next step is the one after the last fact, or 0, where no other is given."""
        nothing = np.zeros((0, 3), np.int32)
        empty = cls(num_entities, num_relations, history_length, (), (), nothing, nothing[:, 0], nothing[:, 0], 0)
        if time_index is None:
            time_index = int(facts[:, 3].max()) + 1 if len(facts) else 0
        return empty.extended(facts, time_index=time_index)

    def extended(self, facts: np.ndarray, *, time_index: int | None = None) -> "KnownFacts":
        """With facts int32 [f, 4], none before the last snapshot; those known already change nothing."""
        new = self.new_among(facts)
        keys = np.concatenate([self._keys(self.triples), self._keys(new)])
        _, first, where = np.unique(keys, return_index=True, return_inverse=True)
        counts = np.bincount(where, np.concatenate([self.counts, np.ones(len(new), np.int32)])).astype(np.int32)
        last_seen = np.full(len(first), np.iinfo(np.int32).min, np.int32)
        np.maximum.at(last_seen, where, np.concatenate([self.last_seen, new[:, 3]]))
        snapshots = dict(zip(self.snapshot_times, self.snapshots, strict=True))
        for time, added in zip(*split_by_time(new), strict=True):
            snapshots[time] = np.concatenate([snapshots[time], added]) if time in snapshots else added
        times = sorted(snapshots)
        kept = times if self.history_length is None else times[max(len(times) - self.history_length, 0) :]
        if time_index is None:
            time_index = max([self.time_index, *(new[:, 3] + 1).tolist()])
        return KnownFacts(
            self.num_entities,
            self.num_relations,
            self.history_length,
            snapshots=tuple(snapshots[time] for time in kept),
            snapshot_times=tuple(kept),
            triples=np.concatenate([self.triples, new[:, :3]])[first],
            counts=counts,
            last_seen=last_seen,
            time_index=time_index,
        )

    def new_among(self, facts: np.ndarray) -> np.ndarray:
        """The distinct facts that are not in the last snapshot: int32 [f, 4]."""
        facts = np.unique(np.asarray(facts, np.int32).reshape(-1, 4), axis=0)
        if not self.snapshots or not len(facts):
            return facts
        known = np.isin(self._keys(facts), self._keys(self.snapshots[-1]))
        return facts[~(known & (facts[:, 3] == self.snapshot_times[-1]))]

    def objects(self, subjects: np.ndarray, relations: np.ndarray) -> Matches:
        """What stood as object with each subject and relation, inverses included."""
        query, row = self._by_subject_and_relation(self._pair(subjects, relations, 2 * self.num_relations))
        inverse, triple = np.divmod(row, len(self.triples))
        return Matches(query, self.triples[triple, 2 - 2 * inverse], self.counts[triple], self.last_seen[triple])

    def relations(self, subjects: np.ndarray, objects: np.ndarray) -> Matches:
        """What stood as relation between each subject and object, inverses included."""
        query, row = self._by_subject_and_object(self._pair(subjects, objects, self.num_entities))
        inverse, triple = np.divmod(row, len(self.triples))
        candidate = self.triples[triple, 1] + inverse * self.num_relations
        return Matches(query, candidate, self.counts[triple], self.last_seen[triple])

    @cached_property
    def quadruples(self) -> np.ndarray:
        """The facts of the snapshots kept, sorted by time: int32 [f, 4]."""
        times = np.repeat(np.array(self.snapshot_times, np.int32), [len(facts) for facts in self.snapshots])
        return np.column_stack([np.concatenate([np.zeros((0, 3), np.int32), *self.snapshots]), times])

    @cached_property
    def by_subject(self) -> Groups:
        """Of the snapshots kept."""
        return Groups(self._both_directions(), 0, self.num_entities)

    @cached_property
    def by_relation(self) -> Groups:
        """Of the snapshots kept."""
        return Groups(self._both_directions(), 1, 2 * self.num_relations)

    def _both_directions(self) -> np.ndarray:
        inverse = self.quadruples[:, [2, 1, 0, 3]]
        inverse[:, 1] += self.num_relations
        return np.concatenate([self.quadruples, inverse])

    def _keys(self, facts: np.ndarray) -> np.ndarray:
        return self._pair(self._pair(facts[:, 0], facts[:, 1], self.num_relations), facts[:, 2], self.num_entities)

    @staticmethod
    def _pair(first: np.ndarray, second: np.ndarray, size: int) -> np.ndarray:
        return np.asarray(first, np.int64) * size + second

    @cached_property
    def _by_subject_and_relation(self) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        subject, relation, object_ = self.triples.T
        forward = self._pair(subject, relation, 2 * self.num_relations)
        inverse = self._pair(object_, relation + self.num_relations, 2 * self.num_relations)
        return _Lookup(np.concatenate([forward, inverse]))

    @cached_property
    def _by_subject_and_object(self) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        subject, _, object_ = self.triples.T
        forward, inverse = (self._pair(*pair, self.num_entities) for pair in ((subject, object_), (object_, subject)))
        return _Lookup(np.concatenate([forward, inverse]))


def split_by_time(facts: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Times of facts [f, 4], ascending, and the triples [p, 3] of each."""
    facts = facts[np.argsort(facts[:, 3], kind="stable")]
    times, starts = np.unique(facts[:, 3], return_index=True)
    return times.tolist(), np.split(facts[:, :3], starts[1:]) if len(times) else []
