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


class PastCounts:
    """Counts as of a time. Those of a subject or a relation are kept once they were asked for."""

    def __init__(self, facts: KnownFacts, time: int, *, half_lives: tuple[float, ...]) -> None:
        """All the facts lie before the time; half-lives in steps."""
        self.facts, self.time = facts, time
        self._half_lives = half_lives
        self._answers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._meetings: dict[int, Meetings] = {}

    def of(self, subjects: np.ndarray, relations: np.ndarray) -> Counts:
        """Counts for queries int64 [b]; relations with inverses."""
        distinct, relation_of = np.unique(relations, return_inverse=True)
        answers = np.zeros((len(distinct), self.facts.num_entities, len(self._half_lives) + 2), np.float32)
        for slot, relation in enumerate(distinct.tolist()):
            objects, features = self._answers_of(relation)
            answers[slot, objects] = features
        met = [self._meetings_of(subject) for subject in subjects.tolist()]
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
