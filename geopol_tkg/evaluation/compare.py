"""Is one model better than another? Paired over the same queries, resampled by timestamp.

Queries of one timestamp share their events, so timestamps, not queries, are what varies independently.
"""

import numpy as np
from scipy import stats

from geopol_tkg.errors import DataError
from geopol_tkg.evaluation.results import Ranks

FEW_TIMESTAMPS = 20  # fewer say little about how a difference varies


def paired_difference(
    first: Ranks, last: Ranks, *, seed: int = 0, resamples: int = 2000
) -> dict[str, float | int | None]:
    """MRR of the first minus MRR of the last, with its uncertainty.

    Returns:
        ``delta``; ``delta_pct``, in percent of the last's MRR; ``ci_low`` and ``ci_high``, the 95 %
        bootstrap interval of delta (None with a single timestamp, which says nothing about spread);
        ``p_value`` of the sign-flip test; ``num_queries`` and ``num_timestamps``.

    Raises:
        DataError: the ranks are not of the same queries.
    """
    _require_same_queries(first, last)
    gains = 1 / first.rank - 1 / last.rank
    _, timestamp = np.unique(first.time, return_inverse=True)
    sums, counts = np.bincount(timestamp, gains), np.bincount(timestamp)
    delta = float(gains.mean())
    low, high = _interval(sums, counts, seed=seed, resamples=resamples)
    return {
        "delta": delta,
        "delta_pct": 100 * delta / float((1 / last.rank).mean()),
        "ci_low": low,
        "ci_high": high,
        "p_value": _p_value(sums, seed=seed, resamples=resamples),
        "num_queries": len(gains),
        "num_timestamps": len(sums),
    }


def gate(delta_pct: float, threshold: float) -> bool:
    """Whether a difference in percent passes: it is the threshold or more."""
    return delta_pct >= threshold


def _require_same_queries(first: Ranks, last: Ranks) -> None:
    for name in ("subject", "relation", "object", "time"):
        if not np.array_equal(getattr(first, name), getattr(last, name)):
            raise DataError(
                f"the models were ranked on different queries ({len(first.rank)} and {len(last.rank)}, "
                f"{name} differs): evaluate both on the same dataset and split"
            )


def _interval(sums: np.ndarray, counts: np.ndarray, *, seed: int, resamples: int) -> tuple[float | None, float | None]:
    if len(sums) == 1:
        return None, None
    interval = stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        batch=_batch(sums),
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _p_value(sums: np.ndarray, *, seed: int, resamples: int) -> float:
    """Two-sided, exact where all sign flips fit into the resamples; 1 with a single timestamp."""
    if len(sums) == 1:
        return 1.0
    test = stats.permutation_test(
        (sums,),
        lambda sums, axis: sums.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=_batch(sums),
        random_state=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _batch(sums: np.ndarray) -> int:
    """Resamples at once: some ten megabytes."""
    return max(1, 1_000_000 // len(sums))
