"""How far a predictor's forecasts of a whole split are from those of another implementation."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from geopol_tkg.torch.facts import KnownFacts, snapshots_kept
from geopol_tkg.torch.predictor import TKGPredictor

if TYPE_CHECKING:
    from geopol_tkg.evaluation.results import Ranks
    from geopol_tkg.models.base import Forecaster, ScoreFunction

_BLOCK = 256
_MRR_DIGITS = 4


class Compared:
    """A predictor as a forecaster that walks through time; notes how far it is from a reference.

    Attributes:
        max_relative_difference: of the scores so far, relative to the reference's or to 1 where that is larger.
    """

    def __init__(self, predictor: TKGPredictor, reference: "Forecaster", facts: np.ndarray) -> None:
        """Facts [f, 4], sorted by time; the predictor is left with those that it has walked through."""
        self.name = "PyTorch"
        self.horizon: int | None = None
        self.max_relative_difference = 0.0
        self._predictor, self._reference, self._facts = predictor, reference, facts
        predictor.facts = self._known_before(int(facts[0, 3]))

    def at(self, time: int) -> "ScoreFunction":
        """The predictor's scores, after an update with the facts before ``time``."""
        predictor, since = self._predictor, self._predictor.time_index
        if time < since:
            predictor.facts = self._known_before(time)
        start, end = np.searchsorted(self._facts[:, 3], [since, time])
        predictor.update(self._facts[start:end])
        predictor.facts = replace(predictor.facts, time_index=time)
        return lambda subjects, relations: self._score(time, subjects, relations)

    def _score(self, time: int, subjects: np.ndarray, relations: np.ndarray) -> np.ndarray:
        found = self._predictor.log_probabilities(subjects, relations)
        wanted = np.asarray(self._reference.at(time)(subjects, relations))
        difference = np.abs(found - wanted) / np.maximum(np.abs(wanted), 1)
        self.max_relative_difference = max(self.max_relative_difference, float(difference.max()))
        return found

    def _known_before(self, time: int) -> KnownFacts:
        config = self._predictor.config
        return KnownFacts.build(
            self._facts[self._facts[:, 3] < time],
            num_entities=config.num_entities,
            num_relations=config.num_relations,
            history_length=snapshots_kept(config),
            time_index=time,
        )


def compare_split(
    predictor: TKGPredictor,
    reference: "Forecaster",
    facts: np.ndarray,
    *,
    rank: "Callable[[Forecaster], Ranks]",
    tolerance: float,
) -> dict[str, Any]:
    """Rank a split by both, and say how they differ.

    Args:
        facts: all facts [f, 4] of the dataset, sorted by time.
        rank: ranks the split with the time-aware filter.

    Returns:
        ``num_queries, max_relative_difference, rank_differences``, those of them ``beyond_ties`` (where no
        candidates within the tolerance of the target's score explain them), ``mrr, mrr_jax, passed``, and the
        predictor's ``metrics``.
    """
    compared = Compared(predictor, reference, facts)
    found, wanted = rank(compared), rank(reference)
    differing = np.flatnonzero(found.rank != wanted.rank)
    beyond = _beyond_ties(reference, facts, found, wanted, differing, tolerance, predictor.config.num_relations)
    metrics, difference = found.metrics(), compared.max_relative_difference
    mrr, mrr_jax = metrics["mrr"], wanted.metrics()["mrr"]
    same_mrr = abs(mrr - mrr_jax) < 0.5 * 10**-_MRR_DIGITS
    return {
        "num_queries": len(found.rank),
        "max_relative_difference": difference,
        "rank_differences": len(differing),
        "beyond_ties": beyond,
        "mrr": mrr,
        "mrr_jax": mrr_jax,
        "passed": difference <= tolerance and not beyond and same_mrr,
        "metrics": metrics,
    }


def _beyond_ties(
    reference: "Forecaster",
    facts: np.ndarray,
    found: "Ranks",
    wanted: "Ranks",
    differing: np.ndarray,
    tolerance: float,
    num_relations: int,
) -> int:
    """How many of the differing ranks lie outside what the reference's near ties with the target allow."""
    beyond = 0
    for time in np.unique(found.time[differing]).tolist():
        score, now = reference.at(time), facts[facts[:, 3] == time]
        rows = differing[found.time[differing] == time]
        for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
            padded = np.resize(block, _BLOCK)
            scores = np.asarray(score(found.subject[padded], found.relation[padded]))
            for row, candidates in zip(block.tolist(), scores, strict=False):
                others = _answers(now, found.subject[row], found.relation[row], num_relations)
                low, high = _allowed(candidates, int(found.object[row]), others, tolerance)
                beyond += not (low <= found.rank[row] <= high and low <= wanted.rank[row] <= high)
    return beyond


def _answers(now: np.ndarray, subject: int, relation: int, num_relations: int) -> np.ndarray:
    """True objects of a query among the facts [f, 4] of its time: [a]."""
    given, asked = (0, 2) if relation < num_relations else (2, 0)
    return now[(now[:, given] == subject) & (now[:, 1] == relation % num_relations), asked]


def _allowed(scores: np.ndarray, target: int, answers: np.ndarray, tolerance: float) -> tuple[int, int]:
    """First and last rank that the target can have when scores within the tolerance of its own change places."""
    margin = tolerance * max(abs(float(scores[target])), 1)
    candidate = np.ones(len(scores), bool)
    candidate[answers] = False
    above = int((candidate & (scores > scores[target] + margin)).sum())
    near = int((candidate & (np.abs(scores - scores[target]) <= margin)).sum())
    return 1 + above, 1 + above + near
