"""Whom an entity has not met, but may: those who met the same as whom it has met.

A path is ``s - x - u - o``, three meetings, of a subject and an entity that it has not met. What all paths between the
two say is, as in item-based collaborative filtering (Sarwar et al., WWW 2001)::

    c(s, o) = sum over x that s has met: c(s, x) * cosine(x, o)

with ``c(s, x)`` the facts between the two, in either direction and under any relation, decayed by each half-life and
plain; the cosine is between rows of ``log(1 + facts between two)``, one number for each entity that was met.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from geopol_tkg.config import ModelConfig
from geopol_tkg.data.counts import SCALE, Values

_MOST_SUBJECTS, _MOST_ENTRIES = 256, 1 << 22  # at once: what paths lead a subject to may be nearly everybody


class Paths(NamedTuple):
    """The entities with the largest sum of all their ``c(s, o)``, p for each of b subjects.

    Attributes:
        objects: int32 [b, p]; n = no more of them.
        features: float32 [b, p, k + 1], ``log(1 + SCALE * c(s, o))`` for each half-life, then plain; 0 without paths.
    """

    objects: Values
    features: Values


class PathIndex:
    """Paths as of any time. Times that ascend are cheap, others count anew."""

    def __init__(self, facts: np.ndarray, *, num_entities: int, half_lives: tuple[float, ...], num_paths: int) -> None:
        """Facts int32 [f, 4], half-lives in steps; ``num_paths`` entities are kept for each subject."""
        facts = facts[facts[:, 0] != facts[:, 2]]
        facts = facts[np.argsort(facts[:, 3], kind="stable")]
        low, high = np.sort(facts[:, [0, 2]].astype(np.int64), axis=1).T
        pairs, self._pair = np.unique(low * num_entities + high, return_inverse=True)
        self._ends = np.stack([pairs // num_entities, pairs % num_entities])
        self._times = facts[:, 3]
        self._size, self._num_paths = num_entities, min(num_paths, num_entities)
        self._rates = np.append(1 / np.asarray(half_lives), 0)
        self._reset()

    @classmethod
    def of_model(cls, facts: np.ndarray, config: ModelConfig) -> "PathIndex | None":
        """Of facts in a model's ids; None where it follows no paths."""
        if not config.num_paths:
            return None
        return cls(facts, num_entities=config.num_entities, half_lives=config.half_lives, num_paths=config.num_paths)

    def of(self, time: int, subjects: np.ndarray, *, horizon: int | None = None) -> Paths:
        """Paths of subjects [b] over the facts before a time, and the horizon; of one that is no entity, none."""
        self._move_to(time, time if horizon is None else min(time, horizon))
        distinct, row = np.unique(subjects, return_inverse=True)
        objects = np.full((len(distinct), self._num_paths), self._size, np.int32)
        features = np.zeros((*objects.shape, len(self._rates)), np.float32)
        known = int(np.searchsorted(distinct, self._size))
        size = max(1, min(_MOST_SUBJECTS, _MOST_ENTRIES // self._size))
        for first in range(0, known, size):
            block = slice(first, min(first + size, known))
            objects[block], features[block] = self._most(distinct[block])
        return Paths(objects[row], features[row])

    def _reset(self) -> None:
        self._time, self._next = int(self._times[0]) if len(self._times) else 0, 0
        self._counts = np.zeros((len(self._rates), self._ends.shape[1]))
        self._matrices = [sparse.csr_array((self._size, self._size))] * len(self._rates)
        self._unit = self._matrices[0]

    def _move_to(self, time: int, visible: int) -> None:
        """Count the facts before ``visible``, each to weigh ``2 ** (-age / half-life)`` at ``time``."""
        end = int(np.searchsorted(self._times, visible))
        if (time, end) == (self._time, self._next):
            return
        if time < self._time or end < self._next:
            self._reset()
            self._time = min(self._time, time)  # nothing has been counted that could fade
        self._counts *= np.exp2((self._time - time) * self._rates)[:, None]
        new = slice(self._next, end)
        for counts, rate in zip(self._counts, self._rates, strict=True):
            weights = np.exp2((self._times[new] - time) * rate)
            counts += np.bincount(self._pair[new], weights, minlength=len(counts))
        self._time, self._next = time, end
        self._matrices = [self._matrix(counts) for counts in self._counts]
        known = self._matrices[-1].log1p()
        norms = np.sqrt(known.multiply(known).sum(axis=1))
        self._unit = known @ sparse.diags_array(1 / np.where(norms > 0, norms, 1))

    def _matrix(self, values: np.ndarray) -> sparse.csr_array:
        """Values of pairs in both directions, where the two have met: [n, n]."""
        seen = self._counts[-1] > 0
        low, high = self._ends[:, seen]
        entries = np.tile(values[seen], 2), (np.concatenate([low, high]), np.concatenate([high, low]))
        return sparse.csr_array(entries, shape=(self._size, self._size))

    def _most(self, subjects: np.ndarray) -> Paths:
        """Of distinct subjects [u]: ties go to the lower number."""
        parts = [(facts[subjects] @ self._unit.T) @ self._unit for facts in self._matrices]
        total = sum(parts[1:], parts[0]).tocoo()
        keys = total.row.astype(np.int64) * self._size + total.col
        met = self._matrices[-1][subjects].tocoo()
        is_met = np.isin(keys, met.row.astype(np.int64) * self._size + met.col)
        kept = ~is_met & (total.col != subjects[total.row]) & (total.data > 0)
        row, column, value = total.row[kept], total.col[kept], total.data[kept].astype(np.float32)
        order = np.lexsort((column, -value, row))
        row, column = row[order], column[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        row, column, place = (each[place < self._num_paths] for each in (row, column, place))
        objects = np.full((len(subjects), self._num_paths), self._size, np.int32)
        objects[row, place] = column
        features = np.zeros((*objects.shape, len(parts)), np.float32)
        for number, part in enumerate(parts):
            features[row, place, number] = np.log1p(SCALE * np.asarray(part[row, column]).ravel())
        return Paths(objects, features)
