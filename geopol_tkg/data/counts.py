"""Counts of the past at any time: how often and how lately did this happen?

The history vocabulary says what was seen; these tables say how often, at several decays, and when last.
They hold, for each key (a fact without its time, two actors, a relation and an object, ...), the times
at which it occurred and its counts just after each of them. Whatever was known at a time is then found by
binary search, on the host or on a device, in any order of times.
"""

from typing import Any, NamedTuple

import numpy as np

from geopol_tkg.data.dataset import with_inverses
from geopol_tkg.data.history import HistoryIndex

Values = Any  # a NumPy array on the host, or its copy on a device

SCALE = 20.0  # counts enter as log(1 + SCALE * count)


class Occurrences(NamedTuple):
    """When each of m keys occurred, and how often until then.

    Attributes:
        starts: int32 [m + 1], where the occurrences of a key begin; one for each time.
        times: int32 [p], ascending within a key.
        counts: float32 [p, k + 1], just after that time: k decayed counts, and the plain one.
    """

    starts: Values
    times: Values
    counts: Values

    @classmethod
    def build(cls, keys: np.ndarray, times: np.ndarray, num_keys: int, half_lives: tuple[float, ...]) -> "Occurrences":
        """Count occurrences (keys [h] below ``num_keys``, times [h] in steps); half-lives in steps."""
        first = int(times.min(initial=0))
        span = int(times.max(initial=0)) - first + 1
        moments, multiplicity = np.unique(keys.astype(np.int64) * span + (times - first), return_counts=True)
        owners, at = moments // span, moments % span
        starts = np.searchsorted(owners, np.arange(num_keys + 1))
        counts = np.tile(multiplicity[:, None].astype(np.float32), (1, len(half_lives) + 1))
        rates = np.append(1 / np.asarray(half_lives), 0)
        nth = np.arange(len(moments)) - starts[owners]
        by_nth = np.argsort(nth, kind="stable")
        for later in np.split(by_nth, np.cumsum(np.bincount(nth)))[1:-1]:  # second occurrences, third ones, ...
            gap = (at[later] - at[later - 1])[:, None]
            counts[later] += counts[later - 1] * np.exp2(-gap * rates)
        return cls(starts.astype(np.int32), (at + first).astype(np.int32), counts)


class Sorted(NamedTuple):
    """Members of m groups, in the order in which they were first seen.

    Attributes:
        starts: int32 [m + 1], where a group's members begin.
        first: int32 [p], when a member was first seen, ascending within its group.
        members: int32 [p].
    """

    starts: Values
    first: Values
    members: Values


class CountTables(NamedTuple):
    """All that is counted of facts in both directions (``r + R`` for inverses).

    Attributes:
        objects: entities met by each subject under any relation; a meeting is a member ``(s, o)``.
        outgoing, incoming: occurrences of each meeting, as facts ``(s, ., o)`` and ``(o, ., s)``.
        outgoing_relations, incoming_relations: int32 [p], the last relation of each of these occurrences.
        row_starts: int32 [n + 1], where the rows ``(s, r)`` of a subject begin.
        row_relations: int32 [w], ascending within a subject.
        rows: occurrences of each row.
        triples: objects of each row; members are triples ``(s, r, o)``.
        triple_counts: occurrences of each triple.
        triple_ranks: int32 [i], which of its subject's meetings each triple belongs to.
        answers: objects of each relation; a member is a pair ``(r, o)``.
        answer_counts: occurrences of each pair.
        answers_by_object: int32 [a], each relation's objects ascending; and which pair it is, int32 [a].
        entities: occurrences of each entity as object, then of each as subject of a fact: m = 2n.
    """

    objects: Sorted
    outgoing: Occurrences
    incoming: Occurrences
    outgoing_relations: Values
    incoming_relations: Values
    row_starts: Values
    row_relations: Values
    rows: Occurrences
    triples: Sorted
    triple_counts: Occurrences
    triple_ranks: Values
    answers: Sorted
    answer_counts: Occurrences
    answers_by_object: tuple[Values, Values]
    entities: Occurrences

    @classmethod
    def build(
        cls, facts: np.ndarray, *, num_entities: int, num_relations: int, half_lives: tuple[float, ...]
    ) -> "CountTables":
        """Count facts int32 [f, 4] of any times; half-lives in steps."""
        subject, relation, object_, time = with_inverses(facts, num_relations).astype(np.int64).T
        forward = relation < num_relations

        def occurrences(keys: np.ndarray, size: int, chosen: np.ndarray | slice = slice(None)) -> Occurrences:
            return Occurrences.build(keys[chosen], time[chosen], size, half_lives)

        objects, meetings = _first_seen(subject, object_, time, num_entities)
        row_keys, row = np.unique(subject * 2 * num_relations + relation, return_inverse=True)
        triples, triple = _first_seen(row, object_, time, len(row_keys))
        answers, answer = _first_seen(relation, object_, time, 2 * num_relations)
        by_object = np.lexsort((answers.members, _groups(answers)))
        ranks = np.empty(len(triples.members), np.int64)
        ranks[triple] = meetings - objects.starts[subject]
        return cls(
            objects=objects,
            outgoing=occurrences(meetings, len(objects.members), forward),
            incoming=occurrences(meetings, len(objects.members), ~forward),
            outgoing_relations=_last_relations(meetings[forward], time[forward], relation[forward]),
            incoming_relations=_last_relations(meetings[~forward], time[~forward], relation[~forward]),
            row_starts=np.searchsorted(row_keys // (2 * num_relations), np.arange(num_entities + 1)).astype(np.int32),
            row_relations=(row_keys % (2 * num_relations)).astype(np.int32),
            rows=occurrences(row, len(row_keys)),
            triples=triples,
            triple_counts=occurrences(triple, len(triples.members)),
            triple_ranks=ranks.astype(np.int32),
            answers=answers,
            answer_counts=occurrences(answer, len(answers.members)),
            answers_by_object=(answers.members[by_object], by_object.astype(np.int32)),
            entities=occurrences(np.where(forward, 0, num_entities) + object_, 2 * num_entities),
        )


class CountSizes:
    """How much each query finds in the tables: what the padded sizes on a device follow from."""

    def __init__(self, tables: CountTables, *, num_relations: int) -> None:
        self._num_relations, self._met = num_relations, tables.objects
        subjects = np.repeat(np.arange(len(tables.row_starts) - 1, dtype=np.int64), np.diff(tables.row_starts))
        self._rows = subjects * 2 * num_relations + tables.row_relations
        self._objects, self._triples, self._answers = (
            HistoryIndex.build(_groups(part), part.first, part.members, order=np.arange(len(part.first)))
            for part in (tables.objects, tables.triples, tables.answers)
        )

    def of(self, subjects: np.ndarray, relations: np.ndarray, times: np.ndarray | int) -> np.ndarray:
        """Entities met by the subjects before the times, objects of their rows and of their relations: int32 [3, b]."""
        wanted = subjects.astype(np.int64) * 2 * self._num_relations + relations
        row = np.searchsorted(self._rows, wanted)
        is_there = self._rows[np.minimum(row, len(self._rows) - 1)] == wanted
        times = np.broadcast_to(times, subjects.shape)
        parts = (
            (self._objects, subjects, times),
            (self._triples, row, times),
            (self._answers, relations, times),
        )
        met, repeated, answers = (
            index.slices(keys, np.full_like(times, np.iinfo(np.int32).min), end) @ [-1, 1] for index, keys, end in parts
        )
        return np.stack([met, np.where(is_there, repeated, 0), answers]).astype(np.int32)

    def ranks(self, subjects: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """Which of the entities that its subject ever meets each object is, in the order of meeting: int32 [b]."""
        meetings = _groups(self._met) << 32 | self._met.members
        order = np.argsort(meetings)
        found = np.searchsorted(meetings, subjects.astype(np.int64) << 32 | objects, sorter=order)
        return (order[found] - self._met.starts[subjects]).astype(np.int32)


def _first_seen(
    groups: np.ndarray, members: np.ndarray, times: np.ndarray, num_groups: int
) -> tuple[Sorted, np.ndarray]:
    """Distinct members of each group in the order they were first seen (then by number); which one each [h] is."""
    by_time = np.lexsort((members, times, groups))
    size = int(members.max(initial=0)) + 1
    identity = groups * size + members
    distinct, first, inverse = np.unique(identity[by_time], return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    which = np.empty(len(groups), np.int64)
    which[by_time] = number[inverse]
    owners = distinct[order] // size
    starts = np.searchsorted(owners, np.arange(num_groups + 1)).astype(np.int32)
    found = Sorted(starts, times[by_time][first[order]].astype(np.int32), (distinct[order] % size).astype(np.int32))
    return found, which


def _groups(members: Sorted) -> np.ndarray:
    return np.repeat(np.arange(len(members.starts) - 1), np.diff(members.starts))


def _last_relations(keys: np.ndarray, times: np.ndarray, relations: np.ndarray) -> np.ndarray:
    """The largest relation at each key and time, in their order: int32."""
    order = np.lexsort((relations, times, keys))
    key, time = keys[order], times[order]
    is_last = np.append((key[1:] != key[:-1]) | (time[1:] != time[:-1]), np.ones(min(len(order), 1), bool))
    return relations[order][is_last].astype(np.int32)
