"""Training of the counting model: which queries make a step, and the loss of one."""

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
    round_up,
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


@dataclass(frozen=True)
class CountPlan:
    """All optimiser steps of an epoch, as :class:`geopol_tkg.training.plan.StepPlan` has them.

    Attributes:
        queries: int32 [q, 3], subject, relation (with inverses), object; grouped by step.
        starts, counts, times: int32 [s], each step's queries and their time index.
        asked: what the steps ask; answers are all that is true at the time, whichever step has its query.
        ranks: int32 [q], which of the entities that its subject meets each target is, in the order of meeting.
        step_of: int32 [q], the step of each target's query.
    """

    queries: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    times: np.ndarray
    asked: Asked
    ranks: np.ndarray
    step_of: np.ndarray
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
    asked, order = distinct_queries(both, starts, counts, 1, with_other_steps=True)
    found = sizes.of(asked.pairs[:, 0], asked.pairs[:, 1], np.repeat(times, asked.counts))
    meetings = np.minimum(np.add.reduceat(found[0], asked.starts, dtype=np.int64), config.block_size * found[0].max())
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
        both[:, :3], starts, counts, times, asked, ranks, step_of, shape_of.astype(np.int32), tuple(shapes)
    )


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

        def block(rows: tuple[Array, Array, Array]) -> Array:
            subjects, relations, slices = rows
            query, place, _ = spread(slices, shape.answers)
            objects, ranks, step_of = (
                values.at[place].get(mode="clip") for values in (asked.targets, data.ranks, data.step_of)
            )
            nll = model.nll(past, subjects, relations, Truths(query, objects, ranks), shape.block)
            return jnp.sum(jnp.where((query < len(subjects)) & (step_of == index), nll, 0))

        loss = sum_over_blocks(block, (subjects, relations, slices), shape.blocks, mask=mask)
        count = data.counts[index]
        return loss / count, (count, nnx.state(model, FIXED))


def put_count_data(plan: CountPlan, tables: CountTables) -> CountStepData:
    """The plan on the default device, beside tables that are there."""
    return CountStepData(tables, *jax.device_put((plan.asked, plan.ranks, plan.step_of, plan.counts, plan.times)))
