"""Training of the counting model: which queries make a step, and the loss of one."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from geopol_tkg.config import TrainConfig
from geopol_tkg.data.counts import CountSizes, CountTables, Values
from geopol_tkg.data.paths import PathIndex, Paths
from geopol_tkg.data.snapshots import round_up
from geopol_tkg.models.blocks import sum_over_blocks
from geopol_tkg.models.counts import Truths
from geopol_tkg.models.past import CountShape, past_of, spread
from geopol_tkg.training.plan import (
    Asked,
    block_sizes,
    deal_queries,
    distinct_queries,
    largest_blocks,
    largest_count_shape,
    lengths_of,
    two_levels,
)
from geopol_tkg.training.step import FIXED, Trainer, rows_of

_LEAST_MEETINGS = 300_000  # that a second shape must save in each epoch, as queries in training.plan


class CountStepShape(NamedTuple):
    """Padded sizes of an optimiser step: its distinct queries, in how many equal blocks, and what a block looks at."""

    queries: int
    blocks: int
    answers: int
    block: CountShape


class PathsAsked(NamedTuple):
    """Paths of every subject and time that is asked of, once.

    Attributes:
        found: of u subjects.
        of_query: int32 [p], which of them each distinct query reads.
    """

    found: Paths
    of_query: Values

    def of(self, row: Array) -> Paths:
        """On the device, of distinct queries [b]."""
        own = self.of_query[row]
        return Paths(self.found.objects[own], self.found.features[own])


@dataclass(frozen=True)
class CountPlan:
    """All optimiser steps of an epoch, as :class:`geopol_tkg.training.plan.StepPlan` has them.

    Attributes:
        queries: int32 [q, 3], subject, relation (with inverses), object; grouped by step.
        starts, counts, times: int32 [s], each step's queries and their time index.
        asked: what the steps ask; answers are all that is true at the time, whichever step has its query.
        ranks: int32 [q], which of the entities that its subject meets each target is, in the order of meeting.
        step_of: int32 [q], the step of each target's query.
        paths: where the model looks at them.
    """

    queries: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    times: np.ndarray
    asked: Asked
    ranks: np.ndarray
    step_of: np.ndarray
    paths: PathsAsked | None
    shape_of: np.ndarray
    shapes: tuple[CountStepShape, ...]

    def __len__(self) -> int:
        return len(self.starts)


class CountStepData(NamedTuple):
    """The plan and the tables on the device."""

    tables: CountTables
    asked: Asked
    ranks: Array
    step_of: Array
    paths: PathsAsked | None
    counts: Array
    times: Array


def plan_count_steps(
    facts: np.ndarray, *, sizes: CountSizes, paths: PathIndex | None, num_relations: int, config: TrainConfig
) -> CountPlan:
    """Cut the training facts [f, 4] into steps, as :func:`geopol_tkg.training.plan.plan_steps` does.

    Raises:
        DataError: fewer than two training timestamps.
    """
    both, starts, counts, times = deal_queries(
        facts,
        num_relations=num_relations,
        batch_size=config.batch_size,
        train_window=config.train_window,
        seed=config.seed,
    )
    asked, order = distinct_queries(both, starts, counts, 1, with_other_steps=True)
    found = sizes.of(asked.pairs[:, 0], asked.pairs[:, 1], np.repeat(times, asked.counts))
    meetings = np.minimum(
        np.add.reduceat(found[0], asked.starts, dtype=np.int64), config.block_size * int(found[0].max())
    )
    level = two_levels(meetings, least_saved=_LEAST_MEETINGS)
    levels, shape_of = np.unique(level, return_inverse=True)
    shapes = []
    for i in levels:
        own = level == i
        blocks, block = block_sizes(asked.counts[own], config.block_size)
        answers = round_up(largest_blocks(asked, lengths_of(asked.answers), own, block))
        shapes.append(CountStepShape(blocks * block, blocks, answers, largest_count_shape(asked, found, own, block)))
    ranks = sizes.ranks(both[:, 0], both[:, 2])[order]
    step_of = np.repeat(np.arange(len(starts), dtype=np.int32), counts)[order]
    return CountPlan(
        queries=both[:, :3],
        starts=starts,
        counts=counts,
        times=times,
        asked=asked,
        ranks=ranks,
        step_of=step_of,
        paths=None if paths is None else _paths(paths, asked, times),
        shape_of=shape_of.astype(np.int32),
        shapes=tuple(shapes),
    )


def _paths(index: PathIndex, asked: Asked, times: np.ndarray) -> PathsAsked:
    time_of = np.repeat(times, asked.counts)
    keys, of_query = np.unique(time_of.astype(np.int64) << 32 | asked.pairs[:, 0], return_inverse=True)
    moments, first = np.unique(keys >> 32, return_index=True)
    subjects = np.split((keys & 0xFFFFFFFF).astype(np.int32), first[1:])
    parts = [index.of(int(time), own) for time, own in zip(moments, subjects, strict=True)]
    return PathsAsked(Paths(*map(np.concatenate, zip(*parts, strict=True))), of_query.astype(np.int32))


class CountTrainer(Trainer):
    """Steps of the counting model."""

    def loss(
        self, parameters: Any, statistics: Any, data: CountStepData, index: Array, key: Array, shape: CountStepShape
    ) -> tuple[Array, tuple[Array, Any]]:
        """Mean negative log-likelihood of a step; beside it the number of queries and no statistics."""
        del key  # nothing is random
        model = nnx.merge(self.graphdef, parameters, statistics, copy=True)
        past = past_of(data.tables, data.times[index], model.config.half_lives)
        asked = data.asked
        row, slices, mask = rows_of(asked, index, shape.queries)
        subjects, relations = asked.pairs[row].T
        subjects = jnp.where(mask, subjects, model.config.num_entities)

        def block(rows: tuple[Array, Array, Array, Array]) -> Array:
            subjects, relations, slices, row = rows
            paths = None if data.paths is None else data.paths.of(row)
            query, place, _ = spread(slices, shape.answers)
            objects, ranks, step_of = (
                values.at[place].get(mode="clip") for values in (asked.targets, data.ranks, data.step_of)
            )
            nll = model.nll(past, subjects, relations, Truths(query, objects, ranks), shape.block, paths)
            return jnp.sum(jnp.where((query < len(subjects)) & (step_of == index), nll, 0))

        loss = sum_over_blocks(block, (subjects, relations, slices, row), shape.blocks, mask=mask)
        count = data.counts[index]
        return loss / count, (count, nnx.state(model, FIXED))


def put_count_data(plan: CountPlan, tables: CountTables) -> CountStepData:
    """The plan on the default device, beside tables that are there."""
    parts = plan.asked, plan.ranks, plan.step_of, plan.paths, plan.counts, plan.times
    return CountStepData(tables, *jax.device_put(parts))
