"""What a model answers to a sample of queries: its calibration, and its first answers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from geopol_tkg.evaluation.results import Ranks
from geopol_tkg.models.base import Forecaster

SAMPLE_SIZE = 4096
ANSWERS = 3
FEWEST = 50  # candidates in a bin that is shown
_OCTAVES = 16  # bins of a candidate's probability, each half of the one above
_CONFIDENCE_BINS = 10
_BLOCK = 256


@dataclass(frozen=True)
class Calibration:
    """How far a model's probabilities are what happens.

    A candidate's probability is that of being the entity of a fact drawn from its timestamp, given the
    fact's other parts; no candidate is filtered out. Candidates are binned by octaves of probability.

    Attributes:
        predicted, observed: float64 [c], mean probability and share of hits of the candidates in a bin.
        count: int64 [c], candidates in a bin; bins with fewer than :data:`FEWEST` are left out.
        error: expected calibration error of first answers: mean distance of probability and share of hits
            over ten bins of equal width, weighted by queries. None without queries.
        num_queries: asked about; num_unknown: besides, with a subject or relation unknown to the model.
    """

    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray
    error: float | None
    num_queries: int
    num_unknown: int


def draw(ranks: Ranks, size: int, *, seed: int) -> np.ndarray:
    """Row numbers of a random sample of queries, ascending: int64 [q]; all of them where there are no more."""
    total = len(ranks.rank)
    return np.sort(np.random.default_rng(seed).choice(total, min(size, total), replace=False))


def calibration(forecaster: Forecaster, ranks: Ranks, rows: np.ndarray) -> Calibration:
    """Measure the probabilities of a forecaster whose scores are their logarithms."""
    sums = np.zeros((3, _OCTAVES))
    first: list[np.ndarray] = []
    for chosen, scores in _asked(forecaster, ranks, rows):
        is_known = are_log_probabilities(scores)
        probability, target = np.exp(scores[is_known]), ranks.object[chosen][is_known]
        sums += _octave_sums(probability, target)
        best = probability.argmax(axis=1)
        first.append(np.stack([probability.max(axis=1), best == target]))
    confidence, is_hit = np.concatenate(first, axis=1)
    count, predicted, observed = sums[:, sums[0] >= FEWEST]
    return Calibration(
        predicted=predicted / count,
        observed=observed / count,
        count=count.astype(np.int64),
        error=calibration_error(confidence, is_hit) if len(confidence) else None,
        num_queries=len(confidence),
        num_unknown=len(rows) - len(confidence),
    )


def calibration_error(confidence: np.ndarray, is_hit: np.ndarray) -> float:
    """Distance of confidence [q] and share of hits [q] in bins of equal width, weighted by queries."""
    bins = np.minimum((confidence * _CONFIDENCE_BINS).astype(int), _CONFIDENCE_BINS - 1)
    return float(np.abs(np.bincount(bins, confidence - is_hit)).sum() / len(confidence))


def first_answers(forecaster: Forecaster, ranks: Ranks, rows: np.ndarray) -> list[list[tuple[int, float]]]:
    """The first candidates of each query with their scores; none where all candidates are alike."""
    found = []
    for _, scores in _asked(forecaster, ranks, rows):
        order = np.argsort(-scores, axis=1, kind="stable")[:, :ANSWERS]
        for row, best in zip(scores, order, strict=True):
            found.append([] if np.ptp(row) == 0 else [(int(i), float(row[i])) for i in best])
    return found


def are_log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Whether each row of scores [b, n] sums to one as probabilities: bool [b]; others know nothing."""
    return np.abs(np.exp(scores).sum(axis=1) - 1) < 1e-3


def _octave_sums(probability: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Number, summed probability and hits of the candidates [b, n] in each octave: float64 [3, octaves]."""
    with np.errstate(divide="ignore"):
        octave = np.clip(np.floor(-np.log2(probability)), 0, _OCTAVES).astype(int)
    shape = {"minlength": _OCTAVES + 1}
    hits = octave[np.arange(len(target)), target]
    octave = octave.ravel()
    sums = [np.bincount(octave, **shape), np.bincount(octave, probability.ravel(), **shape), np.bincount(hits, **shape)]
    return np.stack(sums)[:, :_OCTAVES]


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
