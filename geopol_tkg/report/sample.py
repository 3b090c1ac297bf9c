"""What a model answers to a sample of queries."""

from collections.abc import Iterator

import numpy as np

from geopol_tkg.evaluation.results import Ranks
from geopol_tkg.forecasts import probabilities
from geopol_tkg.models.base import Forecaster

ANSWERS = 3
_BLOCK = 256


def draw(ranks: Ranks, size: int, *, seed: int) -> np.ndarray:
    """Row numbers of a random sample of queries, ascending: int64 [q]; all of them where there are no more."""
    total = len(ranks.rank)
    return np.sort(np.random.default_rng(seed).choice(total, min(size, total), replace=False))


def first_answers(
    forecaster: Forecaster, ranks: Ranks, rows: np.ndarray, *, temperature: float | None
) -> list[list[tuple[int, float]]]:
    """The first candidates of each query; none where all candidates are alike.

    Args:
        rows: ascending row numbers [q].
        temperature: of a forecaster whose scores are log-probabilities.

    Returns:
        For each query its candidates with their probabilities, without a temperature with their scores.
    """
    found = []
    for _, scores in _asked(forecaster, ranks, rows):
        order = np.argsort(-scores, axis=1, kind="stable")[:, :ANSWERS]
        values = scores if temperature is None else probabilities(scores, temperature)
        for row, best in zip(values, order, strict=True):
            found.append([] if np.ptp(row) == 0 else [(int(i), float(row[i])) for i in best])
    return found


def _asked(forecaster: Forecaster, ranks: Ranks, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of ascending row numbers [b] with the scores of their candidates, float64 [b, n]."""
    times, starts = np.unique(ranks.time[rows], return_index=True)
    for time, part in zip(times.tolist(), np.split(rows, starts[1:]), strict=True):
        score = forecaster.at(time)
        for start in range(0, len(part), _BLOCK):
            block = part[start : start + _BLOCK]
            padded = np.resize(block, _BLOCK)
            scores = np.asarray(score(ranks.subject[padded], ranks.relation[padded]))
            yield block, scores[: len(block)].astype(np.float64)
