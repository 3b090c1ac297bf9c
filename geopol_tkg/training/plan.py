"""Which queries make an optimiser step, and the few padded shapes that all steps are compiled for."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from geopol_tkg.config import TrainConfig
from geopol_tkg.data.counts import CountSizes
from geopol_tkg.data.dataset import with_inverses
from geopol_tkg.data.history import HistoryVocabulary
from geopol_tkg.data.snapshots import Snapshots
from geopol_tkg.errors import DataError
from geopol_tkg.models.graph import WindowShape, window_shape
from geopol_tkg.models.past import CountShape, count_shape

MAX_SHAPES = 2
_LEAST_SHARE = 0.1  # of what is padded that a second shape must save
_LEAST_QUERIES = 1000  # that it must save in each epoch: ten epochs then win the seconds that its compilation takes
_ROUND_TO = 8


class Plan(Protocol):
    """What the training loop needs to know of an epoch's steps.

    Attributes:
        queries: int32 [q, 3], subject, relation (with inverses), object; grouped by step.
        times: int32 [s], time index of the queries.
        shape_of: int32 [s], which of ``shapes`` fits.
        shapes: padded sizes, each with its ``queries``; what an optimiser step is compiled for.
    """

    @property
    def queries(self) -> np.ndarray: ...
    @property
    def times(self) -> np.ndarray: ...
    @property
    def shape_of(self) -> np.ndarray: ...
    @property
    def shapes(self) -> tuple[Any, ...]: ...
    def __len__(self) -> int: ...


class StepShape(NamedTuple):
    """Padded sizes of an optimiser step.

    Attributes:
        queries: all of the step, in equal blocks.
        blocks: how many.
        object_history, relation_history: entries of the history vocabulary that a block's queries see.
        rows: entities that a step reads at most, a sample's left out; 0 where a step scores all.
        counts: what a block looks at of count tables, where the network has a counting model beside it.
    """

    window: WindowShape
    queries: int
    blocks: int
    object_history: int
    relation_history: int
    rows: int = 0
    counts: CountShape | None = None


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
    train_window: int = TrainConfig.train_window,
    sampled: bool = False,
    count_sizes: CountSizes | None = None,
) -> StepPlan:
    """Cut the training facts [f, 4] into steps of at most ``batch_size`` queries (0: a whole timestamp).

    A step of more than ``block_size`` queries is computed in blocks of no more than that. Where the softmax
    is ``sampled``, the entities that each step reads are counted; so is with ``count_sizes`` what it finds there.

    The first timestamp has no past and is skipped; so is what lies before the last ``train_window`` time steps
    (0: nothing). Queries of a timestamp are dealt to its steps at random, once, in steps of nearly equal size.

    Raises:
        DataError: fewer than two training timestamps.
    """
    both, starts, counts, step_times = deal_queries(
        facts, num_relations=history.num_relations, batch_size=batch_size, train_window=train_window, seed=seed
    )
    ordinals = np.stack([snapshots.before(time, history_length) for time in step_times])
    subject, relation, object_, time = both.T
    object_slices = history.object_slices(subject, relation, time)
    relation_slices = history.relation_slices(subject, object_, time)
    lengths = np.stack([part[:, 1] - part[:, 0] for part in (object_slices, relation_slices)], axis=1)
    windows = np.array([window_shape(snapshots, window) for window in ordinals])
    rows = np.zeros(len(starts), np.int64)
    if sampled:
        rows = 2 * (counts + 1) + np.add.reduceat(lengths[:, 0], starts) + _connected_counts(snapshots, ordinals)
    shape_of, shapes = choose_shapes(windows, starts, counts, lengths, rows, block_size)
    if count_sizes is not None:
        found = count_sizes.of(subject, relation, time)
        shapes = tuple(
            shape._replace(
                counts=largest_count_shape(
                    both, found, starts[shape_of == i], counts[shape_of == i], shape.queries // shape.blocks
                )
            )
            for i, shape in enumerate(shapes)
        )
    return StepPlan(both[:, :3], object_slices, relation_slices, starts, counts, step_times, ordinals, shape_of, shapes)


def deal_queries(
    facts: np.ndarray, *, num_relations: int, batch_size: int, train_window: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Queries int32 [q, 4] of facts [f, 4] in both directions, grouped by step; start, size and time of each step.

    Raises:
        DataError: fewer than two timestamps.
    """
    both, times = with_inverses(facts, num_relations), facts[:, 3]
    first = max(times.min(initial=0), times.max(initial=0) - train_window if train_window else 0)
    both = both[both[:, 3] > first]
    if not len(both):
        raise DataError("training needs facts at two timestamps or more: use a finer --granularity")
    both = both[np.random.default_rng(seed).permutation(len(both))]
    both = both[np.argsort(both[:, 3], kind="stable")]
    times, first, sizes = np.unique(both[:, 3], return_index=True, return_counts=True)
    return both, *_deal(times, first, sizes, batch_size)


def two_levels(size: np.ndarray, *, least_saved: int) -> np.ndarray:
    """Which of at most two padded sizes each step takes, by its size [s]; 1 is the smaller one: int64 [s].

    The second is where it saves most of what is padded, if it saves enough to be worth a compilation.
    """
    bound, steps = np.unique(size, return_counts=True)
    up_to = np.cumsum(steps)
    padded = up_to * bound + (len(size) - up_to) * bound[-1]
    best = int(np.argmin(padded))
    saved = padded[-1] - padded[best]
    pays = saved >= max(least_saved, _LEAST_SHARE * padded[-1])
    return (size <= bound[best]).astype(int) if pays else np.zeros(len(size), int)


def choose_shapes(
    windows: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    lengths: np.ndarray,
    rows: np.ndarray,
    block_size: int,
) -> tuple[np.ndarray, tuple[StepShape, ...]]:
    """At most two shapes, the second for smaller steps: where it saves most padded queries, if it saves enough.

    Queries are what most of a step's time goes with, so they decide. Steps of a block or more share a
    shape: blocks without queries cost nothing.

    Args:
        windows: int [s, 4], each step's window shape.
        starts, counts: int [s], each step's queries.
        lengths: int [q, 2], of each query's slices of the object and the relation history.
        rows: int [s], entities that each step reads; 0 for all.

    Returns:
        Which shape each step takes, int32 [s], and the shapes.
    """
    level = two_levels(np.minimum(counts, block_size), least_saved=_LEAST_QUERIES)
    levels, shape_of = np.unique(level, return_inverse=True)
    shapes = []
    for i in levels:
        own = level == i
        blocks = math.ceil(counts[own].max() / block_size)
        block = round_up(math.ceil(counts[own].max() / blocks))
        history = _largest_blocks(starts[own], counts[own], lengths, block)
        window = WindowShape(*(round_up(size) for size in windows[own].max(axis=0).tolist()))
        objects, relations = (round_up(size) for size in history.tolist())
        shapes.append(StepShape(window, blocks * block, blocks, objects, relations, int(rows[own].max())))
    return shape_of.astype(np.int32), tuple(shapes)


def largest_count_shape(
    queries: np.ndarray, sizes: np.ndarray, starts: np.ndarray, counts: np.ndarray, block: int
) -> CountShape:
    """What any block of some steps looks at, of queries [q, 4] that find ``sizes`` int32 [3, q] in count tables."""
    largest = np.zeros(len(CountShape._fields), np.int64)
    for start, count in zip(starts, counts, strict=True):
        for first in range(start, start + count, block):
            part = slice(first, min(first + block, start + count))
            largest = np.maximum(largest, count_shape(queries[part, 0], queries[part, 1], sizes[:, part]))
    return CountShape(*map(round_up, largest.tolist()))


def _largest_blocks(starts: np.ndarray, counts: np.ndarray, lengths: np.ndarray, block: int) -> np.ndarray:
    """Largest sums of ``lengths`` [q, 2] over a block of any step: [2]."""
    before = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(lengths, axis=0, dtype=np.int64)])
    largest = np.zeros(2, np.int64)
    for first in range(0, int(counts.max()), block):
        low = starts + np.minimum(first, counts)
        high = starts + np.minimum(first + block, counts)
        largest = np.maximum(largest, (before[high] - before[low]).max(axis=0))
    return largest


def _connected_counts(snapshots: Snapshots, ordinals: np.ndarray) -> np.ndarray:
    """How many entities have an edge in each step's window, ordinals [s, k]: int64 [s]."""
    entities, starts = snapshots.connected.columns[0], snapshots.connected.starts
    windows, step_of = np.unique(ordinals, axis=0, return_inverse=True)
    counts = [
        len(np.unique(np.concatenate([entities[starts[i] : starts[i + 1]] for i in window if i >= 0])))
        for window in windows
    ]
    return np.array(counts, np.int64)[step_of]


def round_up(size: int) -> int:
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
