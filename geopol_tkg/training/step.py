"""The jitted optimiser step: one evolution, the queries of one timestamp, both tasks."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig, TrainConfig
from geopol_tkg.data.history import HistoryVocabulary
from geopol_tkg.data.snapshots import Snapshots
from geopol_tkg.data.static_graph import StaticGraph
from geopol_tkg.models.evolution import Window
from geopol_tkg.models.graph import GraphArrays
from geopol_tkg.models.layers import DTypeLike, split_key
from geopol_tkg.models.network import Network, Queries, build_network, history_mask, mixture_nll
from geopol_tkg.models.static_graph import set_static_graph
from geopol_tkg.training.plan import StepPlan, StepShape

FIXED = nnx.Not(nnx.Param)


class TrainState(NamedTuple):
    """All that changes from step to step."""

    parameters: Any  # nnx.State of nnx.Param
    statistics: Any  # nnx.State of all else: nnx.BatchStat, and the static graph's edges
    optimiser: Any
    step: Array  # int32, optimiser steps so far
    loss_sum: Array  # of the epoch, weighted by queries
    query_count: Array  # of the epoch
    failed_step: Array  # int32, the first plan step of the epoch with a non-finite loss; -1 = none


class StepData(NamedTuple):
    """The plan, the snapshots and the history vocabulary on the device."""

    graph: GraphArrays
    object_history: Array  # int32 [h]
    relation_history: Array  # int32 [h]
    queries: Array  # int32 [q, 3]
    object_slices: Array  # int32 [q, 2]
    relation_slices: Array  # int32 [q, 2]
    starts: Array  # int32 [s]
    counts: Array  # int32 [s]
    times: Array  # int32 [s]
    ordinals: Array  # int32 [s, k]


@dataclass(frozen=True)
class Trainer:
    """Settings that are compiled into a step.

    Attributes:
        graphdef: the network's structure.
        task_weight: share of the entity loss.
        static_weight: of the static constraint, where there is a static graph.
        compute_dtype: of matrix products and messages; parameters, statistics and losses are float32.
        remat: recompute each snapshot's evolution in the backward pass.
    """

    graphdef: nnx.GraphDef[Network]
    optimiser: optax.GradientTransformation
    task_weight: float
    static_weight: float
    compute_dtype: DTypeLike
    remat: bool

    def loss(
        self, parameters: Any, statistics: Any, data: StepData, index: Array, key: Array, shape: StepShape
    ) -> tuple[Array, tuple[Array, Any]]:
        """Mean loss of a step; beside it the number of queries and the new running statistics."""
        network = nnx.merge(self.graphdef, parameters, statistics, copy=True)
        evolve_key, entity_key, relation_key = split_key(key, 3)
        window = Window(data.graph, data.ordinals[index])
        dtype = self.compute_dtype
        evolved = network.encoder(window, shape.window, key=evolve_key, dtype=dtype, remat=self.remat)
        facts, entity_queries, relation_queries = _queries(network, data, index, shape)
        entity = network.entity_mixture(evolved, entity_queries, key=entity_key, dtype=dtype)
        relation = network.relation_mixture(evolved, relation_queries, key=relation_key, dtype=dtype)
        loss = self.task_weight * mixture_nll(entity, facts[:, 2])
        loss += (1 - self.task_weight) * mixture_nll(relation, facts[:, 1])
        count = data.counts[index]
        mean = jnp.sum(jnp.where(entity_queries.mask, loss, 0)) / count
        return mean + self.static_weight * evolved.drift, (count, nnx.state(network, FIXED))

    @partial(jax.jit, static_argnames=("self", "shape"), donate_argnames=("state",))
    def step(self, state: TrainState, data: StepData, index: Array, key: Array, *, shape: StepShape) -> TrainState:
        """One optimiser step on plan step ``index``; ``key`` is the run's, folded with the step count."""
        step_key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(self.loss, has_aux=True)
        (loss, (count, statistics)), gradients = gradient(
            state.parameters, state.statistics, data, index, step_key, shape
        )
        updates, optimiser = self.optimiser.update(gradients, state.optimiser, state.parameters)
        failed = (state.failed_step < 0) & ~jnp.isfinite(loss)
        return TrainState(
            parameters=optax.apply_updates(state.parameters, updates),
            statistics=statistics,
            optimiser=optimiser,
            step=state.step + 1,
            loss_sum=state.loss_sum + loss * count,
            query_count=state.query_count + count,
            failed_step=jnp.where(failed, index, state.failed_step),
        )


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Clipped Adam with L2 added to the gradient (torch's Adam, not AdamW), as published."""
    clip = [optax.clip_by_global_norm(config.grad_clip)] if config.grad_clip else []
    return optax.chain(*clip, optax.add_decayed_weights(config.weight_decay), optax.adam(config.lr))


def make_trainer(
    model: ModelConfig,
    config: TrainConfig,
    *,
    compute_dtype: DTypeLike,
    remat: bool,
    static_graph: StaticGraph | None = None,
) -> tuple[Trainer, TrainState]:
    """A trainer and the state it starts from, seeded by ``config.seed``.

    Args:
        static_graph: of ``model.num_words`` words; needed where there are some.
    """
    network = build_network(model, key=jax.random.key(config.seed))
    if static_graph is not None:
        set_static_graph(network, static_graph)
    graphdef, parameters, statistics = nnx.split(network, nnx.Param, FIXED)
    optimiser = make_optimiser(config)
    trainer = Trainer(graphdef, optimiser, config.task_weight, config.static_weight, compute_dtype, remat)
    return trainer, initial_state(parameters, statistics, optimiser.init(parameters), step=0)


def initial_state(parameters: Any, statistics: Any, optimiser: Any, *, step: int) -> TrainState:
    """State at the start of an epoch."""
    return TrainState(parameters, statistics, optimiser, jnp.int32(step), jnp.float32(0), jnp.int32(0), jnp.int32(-1))


def put_step_data(plan: StepPlan, snapshots: Snapshots, history: HistoryVocabulary) -> StepData:
    """Copy what the steps read to the default device."""
    host = (
        history.objects.targets,
        history.relations.targets,
        plan.queries,
        plan.object_slices,
        plan.relation_slices,
        plan.starts,
        plan.counts,
        plan.times,
        plan.ordinals,
    )
    return StepData(GraphArrays.put(snapshots), *(jnp.asarray(array) for array in host))


def _queries(network: Network, data: StepData, index: Array, shape: StepShape) -> tuple[Array, Queries, Queries]:
    """Facts [b, 3] of a step (inverses included), and both tasks' queries."""
    position = jnp.arange(shape.queries)
    mask = position < data.counts[index]
    row = jnp.where(mask, data.starts[index] + position, 0)
    facts, time = data.queries[row], data.times[index]
    sizes = (network.encoder.config.num_entities, 2 * network.encoder.config.num_relations)

    def seen(targets: Array, slices: Array, num_candidates: int, capacity: int) -> Array | None:
        if not network.uses_history:
            return None
        own = jnp.where(mask[:, None], slices[row], 0)
        return history_mask(targets, own, num_candidates=num_candidates, capacity=capacity)

    objects = seen(data.object_history, data.object_slices, sizes[0], shape.object_history)
    relations = seen(data.relation_history, data.relation_slices, sizes[1], shape.relation_history)
    return (
        facts,
        Queries(facts[:, 0], facts[:, 1], time, objects, mask),
        Queries(facts[:, 0], facts[:, 2], time, relations, mask),
    )
