"""Whether a model's probabilities are what happens.

Expected calibration error and reliability curve are those of Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15  # of equal width
_SUMS_TO_ONE = 1e-3


@dataclass(frozen=True)
class Probabilities:
    """What a network makes of queries; over all entities, none filtered out.

    Attributes:
        temperature: divides the log-probabilities, which are then normalised anew.
        first, target: float64 [q], log-probability of the first candidate and of the target, undivided.
        log_sum, scaled_log_sum: float64 [q], logarithm of the sum of all candidates' exponentials,
            undivided and divided.
        is_hit: bool [q], the first candidate is the target.
    """

    temperature: float
    first: np.ndarray
    target: np.ndarray
    log_sum: np.ndarray
    scaled_log_sum: np.ndarray
    is_hit: np.ndarray

    @classmethod
    def of(cls, temperature: float, target: np.ndarray, asked: np.ndarray) -> "Probabilities":
        """From log-probabilities of targets [q] and what :func:`first_candidates` found [4, q], hits in row 0."""
        is_hit, first, log_sum, scaled_log_sum = asked
        return cls(temperature, first, target, log_sum, scaled_log_sum, is_hit.astype(bool))

    @property
    def is_known(self) -> np.ndarray:
        """Whether the network knows subject and relation; else its scores are all 0, no probabilities: bool [q].

        The sum is below 1 where the network knows entities that are not in the dataset.
        """
        return self.log_sum < _SUMS_TO_ONE

    def of_targets(self) -> np.ndarray:
        """Probability of each target, NaN where the network knows nothing of the query: float64 [q]."""
        return np.where(self.is_known, np.exp(self.target / self.temperature - self.scaled_log_sum), np.nan)

    def calibration(self) -> dict[str, Any]:
        """The part ``calibration`` of ``eval --json``."""
        error, nll, bins = self._measured(self.temperature, self.scaled_log_sum)
        plain_error, plain_nll, _ = self._measured(1.0, self.log_sum)
        known = self.is_known
        return {
            "temperature": self.temperature,
            "ece": error,
            "nll": nll,
            "num_queries": int(known.sum()),
            "num_impossible": int(np.isneginf(self.target[known]).sum()),
            "bins": bins,
            "uncalibrated": {"ece": plain_error, "nll": plain_nll},
        }

    def _measured(
        self, temperature: float, log_sum: np.ndarray
    ) -> tuple[float | None, float | None, list[dict[str, Any]]]:
        known = self.is_known
        bins = reliability_bins(np.exp(self.first / temperature - log_sum)[known], self.is_hit[known])
        nll = (log_sum - self.target / temperature)[known & np.isfinite(self.target)]
        return calibration_error(bins), float(nll.mean()) if len(nll) else None, bins


def first_candidates(scores: Any, temperature: Any) -> tuple[Any, Any, Any, Any]:
    """The first candidate of each query, its score, and log-sums of scores and scaled scores: four [b].

    Args:
        scores: [b, n] of NumPy or JAX, log-probabilities.
    """
    xp, size = scores.__array_namespace__(), scores.shape[1]
    best = scores.max(axis=1)
    first = xp.where(scores == best[:, None], xp.arange(size), size).min(axis=1)  # XLA's argmax takes twice as long
    return first, best, _log_sum(scores, best), _log_sum(scores / temperature, best / temperature)


def _log_sum(scores: Any, largest: Any) -> Any:
    xp = scores.__array_namespace__()
    return largest + xp.log(xp.exp(scores - largest[:, None]).sum(axis=1))


def reliability_bins(confidence: np.ndarray, is_hit: np.ndarray) -> list[dict[str, Any]]:
    """The reliability curve of first answers, with their probability [q] and whether they are the targets [q].

    Returns:
        ``low``, ``high``, ``count``, and means ``confidence`` and ``accuracy`` (None without queries) of each bin;
        a confidence of ``low`` belongs to a bin, one of ``high`` to the next, 1 to the last.
    """
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, minlength=BINS) / count for values in (confidence, is_hit)]
    return [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "count": int(count[i]),
            "confidence": float(means[0][i]) if count[i] else None,
            "accuracy": float(means[1][i]) if count[i] else None,
        }
        for i in range(BINS)
    ]


def calibration_error(bins: list[dict[str, Any]]) -> float | None:
    """Mean distance of confidence and accuracy in bins, weighted by queries; None without queries."""
    filled = [part for part in bins if part["count"]]
    total = sum(part["count"] for part in filled)
    return sum(part["count"] * abs(part["confidence"] - part["accuracy"]) for part in filled) / total if total else None
