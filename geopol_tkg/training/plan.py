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
from geopol_tkg.data.snapshots import Snapshots, round_up
from geopol_tkg.errors import DataError
from geopol_tkg.models.graph import WindowShape, window_shape
from geopol_tkg.models.past import CountShape, count_shape

MAX_SHAPES = 2
_LEAST_SHARE = 0.1  # of what is padded that a second shape must save
_LEAST_QUERIES = 1000  # that it must save in each epoch: ten epochs then win the seconds that its compilation takes


class Plan(Protocol):
    """What the training loop needs to know of an epoch's steps.

    Attributes:
        queries: int32 [q, 3], subject, relation (with inverses), object; grouped by step.
        times: int32 [s], time index of the queries.
        shape_of: int32 [s], which of ``shapes`` fits.
        shapes: padded sizes, each with its ``queries``, the most first; what an optimiser step is compiled for.
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


class Asked(NamedTuple):
    """The distinct queries of each step in a task, and their answers.

    Attributes:
        pairs: int32 [p, 2], subject and relation of ``(s, r, ?)``, or subject and object of ``(s, ?, o)``; grouped by
            step.
        answers: int32 [p, 2], slices of ``targets``.
        targets: int32 [q], objects or relations.
        starts, counts: int32 [s], each step's distinct queries.
        seen: int32 [p, 2], slices of the history vocabulary, where a network reads it.
    """

    pairs: Any  # NumPy arrays on the host, or their copies on a device
    answers: Any
    targets: Any
    starts: Any
    counts: Any
    seen: Any = None


class TaskShape(NamedTuple):
    """Padded sizes of a step's distinct queries.

    Attributes:
        queries: all of the step, in equal blocks.
        blocks: how many.
        answers: of a block's queries.
        history: entries of the history vocabulary that a block's queries see; where the softmax is sampled, that its
            answers' queries see.
    """

    queries: int
    blocks: int
    answers: int
    history: int


class StepShape(NamedTuple):
    """Padded sizes of an optimiser step.

    Attributes:
        window: what is evolved.
        entity, relation: queries of the tasks.
        rows: entities that a step reads at most, a sample's left out; 0 where a step scores all.
        counts: what a block looks at of count tables, where the network has a counting model beside it.
    """

    window: WindowShape
    entity: TaskShape
    relation: TaskShape
    rows: int = 0
    counts: CountShape | None = None

    @property
    def queries(self) -> int:
        return self.entity.queries


@dataclass(frozen=True)
class StepPlan:
    """All optimiser steps of an epoch; their order is drawn anew each epoch.

    Attributes:
        queries: int32 [q, 3], subject, relation (with inverses), object; grouped by step.
        starts, counts: int32 [s], each step's queries. A step never mixes timestamps.
        times: int32 [s], time index of the queries.
        ordinals: int32 [s, k], snapshots to evolve.
        entity, relation: what the steps ask.
        shape_of: int32 [s], which of ``shapes`` fits.
    """

    queries: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    times: np.ndarray
    ordinals: np.ndarray
    entity: Asked
    relation: Asked
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

    Queries of a step that differ in their answer alone are asked once. More than ``block_size`` distinct ones are
    computed in blocks of no more than that. Where the softmax is ``sampled``, the entities that each step reads are
    counted; so is with ``count_sizes`` what it finds there.

    The first timestamp has no past and is skipped; so is what lies before the last ``train_window`` time steps
    (0: nothing). Queries of a timestamp are dealt to its steps at random, once, in steps of nearly equal size.

    Raises:
        DataError: fewer than two training timestamps.
    """
    both, starts, counts, times = deal_queries(
        facts, num_relations=history.num_relations, batch_size=batch_size, train_window=train_window, seed=seed
    )
    entity, relation = (distinct_queries(both, starts, counts, second)[0] for second in (1, 2))
    ordinals = np.stack([snapshots.before(time, history_length) for time in times])
    entity, relation = (
        asked._replace(seen=slices(asked.pairs[:, 0], asked.pairs[:, 1], np.repeat(times, asked.counts)))
        for asked, slices in ((entity, history.object_slices), (relation, history.relation_slices))
    )
    windows = np.array([window_shape(snapshots, window) for window in ordinals])
    rows = np.zeros(len(times), np.int64)
    if sampled:
        seen = np.add.reduceat(lengths_of(entity.seen), entity.starts)
        rows = 2 * (relation.counts + 1) + seen + _connected_counts(snapshots, ordinals)
    shape_of, shapes = choose_shapes(windows, entity, relation, rows, block_size, sampled=sampled)
    if count_sizes is not None:
        found = count_sizes.of(entity.pairs[:, 0], entity.pairs[:, 1], np.repeat(times, entity.counts))
        blocks = (shape.entity.queries // shape.entity.blocks for shape in shapes)
        shapes = tuple(
            shape._replace(counts=largest_count_shape(entity, found, shape_of == i, block))
            for i, (shape, block) in enumerate(zip(shapes, blocks, strict=True))
        )
    return StepPlan(both[:, :3], starts, counts, times, ordinals, entity, relation, shape_of, shapes)


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


def distinct_queries(
    queries: np.ndarray, starts: np.ndarray, counts: np.ndarray, second: int, *, with_other_steps: bool = False
) -> tuple[Asked, np.ndarray]:
    """What steps ask with queries [q, 4]: their subjects and relations (``second`` 1), or subjects and objects (2).

    Args:
        with_other_steps: answers are all of the timestamp, whichever step has their query.

    Returns:
        The distinct queries; and which query each target is of, int64 [q].
    """
    step_of = np.repeat(np.arange(len(starts)), counts)
    pair = queries[:, 0], queries[:, second]
    number, first = numbered(step_of, *pair)
    group = numbered(queries[:, 3], *pair)[0] if with_other_steps else number
    order, sizes = np.argsort(group, kind="stable"), np.bincount(group)
    ends = np.cumsum(sizes)
    in_step = np.bincount(step_of[first]).astype(np.int32)
    asked = Asked(
        pairs=queries[first][:, [0, second]],
        answers=np.stack([ends - sizes, ends], axis=1).astype(np.int32)[group[first]],
        targets=queries[order, 3 - second],
        starts=np.cumsum(in_step, dtype=np.int32) - in_step,
        counts=in_step,
    )
    return asked, order


def numbered(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of columns int [q], all but the first not negative, in the order in which they occur first.

    Returns:
        Number of each row, int64 [q], and where each number occurs first, int64 [n].
    """
    ids = columns[0].astype(np.int64)
    for column in columns[1:]:
        _, first, ids = np.unique(ids * (int(column.max()) + 1) + column, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    return number[ids], first[order]


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
    windows: np.ndarray, entity: Asked, relation: Asked, rows: np.ndarray, block_size: int, *, sampled: bool
) -> tuple[np.ndarray, tuple[StepShape, ...]]:
    """At most two shapes, the second for smaller steps: where it saves most padded queries, if it saves enough.

    Queries are what most of a step's time goes with, so they decide. Steps of a block or more share a
    shape: blocks without queries cost nothing.

    Args:
        windows: int [s, 4], each step's window shape.
        rows: int [s], entities that each step reads; 0 for all.

    Returns:
        Which shape each step takes, int32 [s], and the shapes.
    """
    level = two_levels(np.minimum(entity.counts, block_size), least_saved=_LEAST_QUERIES)
    levels, shape_of = np.unique(level, return_inverse=True)
    shapes = []
    for i in levels:
        own = level == i
        window = WindowShape(*(round_up(size) for size in windows[own].max(axis=0).tolist()))
        tasks = [_task_shape(asked, own, block_size, sampled=sampled) for asked in (entity, relation)]
        shapes.append(StepShape(window, tasks[0], tasks[1], int(rows[own].max())))
    return shape_of.astype(np.int32), tuple(shapes)


def block_sizes(counts: np.ndarray, block_size: int) -> tuple[int, int]:
    """Blocks that steps of so many queries [s] are computed in, and queries of a block."""
    blocks = math.ceil(counts.max() / block_size)
    return blocks, round_up(math.ceil(counts.max() / blocks))


def largest_count_shape(asked: Asked, sizes: np.ndarray, own: np.ndarray, block: int) -> CountShape:
    """What any block of some steps, bool [s], looks at, where queries find ``sizes`` int32 [3, p] in count tables."""
    largest = np.zeros(len(CountShape._fields), np.int64)
    for start, count in zip(asked.starts[own], asked.counts[own], strict=True):
        for first in range(start, start + count, block):
            part = slice(first, min(first + block, start + count))
            largest = np.maximum(largest, count_shape(asked.pairs[part, 0], asked.pairs[part, 1], sizes[:, part]))
    return CountShape(*map(round_up, largest.tolist()))


def largest_blocks(asked: Asked, lengths: np.ndarray, own: np.ndarray, block: int) -> int:
    """Largest sum of the queries' ``lengths`` int [p] over a block of some steps, bool [s]."""
    before = np.append(0, np.cumsum(lengths, dtype=np.int64))
    starts, counts = asked.starts[own], asked.counts[own]
    largest = 0
    for first in range(0, int(counts.max()), block):
        low, high = (starts + np.minimum(end, counts) for end in (first, first + block))
        largest = max(largest, int((before[high] - before[low]).max()))
    return largest


def _task_shape(asked: Asked, own: np.ndarray, block_size: int, *, sampled: bool) -> TaskShape:
    blocks, block = block_sizes(asked.counts[own], block_size)
    answers, seen = lengths_of(asked.answers), lengths_of(asked.seen)
    sizes = (largest_blocks(asked, lengths, own, block) for lengths in (answers, seen * answers if sampled else seen))
    return TaskShape(blocks * block, blocks, *map(round_up, sizes))


def lengths_of(slices: np.ndarray) -> np.ndarray:
    """Of slices [p, 2]: int64 [p]."""
    return slices[:, 1].astype(np.int64) - slices[:, 0]


def _connected_counts(snapshots: Snapshots, ordinals: np.ndarray) -> np.ndarray:
    """How many entities have an edge in each step's window, ordinals [s, k]: int64 [s]."""
    entities, starts = snapshots.connected.columns[0], snapshots.connected.starts
    windows, step_of = np.unique(ordinals, axis=0, return_inverse=True)
    counts = [
        len(np.unique(np.concatenate([entities[starts[i] : starts[i + 1]] for i in window if i >= 0])))
        for window in windows
    ]
    return np.array(counts, np.int64)[step_of]


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
