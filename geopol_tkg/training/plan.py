"""Which queries make an optimiser step, and the few padded shapes that all steps are compiled for."""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geopol_tkg.config import TrainConfig
from geopol_tkg.data.dataset import with_inverses
from geopol_tkg.data.history import HistoryVocabulary
from geopol_tkg.data.snapshots import Snapshots
from geopol_tkg.errors import DataError
from geopol_tkg.models.graph import WindowShape, window_shape

MAX_SHAPES = 3
_LEAST_SHARE = 0.2  # of the steps, for a shape of their own
_SLACK = 0.3  # a step that needs up to 1.2 times a half still counts as half
_ROUND_TO = 8


class StepShape(NamedTuple):
    """Padded sizes of an optimiser step.

    Attributes:
        queries: all of the step, in equal blocks.
        blocks: how many.
        object_history, relation_history: entries of the history vocabulary that a block's queries see.
    """

    window: WindowShape
    queries: int
    blocks: int
    object_history: int
    relation_history: int


@dataclass(frozen=True)
class StepPlan:
    """All optimiser steps of an epoch; their order is drawn anew each epoch.

    Attributes:
        queries: int32 [q, 3], subject, relation (with inverses), object; grouped by step.
        object_slices, relation_slices: int32 [q, 2] into the history vocabulary.
        starts, counts: int32 [s], each step's queries. A step never mixes timestamps.
        times: int32 [s], time index of the queries.
        ordinals: int32 [s, k], snapshots to evolve.
        shape_of: int32 [s], which of ``shapes`` fits.
    """

    queries: np.ndarray
    object_slices: np.ndarray
    relation_slices: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    times: np.ndarray
    ordinals: np.ndarray
    shape_of: np.ndarray
    shapes: tuple[StepShape, ...]

    def __len__(self) -> int:
        return len(self.starts)


def plan_steps(
    facts: np.ndarray,
    *,
    snapshots: Snapshots,
    history: HistoryVocabulary,
    history_length: int,
    batch_size: int,
    seed: int,
    block_size: int = TrainConfig.block_size,
) -> StepPlan:
    """Cut the training facts [f, 4] into steps of at most ``batch_size`` queries (0: a whole timestamp).

    A step of more than ``block_size`` queries is computed in blocks of no more than that.

    The first timestamp has no past and is skipped. Queries of a timestamp are dealt to its steps at
    random, once, in steps of nearly equal size.

    Raises:
        DataError: fewer than two training timestamps.
    """
    both = with_inverses(facts, history.num_relations)
    both = both[both[:, 3] > facts[:, 3].min(initial=0)]
    if not len(both):
        raise DataError("training needs facts at two timestamps or more: use a finer --granularity")
    both = both[np.random.default_rng(seed).permutation(len(both))]
    both = both[np.argsort(both[:, 3], kind="stable")]
    times, first, sizes = np.unique(both[:, 3], return_index=True, return_counts=True)
    starts, counts, step_times = _deal(times, first, sizes, batch_size)
    ordinals = np.stack([snapshots.before(time, history_length) for time in step_times])
    subject, relation, object_, time = both.T
    object_slices = history.object_slices(subject, relation, time)
    relation_slices = history.relation_slices(subject, object_, time)
    lengths = np.stack([part[:, 1] - part[:, 0] for part in (object_slices, relation_slices)], axis=1)
    windows = np.array([window_shape(snapshots, window) for window in ordinals])
    shape_of, shapes = choose_shapes(windows, starts, counts, lengths, block_size)
    return StepPlan(both[:, :3], object_slices, relation_slices, starts, counts, step_times, ordinals, shape_of, shapes)


def choose_shapes(
    windows: np.ndarray, starts: np.ndarray, counts: np.ndarray, lengths: np.ndarray, block_size: int
) -> tuple[np.ndarray, tuple[StepShape, ...]]:
    """At most three shapes, each for the steps that need about half of the next larger one or less.

    Queries are what most of a step's time goes with, so they decide; a shape that few steps would use is
    not worth its compilation.

    Args:
        windows: int [s, 3], each step's window shape.
        starts, counts: int [s], each step's queries.
        lengths: int [q, 2], of each query's slices of the object and the relation history.

    Returns:
        Which shape each step takes, int32 [s], and the shapes.
    """
    level = np.clip(np.floor(-np.log2(counts / counts.max()) + _SLACK), 0, MAX_SHAPES - 1).astype(int)
    for rare in range(MAX_SHAPES - 1, 0, -1):
        if (level == rare).mean() < _LEAST_SHARE:
            level[level == rare] = rare - 1
    levels, shape_of = np.unique(level, return_inverse=True)
    shapes = []
    for i in levels:
        own = level == i
        blocks = math.ceil(counts[own].max() / block_size)
        block = _round_up(math.ceil(counts[own].max() / blocks))
        history = _largest_blocks(starts[own], counts[own], lengths, block)
        window = WindowShape(*(_round_up(size) for size in windows[own].max(axis=0).tolist()))
        shapes.append(StepShape(window, blocks * block, blocks, *(_round_up(size) for size in history.tolist())))
    return shape_of.astype(np.int32), tuple(shapes)


def _largest_blocks(starts: np.ndarray, counts: np.ndarray, lengths: np.ndarray, block: int) -> np.ndarray:
    """Largest sums of ``lengths`` [q, 2] over a block of any step: [2]."""
    before = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(lengths, axis=0, dtype=np.int64)])
    largest = np.zeros(2, np.int64)
    for first in range(0, int(counts.max()), block):
        low = starts + np.minimum(first, counts)
        high = starts + np.minimum(first + block, counts)
        largest = np.maximum(largest, (before[high] - before[low]).max(axis=0))
    return largest


def _round_up(size: int) -> int:
    return max(-(-size // _ROUND_TO), 1) * _ROUND_TO


def _deal(
    times: np.ndarray, first: np.ndarray, sizes: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, size and time of every step: int32 [s] each."""
    steps = []
    for time, start, size in zip(times, first, sizes, strict=True):
        pieces = math.ceil(size / batch_size) if batch_size else 1
        cuts = start + np.arange(pieces + 1) * size // pieces
        steps += [(low, high - low, time) for low, high in itertools.pairwise(cuts)]
    starts, counts, step_times = np.array(steps, np.int32).T
    return starts, counts, step_times
