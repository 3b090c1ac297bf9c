"""From scores to ranks to metrics. Operators and methods only: NumPy and traced JAX arrays alike."""

from typing import Any

import numpy as np

METRICS = ("mrr", "hits_at_1", "hits_at_3", "hits_at_10", "mean_rank")


def rank_counts(scores: Any, targets: Any, excluded: Any) -> tuple[Any, Any]:
    """How many other candidates score above, and equal to, the target: two int arrays [b].

    Args:
        scores: [b, n], higher is better, no NaN.
        targets: int [b].
        excluded: bool [b, n], candidates that are filtered out; never the target.
    """
    wanted = target_scores(scores, targets)[:, None]
    greater = ((scores > wanted) & ~excluded).sum(axis=1)
    equal = ((scores == wanted) & ~excluded).sum(axis=1) - 1
    return greater, equal


def target_scores(scores: Any, targets: Any) -> Any:
    """Each row's score at its target: [b]."""
    return scores[np.arange(scores.shape[0]), targets]


def ranks(greater: Any, equal: Any) -> Any:
    """Ranks from 1, among candidates above and other candidates equal to the target.

    The mean of the optimistic rank, which puts the target first among its equals, and the pessimistic one.
    """
    return 1 + greater + 0.5 * equal


def metrics(ranks: np.ndarray) -> dict[str, float | None]:
    """MRR, Hits@K and mean rank of ranks [q]; None for each when there are none."""
    if not len(ranks):
        return dict.fromkeys(METRICS)
    hits = {f"hits_at_{k}": float((ranks <= k).mean()) for k in (1, 3, 10)}
    return {"mrr": float((1 / ranks).mean()), **hits, "mean_rank": float(ranks.mean())}


def overlap_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Which of the models measured have learned from times of the split."""
    learned = [row["name"] for row in rows if row.get("overlaps_training")]
    return [f"{name} was trained on times of this split: its figures are no forecasts" for name in learned]


def format_metric(value: float | None) -> str:
    """Four digits; a dash where a stratum has no queries."""
    if value is None:
        return "–"
    return f"{value:.4f}" if value <= 1 else f"{value:.1f}"
