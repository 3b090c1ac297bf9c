"""Counts of the past, carried along in time: what the untrained baselines score from.

Each distinct ``(s, r, o)`` of both directions has a number, its triple; each distinct ``(r, o)`` is a
pair. A triple's count is ``sum over its times k < t of 2 ** (lambda * (k - t))``, updated as
``c <- 1 + c * 2 ** (lambda * (last - t))``, so that equal histories have bit-equal counts.
"""

import numpy as np

from geopol_tkg.data.dataset import with_inverses


def ranges(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [p] and positions [p] of the ranges ``starts[i] .. starts[i] + lengths[i]``, one after another."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    shifts = starts - np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return rows, np.arange(len(rows)) + np.repeat(shifts, lengths)


class PastCounts:
    """Decayed counts of triples and plain counts of pairs before a time.

    Attributes:
        time: facts before it are counted.
        objects, relations, pairs: int64 [i] of each triple.
        counts: float64 [k, i], decayed up to ``last``, for k sets of lambdas.
        last: int64 [i], when a triple was last seen.
        pair_starts: int64 [r2 + 1], the pairs of a relation are contiguous.
        pair_counts, relation_counts: int64, facts seen of a pair, of a relation.
    """

    def __init__(self, facts: np.ndarray, *, num_entities: int, num_relations: int, lambdas: np.ndarray) -> None:
        """Facts [f, 4] sorted by time; lambdas [k, r2], one for each relation, inverses included."""
        self.num_entities = num_entities
        self.num_relations = num_relations
        self.lambdas = lambdas
        self._index(with_inverses(facts, num_relations).astype(np.int64))
        self._reset()

    def _index(self, facts: np.ndarray) -> None:
        facts = facts[np.argsort(facts[:, 3], kind="stable")]
        subject, relation, object_, time = facts.T
        keys = (subject * 2 * self.num_relations + relation) * self.num_entities + object_
        self._keys, self._triples = np.unique(keys, return_inverse=True)
        self._timestamps, starts = np.unique(time, return_index=True)
        self._bounds = np.append(starts, len(facts))
        self.objects = self._keys % self.num_entities
        self.relations = self._keys // self.num_entities % (2 * self.num_relations)
        pair_keys = self.relations * self.num_entities + self.objects
        self._pair_keys, self.pairs = np.unique(pair_keys, return_inverse=True)
        self.pair_relations = self._pair_keys // self.num_entities
        self.pair_starts = np.searchsorted(self.pair_relations, np.arange(2 * self.num_relations + 1))

    def _reset(self) -> None:
        self.time = int(self._timestamps[0])
        self._next = 0
        self.counts = np.zeros((len(self.lambdas), len(self._keys)))
        self.last = np.full(len(self._keys), self.time)
        self.pair_counts = np.zeros(len(self._pair_keys), np.int64)
        self.relation_counts = np.zeros(2 * self.num_relations, np.int64)

    def move_to(self, time: int) -> None:
        """Count all facts before ``time``, and none after; going back starts again."""
        if time < self.time:
            self._reset()
        end = np.searchsorted(self._timestamps, time)
        for step in range(self._next, end):
            self._add(int(self._timestamps[step]), self._triples[self._bounds[step] : self._bounds[step + 1]])
        self._next = int(end)
        self.time = time

    def _add(self, time: int, triples: np.ndarray) -> None:
        self.counts[:, triples] = 1 + self.counts[:, triples] * self._decay(slice(None), triples, time)
        self.last[triples] = time
        np.add.at(self.pair_counts, self.pairs[triples], 1)
        np.add.at(self.relation_counts, self.relations[triples], 1)

    def _decay(self, which: int | slice, triples: np.ndarray, time: int) -> np.ndarray:
        return np.exp2(-self.lambdas[which, self.relations[triples]] * (time - self.last[triples]))

    def triples_of(self, time: int) -> np.ndarray:
        """Triples of the facts at a time, in the order of the facts, then of their inverses: int64 [q]."""
        step = np.searchsorted(self._timestamps, time)
        return self._triples[self._bounds[step] : self._bounds[step + 1]]

    def queries(self, triples: np.ndarray) -> np.ndarray:
        """Number of each triple's ``(s, r)``: int64 [m]."""
        return self._keys[triples] // self.num_entities

    def seen(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [p], ascending, and triples [p] with a count, for queries numbered ``s * 2R + r`` [b]."""
        starts = np.searchsorted(self._keys, queries * self.num_entities)
        ends = np.searchsorted(self._keys, (queries + 1) * self.num_entities)
        rows, triples = ranges(starts, ends - starts)
        kept = self.counts[0, triples] > 0
        return rows[kept], triples[kept]

    def decayed(self, triples: np.ndarray, *, which: int = 0) -> np.ndarray:
        """Decayed counts as of the current time, under one set of lambdas: float64 [m]."""
        return self.counts[which, triples] * self._decay(which, triples, self.time)

    def strict(self, triples: np.ndarray, *, which: int = 0) -> np.ndarray:
        """Strict recurrency psi: decayed counts over what a fact of every step would have: float64 [m]."""
        steps = max(self.time - int(self._timestamps[0]), 1)
        totals = _decay_totals(self.lambdas[which], steps)
        return self.decayed(triples, which=which) / totals[self.relations[triples]]

    def relaxed(self, counts: np.ndarray, relations: np.ndarray) -> np.ndarray:
        """Relaxed recurrency xi: pair counts as shares of their relations' facts: float64."""
        return counts / np.maximum(self.relation_counts[relations], 1)

    def relaxed_rows(self, relations: np.ndarray) -> np.ndarray:
        """Relaxed recurrency of every entity: float64 [u, n]."""
        starts = self.pair_starts[relations]
        rows, pairs = ranges(starts, self.pair_starts[relations + 1] - starts)
        shares = np.zeros((len(relations), self.num_entities))
        objects = self._pair_keys[pairs] % self.num_entities
        shares[rows, objects] = self.relaxed(self.pair_counts[pairs], self.pair_relations[pairs])
        return shares


def _decay_totals(lambdas: np.ndarray, steps: int) -> np.ndarray:
    """``sum of 2 ** (-lambda * j)`` over ``j = 1..steps``, for each lambda."""
    rates = np.where(lambdas == 0, 1.0, lambdas) * np.log(2)
    totals = np.exp(-rates) * np.expm1(-rates * steps) / np.expm1(-rates)
    return np.where(lambdas == 0, float(steps), totals)
