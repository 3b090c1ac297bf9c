"""What the counting model looks at: how often and how lately, counted from the facts before a time. NumPy only."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from geopol_tkg.torch.facts import KnownFacts

Values = Any  # a NumPy array, or its copy as a tensor

SCALE = 20.0  # counts enter as log(1 + SCALE * count)


class Meetings(NamedTuple):
    """The entities that a subject has met, m of them.

    Attributes:
        objects: int64 [m], ascending.
        last_relations: int64 [m], of the last fact between the two (``r + R`` for inverses); of several, the largest.
        features: float32 [2, m, f], of facts from the subject, and of facts to it.
    """

    objects: np.ndarray
    last_relations: np.ndarray
    features: np.ndarray


class Paths(NamedTuple):
    """Entities that a subject has not met, but those who met the same as it, p of them; n = no more.

    Attributes:
        objects: int64 [p].
        features: float32 [p, k + 1], of each half-life, then plain.
    """

    objects: np.ndarray
    features: np.ndarray


class _Edges(NamedTuple):
    """Two that have met, in both directions, e of them.

    Attributes:
        first, second: int64 [e].
        counts: float64 [k + 1, e], of facts between them, decayed and plain.
        unit: float64 [e], of ``log(1 + facts)``, over the norm of the second one's.
    """

    first: np.ndarray
    second: np.ndarray
    counts: np.ndarray
    unit: np.ndarray


class Counts(NamedTuple):
    """What is counted for b queries ``(s, r, ?)`` of x distinct relations; they have m meetings.

    Of each kind of fact there are f features: ``log(1 + SCALE * count)``, the count decayed by each half-life and the
    plain one, and ``log(1 + age)`` of the last. They are zero where there was no such fact.

    Attributes:
        entities: float32 [2, n, 2f], of each entity as object and as subject, then the other way round.
        relations: int64 [x].
        answers: float32 [x, n, f], of ``(r, o)``.
        subjects, relation_of: int64 [b]; which of the relations.
        rows: float32 [b, f], of ``(s, r)``.
        query, objects: int64 [m], a query and an entity that its subject has met.
        meetings: float32 [m, 3f], of ``(s, r, o)``, and of the two in the query's direction and in the other.
        last_relations: int64 [m].
        path_objects: int64 [b, p], see :class:`Paths`.
        path_features: float32 [b, p, k + 1].
    """

    entities: Values
    relations: Values
    answers: Values
    subjects: Values
    relation_of: Values
    rows: Values
    query: Values
    objects: Values
    meetings: Values
    last_relations: Values
    path_objects: Values
    path_features: Values


class PastCounts:
    """Counts as of a time. Those of a subject or a relation are kept once they were asked for."""

    def __init__(self, facts: KnownFacts, time: int, *, half_lives: tuple[float, ...], num_paths: int = 0) -> None:
        """All the facts lie before the time; half-lives in steps; ``num_paths`` as the model was trained."""
        self.facts, self.time = facts, time
        self._half_lives, self._num_paths = half_lives, num_paths
        self._answers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._meetings: dict[int, Meetings] = {}
        self._paths: dict[int, Paths] = {}

    def of(self, subjects: np.ndarray, relations: np.ndarray) -> Counts:
        """Counts for queries int64 [b]; relations with inverses."""
        distinct, relation_of = np.unique(relations, return_inverse=True)
        answers = np.zeros((len(distinct), self.facts.num_entities, len(self._half_lives) + 2), np.float32)
        for slot, relation in enumerate(distinct.tolist()):
            objects, features = self._answers_of(relation)
            answers[slot, objects] = features
        met = [self._meetings_of(subject) for subject in subjects.tolist()]
        led_to = [self._paths_of(subject) for subject in subjects.tolist()]
        parts = [self._row(*query) for query in zip(subjects.tolist(), relations.tolist(), met, strict=True)]
        return Counts(
            entities=self._entities,
            relations=distinct,
            answers=answers,
            subjects=subjects,
            relation_of=relation_of,
            rows=np.stack([row for row, _ in parts]),
            query=np.repeat(np.arange(len(met)), [len(found.objects) for found in met]),
            objects=np.concatenate([found.objects for found in met]),
            meetings=np.concatenate([features for _, features in parts]),
            last_relations=np.concatenate([found.last_relations for found in met]),
            path_objects=np.stack([found.objects for found in led_to]),
            path_features=np.stack([found.features for found in led_to]),
        )

    @cached_property
    def _entities(self) -> np.ndarray:
        facts, size = self.facts.quadruples, self.facts.num_entities
        places = np.concatenate([facts[:, 2], facts[:, 0] + size])
        found, features = self._occurred(places, np.tile(facts[:, 3], 2), 2 * size)
        own = np.zeros((2 * size, features.shape[1]), np.float32)
        own[found] = features
        as_object, as_subject = own.reshape(2, size, -1)
        pairs = [as_object, as_subject], [as_subject, as_object]
        return np.stack([np.concatenate(pair, axis=1) for pair in pairs])

    def _answers_of(self, relation: int) -> tuple[np.ndarray, np.ndarray]:
        """Objects seen with a relation, and features of each pair."""
        if relation not in self._answers:
            facts = self.facts.by_relation[relation]
            self._answers[relation] = self._occurred(facts[:, 2], facts[:, 3], self.facts.num_entities)
        return self._answers[relation]

    def _meetings_of(self, subject: int) -> Meetings:
        if subject not in self._meetings:
            size, num_relations = self.facts.num_entities, 2 * self.facts.num_relations
            _, relation, object_, time = self.facts.by_subject[subject].T
            is_inverse = relation >= self.facts.num_relations
            places, found = self._occurred(object_ + size * is_inverse, time, 2 * size)
            latest = np.full(size, np.iinfo(np.int64).min)
            np.maximum.at(latest, object_, time.astype(np.int64) * num_relations + relation)
            objects = np.unique(places % size)
            features = np.zeros((2, len(objects), found.shape[1]), np.float32)
            features[places // size, np.searchsorted(objects, places % size)] = found
            self._meetings[subject] = Meetings(objects, latest[objects] % num_relations, features)
        return self._meetings[subject]

    def _paths_of(self, subject: int) -> Paths:
        """As :mod:`geopol_tkg.data.paths` defines them."""
        if subject not in self._paths:
            size, half_lives = self.facts.num_entities, self._half_lives
            found = Paths(np.full(self._num_paths, size), np.zeros((self._num_paths, len(half_lives) + 1), np.float32))
            if self._num_paths:
                first, second, counts, unit = self._edges
                own = first == subject
                sums = np.zeros((len(counts), size))
                for number, own_counts in enumerate(counts[:, own]):
                    similar = np.bincount(first, unit * np.bincount(second[own], own_counts, size)[second], size)
                    sums[number] = np.bincount(second, unit * similar[first], size)
                total = sums.sum(axis=0)
                total[subject] = total[second[own]] = 0
                objects = np.lexsort((np.arange(size), -total.astype(np.float32)))[: self._num_paths]
                objects = objects[total[objects] > 0]
                found.objects[: len(objects)] = objects
                found.features[: len(objects)] = np.log1p(SCALE * sums[:, objects]).T
            self._paths[subject] = found
        return self._paths[subject]

    @cached_property
    def _edges(self) -> _Edges:
        facts, size = self.facts.quadruples, self.facts.num_entities
        facts = facts[facts[:, 0] != facts[:, 2]].astype(np.int64)
        pairs, which = np.unique(np.sort(facts[:, [0, 2]], axis=1) @ [size, 1], return_inverse=True)
        ages = self.time - facts[:, 3]
        rates = [*(1 / life for life in self._half_lives), 0]
        counts = np.stack([np.bincount(which, np.exp2(-ages * rate), len(pairs)) for rate in rates])
        low, high = np.divmod(pairs, size)
        first, second = np.concatenate([low, high]), np.concatenate([high, low])
        values = np.tile(np.log1p(counts[-1]), 2)
        norms = np.sqrt(np.bincount(second, values**2, size))
        return _Edges(first, second, np.tile(counts, 2), values / norms[second])

    def _row(self, subject: int, relation: int, met: Meetings) -> tuple[np.ndarray, np.ndarray]:
        """Features of ``(s, r)`` [f], and of meetings under it [m, 3f]."""
        facts = self.facts.by_subject[subject]
        facts = facts[facts[:, 1] == relation]
        objects, found = self._occurred(facts[:, 2], facts[:, 3], self.facts.num_entities)
        repeats = np.zeros(met.features.shape[1:], np.float32)
        repeats[np.searchsorted(met.objects, objects)] = found
        row = np.zeros(found.shape[1], np.float32)
        if len(facts):
            row = self._occurred(np.zeros_like(facts[:, 3]), facts[:, 3], 1)[1][0]
        forward = 1 if relation < self.facts.num_relations else -1
        return row, np.concatenate([repeats, *met.features[::forward]], axis=1)

    def _occurred(self, places: np.ndarray, times: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of ``size`` places are among those of p occurrences: int64 [m]; features of each, float32 [m, f]."""
        plain = np.bincount(places, minlength=size)
        found = np.flatnonzero(plain)
        ages = (self.time - times).astype(np.float64)
        counts = [np.bincount(places, np.exp2(-ages / life), minlength=size)[found] for life in self._half_lives]
        last = np.full(size, np.iinfo(np.int32).min)
        np.maximum.at(last, places, times)
        features = [np.log1p(SCALE * np.stack([*counts, plain[found]])), np.log1p([self.time - last[found]])]
        return found, np.concatenate(features).T.astype(np.float32)
