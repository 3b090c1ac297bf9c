"""The jitted optimiser step: one evolution, the queries of one timestamp, both tasks."""

import functools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig, Optimiser, TrainConfig
from geopol_tkg.data.countries import Countries
from geopol_tkg.data.counts import CountTables
from geopol_tkg.data.history import HistoryVocabulary
from geopol_tkg.data.snapshots import Snapshots
from geopol_tkg.data.static_graph import StaticGraph
from geopol_tkg.errors import UsageError
from geopol_tkg.models.counts import set_countries
from geopol_tkg.models.decoders import Queries
from geopol_tkg.models.evolution import Window
from geopol_tkg.models.graph import GraphArrays, connected_entities
from geopol_tkg.models.layers import DTypeLike, split_key
from geopol_tkg.models.network import Answers, History, Network, Prior
from geopol_tkg.models.past import past_of
from geopol_tkg.models.registry import build_model
from geopol_tkg.models.sampling import Sample, draw, entries_of
from geopol_tkg.models.static_graph import set_static_graph
from geopol_tkg.training.plan import Asked, StepPlan, StepShape, TaskShape

FIXED = nnx.Not(nnx.Param)


class TrainState(NamedTuple):
    """All that changes from step to step."""

    parameters: Any  # nnx.State of nnx.Param
    statistics: Any  # nnx.State of all else: nnx.BatchStat, and the static graph's edges
    optimiser: Any
    step: Array  # int32, optimiser steps so far
    loss_sum: Array  # of the epoch, weighted by queries
    query_count: Array  # of the epoch
    failed_step: Array  # int32, the epoch's first plan step without a finite loss and gradient; -1 = none
    position: Array  # int32, steps of the epoch done


class StepData(NamedTuple):
    """The plan, the snapshots and the history vocabulary on the device."""

    graph: GraphArrays
    object_history: Array  # int32 [h]
    relation_history: Array  # int32 [h]
    object_previous: Array | None  # int32 [h], see geopol_tkg.models.network.History; for a sampled softmax
    entity: Asked
    relation: Asked
    counts: Array  # int32 [s]
    times: Array  # int32 [s]
    ordinals: Array  # int32 [s, k]
    tables: CountTables | None = None  # of a network with a counting model


class LossSettings(NamedTuple):
    """The settings of :class:`geopol_tkg.config.TrainConfig` of these names: what a loss is compiled with."""

    task_weight: float
    static_weight: float
    num_negatives: int
    label_smoothing: float

    @classmethod
    def of(cls, config: TrainConfig) -> "LossSettings":
        return cls(*(getattr(config, name) for name in cls._fields))


@dataclass(frozen=True)
class Trainer:
    """Settings that are compiled into a step; equal ones share compiled programs.

    Attributes:
        graphdef: the network's structure.
        config: weights of the losses, sample size, label smoothing.
        compute_dtype: of matrix products and messages; parameters, statistics and losses are float32.
        remat: recompute each snapshot's evolution in the backward pass.
    """

    graphdef: nnx.GraphDef[Any]
    optimiser: optax.GradientTransformation
    config: LossSettings
    compute_dtype: DTypeLike
    remat: bool

    @abstractmethod
    def loss(
        self, parameters: Any, statistics: Any, data: Any, index: Array, key: Array, shape: Any
    ) -> tuple[Array, tuple[Array, Any]]:
        """Mean loss of a plan step; beside it the number of queries and the new running statistics."""

    @functools.partial(jax.jit, static_argnames=("self", "shape"), donate_argnames=("state",))
    def step(self, state: TrainState, data: Any, order: Array, key: Array, *, shape: Any) -> TrainState:
        """The optimiser step that comes next.

        Args:
            order: int32 [s], the plan's steps in the order of the epoch.
            key: the run's; folded with the step count.
            data, shape: the plan on the device, and the shape of the step that comes next.
        """
        index = order[state.position]
        step_key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(self.loss, has_aux=True)
        # a GPU would round operands of float32 products to TF32
        with jax.default_matmul_precision("highest" if self.compute_dtype == jnp.float32 else "default"):
            (loss, (count, statistics)), gradients = gradient(
                state.parameters, state.statistics, data, index, step_key, shape
            )
        with jax.named_scope("optimiser"):
            updates, optimiser = self.optimiser.update(gradients, state.optimiser, state.parameters)
            parameters = optax.apply_updates(state.parameters, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))
        failed = (state.failed_step < 0) & ~finite
        return TrainState(
            parameters=parameters,
            statistics=statistics,
            optimiser=optimiser,
            step=state.step + 1,
            loss_sum=state.loss_sum + loss * count,
            query_count=state.query_count + count,
            failed_step=jnp.where(failed, index, state.failed_step),
            position=state.position + 1,
        )


class NetworkTrainer(Trainer):
    """Steps of a network that evolves: one evolution, both tasks."""

    def loss(
        self, parameters: Any, statistics: Any, data: StepData, index: Array, key: Array, shape: StepShape
    ) -> tuple[Array, tuple[Array, Any]]:
        network = nnx.merge(self.graphdef, parameters, statistics, copy=True)
        evolve_key, entity_key, relation_key = split_key(key, 3)
        config, dtype, time = self.config, self.compute_dtype, data.times[index]
        queries, objects = _asked(data.entity, index, shape.entity)
        pairs, relations = _asked(data.relation, index, shape.relation)
        window, sample = Window(data.graph, data.ordinals[index]), None
        if config.num_negatives:
            window, sample = _sampled(network, data, window, queries, pairs, shape, config, key)
            queries = queries._replace(first=sample.number(queries.first))
            pairs = pairs._replace(first=sample.number(pairs.first), second=sample.number(pairs.second))
        with jax.named_scope("evolution"):
            evolved = network.encoder(window, shape.window, key=evolve_key, dtype=dtype, remat=self.remat)
        options: dict[str, Any] = {"dtype": dtype, "label_smoothing": config.label_smoothing}
        prior = None
        if network.counts is not None:
            assert data.tables is not None
            assert shape.counts is not None
            prior = Prior(past_of(data.tables, time, network.counts.config.half_lives), shape.counts)
        with jax.named_scope("entity_task"):
            entity = network.nll(
                network.entity_task(evolved, time),
                queries,
                objects,
                History(data.object_history, shape.entity.history, data.object_previous, prior),
                key=entity_key,
                num_blocks=shape.entity.blocks,
                sample=sample,
                **options,
            )
        count = data.counts[index]
        loss = config.task_weight * entity
        if config.task_weight < 1:
            with jax.named_scope("relation_task"):
                relation = network.nll(
                    network.relation_task(evolved, time),
                    pairs,
                    relations,
                    History(data.relation_history, shape.relation.history),
                    key=relation_key,
                    num_blocks=shape.relation.blocks,
                    **options,
                )
            loss += (1 - config.task_weight) * relation
        return loss / count + config.static_weight * evolved.drift, (count, nnx.state(network, FIXED))


def learning_rate(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by the optimiser steps done: warm-up, then constant or a cosine to 0 at the last epoch.

    Raises:
        UsageError: the warm-up is as long as the training.
    """
    warmup, total = round(config.warmup_epochs * steps_per_epoch), config.epochs * steps_per_epoch
    if warmup >= total:
        raise UsageError(f"--warmup-epochs {config.warmup_epochs:g} leaves nothing of --epochs {config.epochs}")
    return _schedule(config.lr, warmup, total if config.schedule == "cosine" else None)


@functools.lru_cache(maxsize=16)
def _schedule(rate: float, warmup: int, total: int | None) -> optax.Schedule:
    first = 0.0 if warmup else rate
    if total is None:
        return optax.warmup_constant_schedule(first, rate, warmup)
    return optax.warmup_cosine_decay_schedule(first, rate, warmup, total)


def make_optimiser(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Clipped Adam, with L2 added to the gradient (as torch's Adam, and as published) or decoupled (AdamW)."""
    schedule = learning_rate(config, steps_per_epoch)
    return _optimiser(config.optimiser, schedule, config.grad_clip, config.weight_decay)


@functools.lru_cache(maxsize=16)  # the same object for the same settings, as equal trainers need
def _optimiser(
    name: Optimiser, schedule: optax.Schedule, grad_clip: float, weight_decay: float
) -> optax.GradientTransformation:
    clip = [optax.clip_by_global_norm(grad_clip)] if grad_clip else []
    if name == "adamw":
        return optax.chain(*clip, optax.adamw(schedule, weight_decay=weight_decay))
    return optax.chain(*clip, optax.add_decayed_weights(weight_decay), optax.adam(schedule))


def make_trainer(
    model: ModelConfig,
    config: TrainConfig,
    *,
    compute_dtype: DTypeLike,
    remat: bool,
    steps_per_epoch: int = 1,
    static_graph: StaticGraph | None = None,
    countries: Countries | None = None,
) -> tuple[Trainer, TrainState]:
    """A trainer and the state it starts from, seeded by ``config.seed``.

    Args:
        steps_per_epoch: what the learning rate's schedule counts epochs by.
        static_graph: of ``model.num_words`` words; needed where there are some.
        countries: ``model.num_countries`` of them; needed where there are some.

    Raises:
        UsageError: sampled negatives with a static graph, whose constraint is on every entity, or with
            label smoothing, which gives every entity a share.
    """
    for name, value in (("--static-graph", model.num_words), ("--label-smoothing", config.label_smoothing)):
        if config.num_negatives and value:
            raise UsageError(f"{name} concerns every entity: it cannot be used with --num-negatives")
    optimiser = make_optimiser(config, steps_per_epoch)
    graphdef, state = start(model, optimiser, seed=config.seed, static_graph=static_graph, countries=countries)
    return NetworkTrainer(graphdef, optimiser, LossSettings.of(config), compute_dtype, remat), state


def start(
    model: ModelConfig,
    optimiser: optax.GradientTransformation,
    *,
    seed: int,
    static_graph: StaticGraph | None = None,
    countries: Countries | None = None,
) -> tuple[nnx.GraphDef[Any], TrainState]:
    """Structure of a fresh model, and the state that its training starts from."""
    edges = None if static_graph is None else static_graph.edges
    of_entity = None if countries is None else countries.of_entity
    state = _initialise(np.uint32(seed % 2**32), edges, of_entity, model=model, optimiser=optimiser)
    return _structure(model), state


@functools.lru_cache(maxsize=16)
def _structure(model: ModelConfig) -> nnx.GraphDef[Any]:
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build_model(model, key=jax.random.key(0))))
    return graphdef


@functools.partial(jax.jit, static_argnames=("model", "optimiser"))
def _initialise(
    seed: Array,
    edges: Array | None,
    countries: Array | None,
    *,
    model: ModelConfig,
    optimiser: optax.GradientTransformation,
) -> TrainState:
    network = build_model(model, key=jax.random.key(seed))
    if edges is not None:
        set_static_graph(network, edges)
    if countries is not None:
        set_countries(network, countries)
    _, parameters, statistics = nnx.split(network, nnx.Param, FIXED)
    return initial_state(parameters, statistics, optimiser.init(parameters), step=jnp.int32(0))


def initial_state(parameters: Any, statistics: Any, optimiser: Any, *, step: Array) -> TrainState:
    """State at the start of an epoch."""
    return TrainState(
        parameters,
        statistics,
        optimiser,
        step=step,
        loss_sum=jax.device_put(np.float32(0)),
        query_count=jax.device_put(np.int32(0)),
        failed_step=jax.device_put(np.int32(-1)),
        position=jax.device_put(np.int32(0)),
    )


def put_step_data(
    plan: StepPlan,
    snapshots: Snapshots,
    history: HistoryVocabulary,
    *,
    num_negatives: int = 0,
    tables: CountTables | None = None,
) -> StepData:
    """Copy what the steps read to the default device; ``tables`` of counts are there already."""
    host = (
        history.objects.targets,
        history.relations.targets,
        history.objects.previous() if num_negatives else None,
        plan.entity,
        plan.relation,
        plan.counts,
        plan.times,
        plan.ordinals,
    )
    return StepData(GraphArrays.put(snapshots), *jax.device_put(host))._replace(tables=tables)


def rows_of(asked: Asked, index: Array, size: int) -> tuple[Array, Array, Array]:
    """Of a step's queries, padded to ``size``: their places int32 [b], slices of answers [b, 2], which are real [b]."""
    position = jnp.arange(size)
    mask = position < asked.counts[index]
    row = jnp.where(mask, asked.starts[index] + position, 0)
    return row, jnp.where(mask[:, None], asked.answers[row], 0), mask


def _asked(asked: Asked, index: Array, shape: TaskShape) -> tuple[Queries, Answers]:
    """Queries of a step, and their answers."""
    row, slices, mask = rows_of(asked, index, shape.queries)
    first, second = asked.pairs[row].T
    seen = jnp.where(mask[:, None], asked.seen[row], 0)
    queries = Queries(first, second, seen, slices[:, 1] - slices[:, 0], jnp.arange(shape.queries))
    return queries, Answers(asked.targets, slices, shape.answers)


def _sampled(
    network: Network,
    data: StepData,
    window: Window,
    queries: Queries,
    pairs: Queries,
    shape: StepShape,
    config: LossSettings,
    key: Array,
) -> tuple[Window, Sample]:
    """A sample of entities, and a window that evolves no others than a step reads, where that is fewer."""
    num_entities = network.encoder.config.num_entities
    count = min(config.num_negatives, num_entities)
    drawn, log_size = draw(num_entities, count, key=jax.random.fold_in(key, 1))
    size = shape.rows + count
    if size >= num_entities:
        return window, Sample(drawn, log_size, lambda entities: entities)
    connected = connected_entities(data.graph, window.ordinals, shape.window, num_entities=num_entities)
    read = [connected.ravel(), pairs.first, pairs.second, drawn]
    if network.uses_history:
        entries = entries_of(data.object_history, queries.seen, capacity=shape.entity.blocks * shape.entity.history)
        read.append(jnp.where(entries.first, entries.target, num_entities))
    rows = jnp.unique(jnp.concatenate(read), size=size, fill_value=num_entities)

    def number(entities: Array) -> Array:
        return jnp.searchsorted(rows, entities).astype(jnp.int32)

    return window._replace(rows=rows), Sample(number(drawn), log_size, number)
