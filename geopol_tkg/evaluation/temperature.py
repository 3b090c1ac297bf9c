"""Temperature scaling: one number, fitted on valid, against probabilities that are too sure or too shy.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Log-probabilities are divided by the
temperature and normalised anew, which keeps their order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from geopol_tkg.config import SplitName
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.errors import DataError
from geopol_tkg.evaluation.evaluator import Interrupted, default_block_size
from geopol_tkg.evaluation.queries import query_blocks, timestamps
from geopol_tkg.models.base import Forecaster

LOWEST, HIGHEST = 0.01, 100.0
_SPLIT: SplitName = "valid"
_MOST_QUERIES, _MOST_SCORES = 8192, 2**27
_IMPOSSIBLE = np.float32(-1e9)  # for -inf: finite, since its exponential times it must be 0
_STEPS, _FLAT = 60, 1e-7  # of the derivative, in nats
_BLOCK = 128


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature, and the mean negative log-likelihood of the queries it was fitted on."""

    value: float
    split: SplitName
    num_queries: int
    nll_before: float
    nll_after: float


def fit_temperature(
    forecaster: Forecaster,
    dataset: Dataset,
    *,
    seed: int = 0,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Temperature:
    """Fit on valid, single-step, both directions, over all entities; on a random sample where there is much.

    Args:
        forecaster: its scores are log-probabilities.
        should_stop: asked before each block of queries.
        progress: called with the queries done and their total.

    Raises:
        DataError: the split is empty, or the forecaster gives every answer the probability 0.
        Interrupted: ``should_stop`` said so.
    """
    total = 2 * len(dataset.facts_of(_SPLIT))
    size = min(total, _MOST_QUERIES, max(1, _MOST_SCORES // dataset.num_entities))
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).choice(total, size, replace=False)] = True
    scores, targets = _ask(forecaster, dataset, chosen, should_stop=should_stop, progress=progress)
    possible = scores[np.arange(size), targets] > _IMPOSSIBLE
    if not possible.any():
        raise DataError(f"no answer of the {_SPLIT} split has a probability above 0: there is no temperature to fit")
    if not possible.all():
        scores, targets = scores[possible], targets[possible]
    value, nll_before, nll_after = minimise_nll(scores, targets)
    return Temperature(value, _SPLIT, len(targets), nll_before, nll_after)


def _ask(
    forecaster: Forecaster,
    dataset: Dataset,
    chosen: np.ndarray,
    *,
    should_stop: Callable[[], bool] | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 [c, n], all finite, and targets [c] of the chosen of all queries."""
    facts = dataset.facts_of(_SPLIT)
    block_size = default_block_size(dataset.num_entities)
    scores = np.empty((int(chosen.sum()), dataset.num_entities), np.float32)
    targets = np.empty(len(scores), np.int64)
    passed = done = 0
    for time, queries in timestamps(facts, dataset.num_relations):
        asked = queries[chosen[passed : passed + len(queries)]]
        passed += len(queries)
        if not len(asked):
            continue
        score = forecaster.at(time)
        for block in query_blocks(asked, block_size):
            if should_stop is not None and should_stop():
                raise Interrupted
            part = slice(done, done + len(block.row))
            found = np.asarray(score(block.subjects, block.relations))
            np.maximum(found[block.row], _IMPOSSIBLE, out=scores[part])
            targets[part] = asked[block.place, 2]
            done += len(block.row)
        if progress is not None:
            progress(done, len(scores))
    return scores, targets


def minimise_nll(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
    """The temperature with the least mean negative log-likelihood of targets [q], and that before and after.

    The likelihood is log-concave in the inverse temperature: Newton's method, and bisection where it would leave
    the interval that is known to hold the optimum.

    Args:
        scores: float32 [q, n], finite log-probabilities or other logits.
    """
    inverse, low, high = 1.0, 1 / HIGHEST, 1 / LOWEST
    nll, slope, curvature = before = _derivatives(scores, targets, inverse)
    for _ in range(_STEPS):
        if abs(slope) < _FLAT:
            break
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / max(curvature, _FLAT)
        inverse = newton if low < newton < high else (low * high) ** 0.5
        nll, slope, curvature = _derivatives(scores, targets, inverse)
    return 1 / inverse, before[0], nll


def _derivatives(scores: np.ndarray, targets: np.ndarray, inverse: float) -> tuple[float, float, float]:
    """Mean negative log-likelihood, and its first and second derivative by the inverse temperature."""
    sums = np.zeros(3)
    for start in range(0, len(scores), _BLOCK):
        block = scores[start : start + _BLOCK].astype(np.float64)
        target = block[np.arange(len(block)), targets[start : start + _BLOCK]]
        scaled = inverse * block
        largest = scaled.max(axis=1)
        weight = np.exp(scaled - largest[:, None])
        total = weight.sum(axis=1)
        mean = np.einsum("qn,qn->q", weight, block) / total
        square = np.einsum("qn,qn,qn->q", weight, block, block) / total
        sums += [np.sum(part) for part in (largest + np.log(total) - inverse * target, mean - target, square - mean**2)]
    nll, slope, curvature = (sums / len(scores)).tolist()
    return nll, slope, curvature
