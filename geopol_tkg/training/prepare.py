"""From a dataset and settings to the steps of an epoch, what they read, and the state they start from."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from geopol_tkg.config import ModelConfig, TrainConfig
from geopol_tkg.data.countries import Countries
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.history import HistoryVocabulary
from geopol_tkg.data.static_graph import StaticGraph
from geopol_tkg.errors import UsageError
from geopol_tkg.models.count_forecaster import CountContext
from geopol_tkg.models.registry import Context
from geopol_tkg.training.counts import CountTrainer, plan_count_steps, put_count_data
from geopol_tkg.training.plan import Plan, plan_steps
from geopol_tkg.training.step import (
    LossSettings,
    Trainer,
    TrainState,
    make_optimiser,
    make_trainer,
    put_step_data,
    start,
)


class Prepared(NamedTuple):
    """All that training starts from; ``data`` is the plan on the device."""

    plan: Plan
    trainer: Trainer
    state: TrainState
    data: Any


def prepare(
    dataset: Dataset, history: HistoryVocabulary | None, context: Context, *, model: ModelConfig, config: TrainConfig
) -> Prepared:
    """Plan the epoch and build the trainer of a model.

    Args:
        config: resolved, with no ``auto`` left.

    Raises:
        DataError: fewer than two training timestamps.
        UsageError: settings that contradict each other.
    """
    if isinstance(context, CountContext):
        return _counts(dataset, context, model, config)
    assert history is not None
    plan = plan_steps(
        dataset.facts_through(config.through),
        snapshots=context.snapshots,
        history=history,
        history_length=model.history_length,
        batch_size=config.batch_size,
        seed=config.seed,
        block_size=config.block_size,
        train_window=config.train_window,
        sampled=config.num_negatives > 0,
        count_sizes=None if context.counts is None else context.counts.sizes,
    )
    trainer, state = make_trainer(
        model,
        config,
        compute_dtype=jnp.bfloat16 if config.precision == "bf16" else jnp.float32,
        remat=bool(config.remat),
        steps_per_epoch=len(plan),
        static_graph=StaticGraph.from_labels(dataset.entities) if model.num_words else None,
        countries=_countries(dataset, model),
    )
    data = put_step_data(
        plan,
        context.snapshots,
        history,
        num_negatives=config.num_negatives,
        tables=None if context.counts is None else context.counts.tables,
    )
    return Prepared(plan, trainer, state, data)


def _counts(dataset: Dataset, context: CountContext, model: ModelConfig, config: TrainConfig) -> Prepared:
    for name, value in (("--num-negatives", config.num_negatives), ("--label-smoothing", config.label_smoothing)):
        if value:
            raise UsageError(f"{name} concerns networks: --model counts sums over all entities at no cost")
    plan = plan_count_steps(
        dataset.facts_through(config.through),
        sizes=context.sizes,
        paths=context.paths,
        num_relations=dataset.num_relations,
        config=config,
    )
    optimiser = make_optimiser(config, len(plan))
    graphdef, state = start(model, optimiser, seed=config.seed, countries=_countries(dataset, model))
    trainer = CountTrainer(graphdef, optimiser, LossSettings.of(config), jnp.float32, False)
    return Prepared(plan, trainer, state, put_count_data(plan, context.tables))


def _countries(dataset: Dataset, model: ModelConfig) -> Countries | None:
    return Countries.from_labels(dataset.entities, entity_kind=dataset.entity_kind) if model.num_countries else None
