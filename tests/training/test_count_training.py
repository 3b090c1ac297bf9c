"""Training of the counting model: its steps, their loss, and going on after an interruption."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import R, make_config, make_dataset

from geopol_tkg.checkpoint import flatten
from geopol_tkg.config import TrainConfig
from geopol_tkg.data.counts import CountSizes, CountTables
from geopol_tkg.data.dataset import with_inverses
from geopol_tkg.errors import DataError, UsageError
from geopol_tkg.models.registry import build_context
from geopol_tkg.training.counts import plan_count_steps
from geopol_tkg.training.loop import Standing, fit
from geopol_tkg.training.plan import MAX_SHAPES
from geopol_tkg.training.prepare import prepare

CONFIG = make_config("counts", half_lives=(1.0, 3.0), num_paths=3)
KEY = jax.random.key(7)
DATASET = make_dataset(size=300)


@functools.cache
def prepared(**settings):
    return prepare(
        DATASET,
        None,
        build_context(DATASET, None, CONFIG),
        model=CONFIG,
        config=TrainConfig(**{"batch_size": 0, "precision": "f32", "remat": False, **settings}),
    )


def loss_and_gradients(prepared, index, *, shape=None):
    plan, trainer, state, data = prepared
    shape = shape or plan.shapes[plan.shape_of[index]]
    arguments = (moved(state.parameters), state.statistics, data, np.int32(index), KEY, shape)
    (loss, (count, _)), gradients = _gradient(trainer)(*arguments)
    assert count == plan.counts[index]
    return float(loss), flatten(gradients)


@functools.cache
def _gradient(trainer):
    return jax.jit(jax.value_and_grad(trainer.loss, has_aux=True), static_argnums=5)


def moved(parameters):
    """Away from the zeros that training begins with."""
    leaves, structure = jax.tree.flatten(parameters)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32) for leaf in leaves])


def test_the_first_shape_is_that_of_the_most_meetings():
    """It tells whether a run fits into memory: few queries of the busy ask for more than many of others."""
    random, busy, others, facts = np.random.default_rng(0), 10, 3000, []
    for time in range(40):
        size, first, end = (500, 0, busy) if time % 2 else (1000, busy, others)
        columns = random.integers(first, end, size), random.integers(0, 40, size), random.integers(busy, others, size)
        facts.append(np.stack([*columns, np.full(size, time)], axis=1))
    facts = np.unique(np.concatenate(facts).astype(np.int32)[:, [3, 0, 1, 2]], axis=0)[:, [1, 2, 3, 0]]
    tables = CountTables.build(facts, num_entities=others, num_relations=40, half_lives=(1.0,))
    sizes = CountSizes(tables, num_relations=40)
    larger, smaller = plan_count_steps(facts, sizes=sizes, paths=None, num_relations=40, config=TrainConfig()).shapes
    assert larger.block.tiles > smaller.block.tiles
    assert larger.block.meetings > smaller.block.meetings
    assert larger.queries < smaller.queries


@pytest.mark.parametrize(
    "settings", [{}, {"batch_size": 16}, {"block_size": 16}, {"batch_size": 30, "block_size": 8}, {"train_window": 3}]
)
def test_every_training_query_is_asked_once_and_fits_its_shape(settings):
    plan = prepared(**settings).plan
    asked = []
    for start, count, time, shape in zip(plan.starts, plan.counts, plan.times, plan.shape_of, strict=True):
        assert count <= settings.get("batch_size", count)
        assert len(np.unique(plan.queries[start : start + count, :2], axis=0)) <= plan.shapes[shape].queries
        asked += [(*query, time) for query in plan.queries[start : start + count].tolist()]
    train = DATASET.facts_of("train")
    first = train[-1, 3] - settings["train_window"] if "train_window" in settings else train[0, 3]
    both = with_inverses(train[train[:, 3] > first], R)
    assert sorted(asked) == sorted(map(tuple, both.tolist()))
    assert len(plan.shapes) <= MAX_SHAPES
    assert all(shape.queries % shape.blocks == 0 for shape in plan.shapes)
    if "block_size" in settings:
        assert all(shape.queries // shape.blocks <= settings["block_size"] for shape in plan.shapes)


def test_one_training_timestamp_is_too_few():
    dataset = replace(DATASET, facts=DATASET.facts[DATASET.facts[:, 3] == 0])
    with pytest.raises(DataError, match="two timestamps"):
        prepare(dataset, None, build_context(dataset, None, CONFIG), model=CONFIG, config=TrainConfig(precision="f32"))


def test_blocks_padding_and_room_change_neither_loss_nor_gradients():
    whole, blocked = prepared(), prepared(block_size=16)
    index = int(np.argmax(whole.plan.counts))
    shape, blocks = (part.plan.shapes[part.plan.shape_of[index]] for part in (whole, blocked))
    assert shape.blocks == 1 < blocks.blocks
    room = type(shape.block)(*(2 * size for size in blocks.block))
    larger = type(blocks)(2 * blocks.queries, 2 * blocks.blocks, 2 * blocks.answers, room)
    loss, gradients = loss_and_gradients(whole, index)
    other, other_gradients = loss_and_gradients(blocked, index, shape=larger)
    assert other == pytest.approx(loss, rel=1e-5)
    for name, array in gradients.items():
        np.testing.assert_allclose(other_gradients[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_steps_of_a_timestamp_have_its_loss_together():
    whole, parts = prepared(), prepared(batch_size=16)
    index = int(np.argmax(whole.plan.counts))
    own = np.flatnonzero(parts.plan.times == whole.plan.times[index])
    assert len(own) > 1
    losses = [loss_and_gradients(parts, i)[0] for i in own]
    mean = np.average(losses, weights=parts.plan.counts[own])
    assert mean == pytest.approx(loss_and_gradients(whole, index)[0], rel=1e-5)


def run(*, config=None, standing=None, state=None, should_stop=lambda: None):
    plan, trainer, fresh, data = prepared(batch_size=16, lr=0.02)
    return list(
        fit(
            trainer,
            state or jax.tree.map(jnp.copy, fresh),
            plan=plan,
            data=data,
            config=config or TrainConfig(epochs=3),
            evaluate=lambda state: {"mrr": 0.5},
            standing=standing or Standing(),
            should_stop=should_stop,
            on_step=lambda done: None,
        )
    )


def test_training_lowers_the_loss_and_goes_on_after_an_interruption():
    whole = run()
    assert whole[-1].loss < whole[0].loss - 0.05
    asked = iter(range(1000))
    enough = len(prepared(batch_size=16, lr=0.02).plan) + 4
    stopped = run(should_stop=lambda: "interrupted" if next(asked) >= enough else None)[-1]
    assert stopped.standing.epoch == 1
    assert stopped.standing.step_in_epoch > 0
    rest = run(standing=stopped.standing, state=stopped.state)
    for name, array in flatten(whole[-1].state.parameters).items():
        np.testing.assert_array_equal(array, flatten(rest[-1].state.parameters)[name], err_msg=name)
    assert [result.loss for result in rest] == [result.loss for result in whole[1:]]


@pytest.mark.parametrize("setting", [{"num_negatives": 5}, {"label_smoothing": 0.1}])
def test_what_concerns_networks_is_refused(setting):
    (name,) = setting
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} concerns networks"):
        prepared(**setting)
