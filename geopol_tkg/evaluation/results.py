"""What an evaluation found: a row for each query, and the metrics over them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from geopol_tkg.data.dataset import Dataset, with_inverses
from geopol_tkg.evaluation.calibration import Probabilities
from geopol_tkg.evaluation.ranking import metrics


@dataclass(frozen=True)
class Ranks:
    """Ranked queries ``(s, r, ?, t)``, in time order; within a timestamp first objects, then subjects.

    Attributes:
        subject, relation, object, time: int32 [q]; a relation from R on is an inverse, and its query
            asks for the subject of the fact ``(object, relation - R, subject)``.
        rank: float64 [q], realistic.
        score: float64 [q], of the target.
        num_candidates: int32 [q], after the filter, with the target.
        seen_before: bool [q], the fact was true at an earlier time that the forecaster could see.
        unseen_entity: bool [q], its subject or object is unknown to the forecaster.
        num_relations: R, without inverses.
        probabilities: None where they were not asked for, or there are none (baselines).
    """

    subject: np.ndarray
    relation: np.ndarray
    object: np.ndarray
    time: np.ndarray
    rank: np.ndarray
    score: np.ndarray
    num_candidates: np.ndarray
    seen_before: np.ndarray
    unseen_entity: np.ndarray
    num_relations: int
    probabilities: Probabilities | None = None

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        facts: np.ndarray,
        counted: np.ndarray,
        *,
        horizon: int | None,
        known: np.ndarray | None,
        probabilities: Probabilities | None = None,
    ) -> "Ranks":
        """From the facts [f, 4] and rank, target score and number of excluded candidates [3, 2f]."""
        order = np.argsort(np.tile(facts[:, 3], 2), kind="stable")
        subject, relation, object_, time = with_inverses(facts, dataset.num_relations)[order].T
        known = _train_entities(dataset) if known is None else known
        rank, score, excluded = counted
        return cls(
            *(subject, relation, object_, time, rank, score),
            num_candidates=(dataset.num_entities - excluded).astype(np.int32),
            seen_before=np.tile(_seen_before(dataset, facts, horizon), 2)[order],
            unseen_entity=~(known[subject] & known[object_]),
            num_relations=dataset.num_relations,
            probabilities=probabilities,
        )

    @property
    def asks_object(self) -> np.ndarray:
        """Whether a query asks for the object, not the subject, of its fact: bool [q]."""
        return self.relation < self.num_relations

    def metrics(self) -> dict[str, Any]:
        """Metrics over all queries, by direction and by stratum, as ``eval --json`` has them."""
        strata = {
            "seen": self.seen_before,
            "unseen": ~self.seen_before,
            "unseen_entity": self.unseen_entity,
        }
        return {
            **self._over(np.ones(len(self.rank), bool)),
            "object": self._over(self.asks_object),
            "subject": self._over(~self.asks_object),
            "strata": {name: self._over(chosen) for name, chosen in strata.items()},
        }

    def _over(self, chosen: np.ndarray) -> dict[str, Any]:
        return {"num_queries": int(chosen.sum()), **metrics(self.rank[chosen])}

    def to_table(self) -> pa.Table:
        """A row for each query; ``subject, relation, object`` are the fact's, ``direction`` what is asked."""
        forward = self.asks_object
        columns = {
            "subject": np.where(forward, self.subject, self.object),
            "relation": np.where(forward, self.relation, self.relation - self.num_relations),
            "object": np.where(forward, self.object, self.subject),
            "time": self.time,
            "direction": np.where(forward, "object", "subject"),
            "rank": self.rank,
            "score": self.score,
            "num_candidates": self.num_candidates,
            "seen_before": self.seen_before,
            "probability": self._probability(),
        }
        return pa.table(columns)

    def _probability(self) -> pa.Array:
        """Of each target; null where there is none."""
        if self.probabilities is None:
            return pa.nulls(len(self.rank), pa.float64())
        return pa.array(self.probabilities.of_targets(), from_pandas=True)


def _train_entities(dataset: Dataset) -> np.ndarray:
    """Entities that train facts name: bool [n]."""
    known = np.zeros(dataset.num_entities, bool)
    known[dataset.facts_of("train")[:, [0, 2]]] = True
    return known


def _seen_before(dataset: Dataset, facts: np.ndarray, horizon: int | None) -> np.ndarray:
    """Whether the ``(s, r, o)`` of each fact [f, 4] was true before its time and the horizon: bool [f]."""

    def identity(facts: np.ndarray) -> np.ndarray:
        subject, relation, object_, _ = facts.astype(np.int64).T
        return (subject * dataset.num_relations + relation) * dataset.num_entities + object_

    known, first = np.unique(identity(dataset.facts), return_index=True)
    first_time = dataset.facts[first, 3][np.searchsorted(known, identity(facts))]
    return first_time < (facts[:, 3] if horizon is None else np.minimum(facts[:, 3], horizon))
