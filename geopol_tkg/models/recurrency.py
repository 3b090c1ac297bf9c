"""The untrained baselines: how often, and how lately, was this true before?

Recurrency is Gastinger et al., "History Repeats Itself: A Baseline for Temporal Knowledge Graph
Forecasting", IJCAI 2024: ``alpha * psi + (1 - alpha) * xi`` with psi the decayed share of steps at which
``(s, r, o)`` was true, and xi the share of ``o`` among the objects of ``r``.
"""

from dataclasses import replace

import numpy as np

from geopol_tkg.config import SplitName
from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.errors import UsageError
from geopol_tkg.models.base import Forecaster, ScoreFunction, visible
from geopol_tkg.models.past_counts import PastCounts
from geopol_tkg.models.recurrency_fit import fit_recurrency

BASELINES = ("recurrency", "recurrency:LAMBDA,ALPHA", "frequency")


class Recurrency:
    """Strict and relaxed recurrency, with (lambda, alpha) for all relations or one pair for each."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        lambdas: float | np.ndarray,
        alphas: float | np.ndarray,
        horizon: int | None = None,
        name: str = "recurrency",
    ) -> None:
        """``lambdas`` and ``alphas`` are numbers or [r2], inverses included."""
        self.name = name
        self.horizon = horizon
        self.alphas = _per_relation(alphas, dataset)
        self._past = _past_counts(dataset, _per_relation(lambdas, dataset))

    def at(self, time: int) -> ScoreFunction:
        """Scores float64 [b, n] from facts before ``min(time, horizon)``."""
        before = visible(time, self.horizon)
        past, alphas = self._past, self.alphas

        def score(subjects: np.ndarray, relations: np.ndarray) -> np.ndarray:
            past.move_to(before)
            scores = _relaxed_scores(past, relations, 1 - alphas)
            rows, triples = past.seen(_query_numbers(past, subjects, relations))
            scores[rows, past.objects[triples]] += alphas[past.relations[triples]] * past.strict(triples)
            return scores

        return score


class Frequency:
    """How often ``(s, r, o)`` was true; ties go to the object with the larger share in ``r``."""

    name = "frequency"

    def __init__(self, dataset: Dataset, *, horizon: int | None = None) -> None:
        self.horizon = horizon
        self._past = _past_counts(dataset, _per_relation(0.0, dataset))
        self._tie_breaker = _per_relation(0.5, dataset)

    def at(self, time: int) -> ScoreFunction:
        """Scores ``n + xi / 2``, float64 [b, n], from facts before ``min(time, horizon)``."""
        before = visible(time, self.horizon)
        past = self._past

        def score(subjects: np.ndarray, relations: np.ndarray) -> np.ndarray:
            past.move_to(before)
            scores = _relaxed_scores(past, relations, self._tie_breaker)
            rows, triples = past.seen(_query_numbers(past, subjects, relations))
            scores[rows, past.objects[triples]] += past.decayed(triples)
            return scores

        return score


def is_baseline(name: str) -> bool:
    """Whether a model's name means a baseline, not a checkpoint; its values may still be wrong."""
    return name.partition(":")[0] in ("recurrency", "frequency")


def baseline(name: str, dataset: Dataset, *, horizon: int | None = None, fit_on: Dataset | None = None) -> Forecaster:
    """Make a baseline by name; plain ``recurrency`` is fitted on the valid split of ``fit_on``.

    Args:
        fit_on: by default the dataset itself; :func:`before_split` to measure on another split than test.

    Raises:
        UsageError: no baseline has this name.
        DataError: there is nothing to fit ``recurrency`` on.
    """
    if name == "frequency":
        return Frequency(dataset, horizon=horizon)
    lambdas, alphas = fit_recurrency(fit_on or dataset) if name == "recurrency" else _parse_values(name)
    return Recurrency(dataset, lambdas=lambdas, alphas=alphas, horizon=horizon, name=name)


def before_split(dataset: Dataset, name: SplitName) -> Dataset:
    """The dataset split so that its valid part is as long as ``name``'s, and ends where that one begins.

    Raises:
        UsageError: there is no train part before it.
    """
    start, end = dataset.split.bounds(name)
    times = dataset.timestamps
    first = int(np.searchsorted(times, start))
    length = int(np.searchsorted(times, end)) - first
    if first - length < 1:
        raise UsageError(f"recurrency cannot be fitted before the {name} split; name its values: recurrency:0.02,0.999")
    return replace(dataset, split=Split(int(times[first - length]), int(times[first])))


def _parse_values(name: str) -> tuple[float, float]:
    kind, _, values = name.partition(":")
    try:
        lambda_, alpha = (float(value) for value in values.split(","))
    except ValueError as error:
        raise _unknown(name) from error
    if kind != "recurrency" or not (0 <= lambda_ < np.inf and 0 <= alpha <= 1):
        raise _unknown(name)
    return lambda_, alpha


def _unknown(name: str) -> UsageError:
    return UsageError(f"no baseline {name!r}; known: {', '.join(BASELINES)} (LAMBDA >= 0, ALPHA 0 to 1)")


def _per_relation(value: float | np.ndarray, dataset: Dataset) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, np.float64), (2 * dataset.num_relations,))


def _past_counts(dataset: Dataset, lambdas: np.ndarray) -> PastCounts:
    return PastCounts(
        dataset.facts,
        num_entities=dataset.num_entities,
        num_relations=dataset.num_relations,
        lambdas=lambdas[None],
    )


def _query_numbers(past: PastCounts, subjects: np.ndarray, relations: np.ndarray) -> np.ndarray:
    return np.asarray(subjects, np.int64) * 2 * past.num_relations + relations


def _relaxed_scores(past: PastCounts, relations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted relaxed recurrency of each query's relation: float64 [b, n]."""
    distinct, rows = np.unique(np.asarray(relations, np.int64), return_inverse=True)
    return (weights[distinct, None] * past.relaxed_rows(distinct))[rows]
