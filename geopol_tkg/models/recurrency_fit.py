"""Chooses lambda and alpha of the recurrency baseline for each relation on the valid split.

Ranks are those of the standard protocol (time-aware filter, realistic ties), found without a score of
every entity: an entity without history has the score ``(1 - alpha) * xi``, so the number of those above
a target comes from the relation's sorted counts by bisection, and only entities with history, and the
query's other answers, are looked at one by one. Scores are computed by the same expressions as in
:class:`geopol_tkg.models.recurrency.Recurrency`, so the ranks are equal to the last tie.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from geopol_tkg.data.dataset import Dataset
from geopol_tkg.errors import DataError
from geopol_tkg.models.past_counts import PastCounts, ranges

LAMBDAS = (0.0, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.5, 0.9, 1.0001)
ALPHAS = (0.0, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 1.0)
ALPHA_WHILE_FITTING_LAMBDA = 0.99


def fit_recurrency(
    dataset: Dataset,
    *,
    lambdas: tuple[float, ...] = LAMBDAS,
    alphas: tuple[float, ...] = ALPHAS,
) -> tuple[np.ndarray, np.ndarray]:
    """Lambda and alpha of each relation, inverses included, by valid MRR: float64 [r2], [r2].

    Lambda comes first, then alpha under it. A relation without valid queries gets the values that are
    best over all queries. The test split is not read.

    Raises:
        DataError: the valid split is empty.
    """
    shape = (1, 2 * dataset.num_relations)
    first_alpha = np.full(shape, ALPHA_WHILE_FITTING_LAMBDA)
    grid = np.array(lambdas)
    relations, ranks = valid_ranks(dataset, lambdas=np.tile(grid[:, None], shape), alphas=first_alpha)
    best_lambdas = grid[_best(1 / ranks, relations, shape[1])]
    grid = np.array(alphas)
    _, ranks = valid_ranks(dataset, lambdas=best_lambdas[None], alphas=np.tile(grid[:, None], shape))
    return best_lambdas, grid[_best(1 / ranks, relations, shape[1])]


def _best(reciprocal_ranks: np.ndarray, relations: np.ndarray, num_relations: int) -> np.ndarray:
    """Row of [g, q] with the best mean for each relation, the best of all where it has no query.

    The first of equals: sums are rounded, for the order of their terms must not decide.
    """
    sums = np.stack([np.bincount(relations, row, num_relations) for row in reciprocal_ranks])
    has_queries = np.bincount(relations, minlength=num_relations) > 0
    best_of_all = reciprocal_ranks.sum(axis=1).round(6).argmax()
    return np.where(has_queries, sums.round(6).argmax(axis=0), best_of_all)


def valid_ranks(dataset: Dataset, *, lambdas: np.ndarray, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Relations int64 [q] and ranks float64 [k * a, q] of the valid queries, in the evaluator's order.

    Args:
        dataset: its facts before the test split are read.
        lambdas: float64 [k, r2].
        alphas: float64 [a, r2], all of them tried with each row of lambdas.
    """
    valid = dataset.facts_of("valid")
    if not len(valid):
        raise DataError("the valid split is empty: nothing to fit recurrency on; use recurrency:0.02,0.999")
    past = PastCounts(
        dataset.facts[dataset.facts[:, 3] < dataset.split.test_start],
        num_entities=dataset.num_entities,
        num_relations=dataset.num_relations,
        lambdas=lambdas,
    )
    relations, ranks = [], []
    for time in np.unique(valid[:, 3]).tolist():
        past.move_to(time)
        targets = past.triples_of(time)
        relations.append(past.relations[targets])
        ranks.append(_ranks_of_timestamp(past, targets, alphas))
    return np.concatenate(relations), np.concatenate(ranks, axis=1)


@dataclass(frozen=True)
class _Blend:
    """Scores of some triples: ``base`` from the relaxed part alone, ``full`` with the strict part."""

    base: np.ndarray
    full: np.ndarray


class _Scored:
    """Some triples, to be scored under many lambdas and alphas at one time."""

    def __init__(self, past: PastCounts, triples: np.ndarray) -> None:
        self._past = past
        self._triples = triples
        self._relations = past.relations[triples]
        self._relaxed = past.relaxed(past.pair_counts[past.pairs[triples]], self._relations)

    def strict(self, which: int) -> np.ndarray:
        return self._past.strict(self._triples, which=which)

    def blend(self, strict: np.ndarray, alphas: np.ndarray) -> _Blend:
        base = (1 - alphas).take(self._relations) * self._relaxed
        return _Blend(base, base + alphas.take(self._relations) * strict)


def _ranks_of_timestamp(past: PastCounts, targets: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Ranks of the target triples [q] of the current time: float64 [k * a, q]."""
    queries, group = np.unique(past.queries(targets), return_inverse=True)
    owners, seen = past.seen(queries)
    with_history = _Members.of(owners, group, len(queries))
    by_group = np.argsort(group, kind="stable")
    answers = _Members.of(group[by_group], group, len(queries))
    sorted_counts = _sorted_counts(past)
    candidates, wanted = _Scored(past, seen), _Scored(past, targets)
    ranks = []
    for which in range(len(past.lambdas)):
        strict = candidates.strict(which), wanted.strict(which)
        for alpha in alphas:
            target = wanted.blend(strict[1], alpha).full
            relaxed = _RelaxedOrder(past, sorted_counts, past.relations[targets], alpha)
            greater, equal = relaxed.compare(target)
            more, same = with_history.compare(candidates.blend(strict[0], alpha), target)
            less, fewer = answers.compare(_Blend(np.full(len(targets), -1.0), target[by_group]), target)
            ranks.append(1 + (greater + more - less) + (equal + same - fewer) / 2)
    return np.stack(ranks)


@dataclass(frozen=True)
class _Members:
    """Lists of members, one for each group of queries; a query's members are those of its group."""

    lengths: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, owners: np.ndarray, group: np.ndarray, num_groups: int) -> "_Members":
        """Owners [m], ascending, are the members' groups; ``group`` [q] is each query's."""
        starts = np.searchsorted(owners, np.arange(num_groups + 1))
        lengths = np.diff(starts)[group]
        return cls(lengths, ranges(starts[group], lengths)[1])

    def compare(self, scores: _Blend, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many more members score above, and equal to, the target by ``full`` than by ``base``."""
        wanted = np.repeat(target, self.lengths)
        full, base = scores.full.take(self.positions), scores.base.take(self.positions)
        above = (full > wanted).view(np.int8) - (base > wanted).view(np.int8)
        equal = (full == wanted).view(np.int8) - (base == wanted).view(np.int8)
        return self._sum(above), self._sum(equal)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        filled = self.lengths > 0
        starts = (np.cumsum(self.lengths) - self.lengths)[filled]
        sums = np.zeros(len(self.lengths), np.int64)
        sums[filled] = np.add.reduceat(values, starts, dtype=np.int32)
        return sums


def _sorted_counts(past: PastCounts) -> np.ndarray:
    """Pair counts, ascending within each relation: int64 [pairs]."""
    offsets = past.pair_relations * (int(past.pair_counts.max(initial=0)) + 1)
    return np.sort(offsets + past.pair_counts) - offsets


class _RelaxedOrder:
    """All entities of each query's relation, ordered by the relaxed part of their scores."""

    def __init__(self, past: PastCounts, sorted_counts: np.ndarray, relations: np.ndarray, alphas: np.ndarray) -> None:
        self._past = past
        self._counts = sorted_counts
        self._relations = relations
        self._weights = 1 - alphas[relations]
        self._start = past.pair_starts[relations]
        self._end = past.pair_starts[relations + 1]

    def compare(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many of the n entities score above, and equal to, each target [q]."""
        not_below = self._bisect(lambda scores: scores < target)
        above = self._bisect(lambda scores: scores <= target)
        without_pair = self._past.num_entities - (self._end - self._start)
        return self._end - above, above - not_below + np.where(target == 0, without_pair, 0)

    def _bisect(self, goes_right: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """First position of each query's relation where the predicate on scores no longer holds."""
        low, high = self._start, self._end
        while (open_ := low < high).any():
            middle = np.where(open_, (low + high) // 2, self._start)
            scores = self._weights * self._past.relaxed(self._counts[middle], self._relations)
            right = goes_right(scores)
            low = np.where(open_ & right, middle + 1, low)
            high = np.where(open_ & ~right, middle, high)
        return low
