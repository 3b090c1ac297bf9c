"""What the past says of the candidates of a query: habit, relationship, popularity, or nothing.

No network is taken apart here: facts that it could see are counted, whatever it made of them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from geopol_tkg.data.cameo_words import relation_meaning
from geopol_tkg.data.countries import Countries
from geopol_tkg.data.dataset import Dataset

Basis = Literal["habit", "relationship", "popularity", "none"]
_LAST_FACTS = 3


@dataclass(frozen=True)
class Tally:
    """Facts by candidate.

    Attributes:
        count: int64 [n].
        last: int64 [n], time index of the last one; 0 means nothing where there is none.
    """

    count: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, facts: np.ndarray, column: int, num_entities: int) -> "Tally":
        """Count facts [f, 4], ascending in time, by the entity in a column."""
        last = np.zeros(num_entities, np.int64)
        last[facts[:, column]] = facts[:, 3]  # of equal indices the last value stays
        return cls(np.bincount(facts[:, column], minlength=num_entities), last)


class Past:
    """The facts before a time, seen from one query.

    Attributes:
        fact: facts with the query's entity, relation and candidate.
        forward, backward: facts of any relation between the two, in the direction of the query and against it.
        answer: facts of the query's relation with the candidate as answer, whoever the other is.
    """

    def __init__(
        self,
        dataset: Dataset,
        entity: int,
        relation: int,
        *,
        direction: Literal["object", "subject"],
        time: int,
        countries: Countries | None = None,
        led_to: np.ndarray | None = None,
    ) -> None:
        """The past of a time index; countries that the model tells apart, entities to which it has followed paths."""
        facts = dataset.facts[: np.searchsorted(dataset.facts[:, 3], time)]
        given, asked = (0, 2) if direction == "object" else (2, 0)
        forward, backward = facts[facts[:, given] == entity], facts[facts[:, asked] == entity]
        of_relation = facts[facts[:, 1] == relation]
        self._dataset = dataset
        self._countries = countries
        self._entity = entity
        self._led_to = set() if led_to is None else set(led_to.tolist())
        self._facts = facts
        self._num_answers = len(of_relation)
        self.forward = Tally.of(forward, asked, dataset.num_entities)
        self.backward = Tally.of(backward, given, dataset.num_entities)
        self.fact = Tally.of(forward[forward[:, 1] == relation], asked, dataset.num_entities)
        self.answer = Tally.of(of_relation, asked, dataset.num_entities)
        between = facts[(facts[:, given] == entity) | (facts[:, asked] == entity)]
        other = np.where(between[:, given] == entity, between[:, asked], between[:, given])
        order = np.argsort(other, kind="stable")
        self._between, self._others = between[order], other[order]

    def last_seen(self, candidate: int) -> str | None:
        """When the fact itself was last true; None if never."""
        return self._described(self.fact, candidate)["last_seen"]

    def explanation(self, candidate: int) -> dict[str, Any]:
        """The part ``explanation`` of ``predict --explain --json``."""
        share = self.answer.count[candidate] / self._num_answers if self._num_answers else None
        return {
            "basis": self._basis(candidate),
            "fact": self._described(self.fact, candidate),
            "forward": self._described(self.forward, candidate),
            "backward": self._described(self.backward, candidate),
            "answer": {
                **self._described(self.answer, candidate),
                "share": None if share is None else float(share),
                "num_facts": self._num_answers,
            },
            "country": self._shared_country(candidate),
            "path": self._path(candidate),
            "last_facts": self._last_facts(candidate),
        }

    def _basis(self, candidate: int) -> Basis:
        if self.fact.count[candidate]:
            return "habit"
        if self.forward.count[candidate] or self.backward.count[candidate]:
            return "relationship"
        return "popularity" if self.answer.count[candidate] else "none"

    def _shared_country(self, candidate: int) -> str | None:
        if self._countries is None:
            return None
        own, other = self._countries.of_entity[[self._entity, candidate]]
        return self._countries.names[own] if own >= 0 and own == other else None

    def _path(self, candidate: int) -> dict[str, Any] | None:
        """Which of those that the query's entity has met most of the candidate's have met; None without a path."""
        if candidate not in self._led_to:
            return None
        first, second = self._meetings.T
        reached = np.bincount(second[np.isin(first, second[first == candidate])], minlength=self._dataset.num_entities)
        met = second[first == self._entity]
        most = met[reached[met].argmax()]
        return {"through": self._dataset.entities[most], "count": int(reached[most])}

    @cached_property
    def _meetings(self) -> np.ndarray:
        """Who has met whom, in both directions: int32 [m, 2]."""
        ends = self._facts[self._facts[:, 0] != self._facts[:, 2]][:, [0, 2]]
        return np.unique(np.concatenate([ends, ends[:, ::-1]]), axis=0)

    def _described(self, tally: Tally, candidate: int) -> dict[str, Any]:
        count = int(tally.count[candidate])
        return {"count": count, "last_seen": self._label(tally.last[candidate]) if count else None}

    def _last_facts(self, candidate: int) -> list[dict[str, Any]]:
        """The last facts of any relation and direction with the candidate, newest first."""
        start, end = np.searchsorted(self._others, [candidate, candidate + 1])
        return [self._fact(row) for row in self._between[max(start, end - _LAST_FACTS) : end][::-1].tolist()]

    def _fact(self, row: list[int]) -> dict[str, Any]:
        subject, relation, object_, time = row
        label = self._dataset.relations[relation]
        return {
            "subject": self._dataset.entities[subject],
            "relation": label,
            "meaning": relation_meaning(self._dataset.relation_kind, label),
            "object": self._dataset.entities[object_],
            "time": self._label(time),
        }

    def _label(self, time: int) -> str:
        return self._dataset.time_axis.label(int(time))
