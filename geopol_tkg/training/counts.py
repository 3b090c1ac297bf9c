"""Training of the counting model: which queries make a step, and the loss of one."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from geopol_tkg.config import TrainConfig
from geopol_tkg.data.counts import CountSizes, CountTables
from geopol_tkg.models.blocks import sum_over_blocks
from geopol_tkg.models.past import CountShape, past_of
from geopol_tkg.training.plan import deal_queries, largest_count_shape, round_up, two_levels
from geopol_tkg.training.step import FIXED, Trainer

_LEAST_MEETINGS = 300_000  # that a second shape must save in each epoch, as queries in training.plan


class CountStepShape(NamedTuple):
    """Padded sizes of an optimiser step: all its queries, in how many equal blocks, and what a block looks at."""

    queries: int
    blocks: int
    block: CountShape


@dataclass(frozen=True)
class CountPlan:
    """All optimiser steps of an epoch, as :class:`geopol_tkg.training.plan.StepPlan` has them.

    Attributes:
        queries: int32 [q, 3], subject, relation (with inverses), object; grouped by step.
        starts, counts, times: int32 [s], each step's queries and their time index.
    """

    queries: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    times: np.ndarray
    shape_of: np.ndarray
    shapes: tuple[CountStepShape, ...]

    def __len__(self) -> int:
        return len(self.starts)


class CountStepData(NamedTuple):
    """The plan and the tables on the device."""

    tables: CountTables
    queries: Array
    starts: Array
    counts: Array
    times: Array


def plan_count_steps(facts: np.ndarray, *, sizes: CountSizes, num_relations: int, config: TrainConfig) -> CountPlan:
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
    found = sizes.of(both[:, 0], both[:, 1], both[:, 3], with_answers=True)
    before = np.concatenate([[0], np.cumsum(found[0], dtype=np.int64)])
    meetings = np.minimum(before[starts + counts] - before[starts], config.block_size * found[0].max())
    level = two_levels(meetings, least_saved=_LEAST_MEETINGS)
    levels, shape_of = np.unique(level, return_inverse=True)
    shapes = []
    for i in levels:
        own = np.flatnonzero(level == i)
        blocks = math.ceil(counts[own].max() / config.block_size)
        block = round_up(math.ceil(counts[own].max() / blocks))
        looked_at = largest_count_shape(both, found, starts[own], counts[own], block)
        shapes.append(CountStepShape(blocks * block, blocks, looked_at))
    return CountPlan(both[:, :3], starts, counts, times, shape_of.astype(np.int32), tuple(shapes))


class CountTrainer(Trainer):
    """Steps of the counting model."""

    def loss(
        self, parameters: Any, statistics: Any, data: CountStepData, index: Array, key: Array, shape: CountStepShape
    ) -> tuple[Array, tuple[Array, Any]]:
        """Mean negative log-likelihood of a step; beside it the number of queries and no statistics."""
        del key  # nothing is random
        model = nnx.merge(self.graphdef, parameters, statistics, copy=True)
        past = past_of(data.tables, data.times[index], model.config.half_lives)
        position = jnp.arange(shape.queries)
        count = data.counts[index]
        mask = position < count
        subject, relation, object_ = data.queries[jnp.where(mask, data.starts[index] + position, 0)].T
        subject = jnp.where(mask, subject, model.config.num_entities)

        def block(rows: tuple[Array, Array, Array, Array]) -> Array:
            *queries, real = rows
            return jnp.sum(jnp.where(real, model.nll(past, *queries, shape.block, filtered=True), 0))

        loss = sum_over_blocks(block, (subject, relation, object_, mask), shape.blocks, mask=mask)
        return loss / count, (count, nnx.state(model, FIXED))


def put_count_data(plan: CountPlan, tables: CountTables) -> CountStepData:
    """The plan on the default device, beside tables that are there."""
    return CountStepData(tables, *jax.device_put((plan.queries, plan.starts, plan.counts, plan.times)))
