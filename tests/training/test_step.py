"""The optimiser step: both tasks, both directions, padding, precision, memory."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import R, make_config, make_dataset

from geopol_tkg.checkpoint import flatten
from geopol_tkg.config import TrainConfig
from geopol_tkg.data.dataset import with_inverses
from geopol_tkg.data.history import build_for
from geopol_tkg.data.snapshots import Snapshots
from geopol_tkg.errors import DataError
from geopol_tkg.training.plan import MAX_SHAPES, plan_steps
from geopol_tkg.training.step import make_trainer, put_step_data

KEY = jax.random.key(7)


def prepare(config, **settings):
    """Trainer, a state of one's own, plan and data; built and compiled once for the same arguments."""
    trainer, state, plan, data = _prepare(config, **settings)
    return trainer, jax.tree.map(jnp.copy, state), plan, data


@functools.cache
def _prepare(config, *, batch_size=0, compute_dtype=jnp.float32, remat=False, size=120, num_timestamps=99):
    dataset = make_dataset(size=size)
    dataset = replace(dataset, facts=dataset.facts[dataset.facts[:, 3] < num_timestamps])
    history = build_for(dataset, window=config.history_window)
    snapshots = Snapshots.build(dataset.facts, num_relations=R, model_type=config.model_type)
    plan = plan_steps(
        dataset.facts_of("train"),
        snapshots=snapshots,
        history=history,
        history_length=config.history_length,
        batch_size=batch_size,
        seed=0,
    )
    trainer, state = make_trainer(config, TrainConfig(), compute_dtype=compute_dtype, remat=remat)
    return trainer, state, plan, put_step_data(plan, snapshots, history)


def loss_and_gradients(trainer, state, plan, data, index, *, shape=None):
    shape = shape or plan.shapes[plan.shape_of[index]]
    gradient = jax.value_and_grad(trainer.loss, has_aux=True)
    (loss, _), gradients = jax.jit(gradient, static_argnums=5)(
        state.parameters, state.statistics, data, jnp.int32(index), KEY, shape
    )
    return float(loss), flatten(gradients)


@pytest.mark.parametrize("batch_size", [0, 5, 16])
def test_every_training_query_is_asked_once_and_no_step_mixes_times(batch_size):
    dataset = make_dataset()
    _, _, plan, _ = prepare(make_config(), batch_size=batch_size)
    asked = []
    for start, count, time in zip(plan.starts, plan.counts, plan.times, strict=True):
        assert count <= batch_size or not batch_size
        asked += [(*query, time) for query in plan.queries[start : start + count].tolist()]
    train = dataset.facts_of("train")
    both = with_inverses(train[train[:, 3] > train[0, 3]], R)
    assert sorted(asked) == sorted(map(tuple, both.tolist()))
    if not batch_size:
        assert len(plan) == len(np.unique(both[:, 3]))


def test_windows_end_before_their_queries():
    dataset = make_dataset()
    _, _, plan, _ = prepare(make_config())
    times = np.append(dataset.timestamps, -1)
    assert all((times[window] < time).all() for window, time in zip(plan.ordinals, plan.times, strict=True))
    assert (plan.ordinals[:, -1] >= 0).all()


def test_one_training_timestamp_is_too_few():
    with pytest.raises(DataError, match="two timestamps"):
        prepare(make_config(), num_timestamps=1)


@pytest.mark.parametrize(("model_type", "mode"), [("regcn", "multiply"), ("tirgn", "multiply"), ("tirgn", "exclude")])
def test_every_parameter_receives_a_gradient(model_type, mode):
    config = make_config(model_type, history_mask_mode=mode, history_window=0, dropout=0.0)
    prepared = prepare(config, size=500)
    _, gradients = loss_and_gradients(*prepared, len(prepared[2]) - 1)
    # a bias in front of a batch norm shifts nothing: its gradient is zero by mathematics
    without = [name for name in gradients if not np.abs(gradients[name]).max() > 1e-7]
    assert all(name.endswith(("conv_bias", "linear_bias")) and "decoder" in name for name in without), without
    assert "encoder/relation_gru/hidden_weight" not in without


@pytest.mark.parametrize("model_type", ["regcn", pytest.param("tirgn", marks=pytest.mark.slow)])
def test_padding_changes_neither_loss_nor_gradients(model_type):
    prepared = prepare(make_config(model_type, dropout=0.0))
    plan = prepared[2]
    index = len(plan) - 1
    loss, gradients = loss_and_gradients(*prepared, index)
    padded_loss, padded_gradients = loss_and_gradients(*prepared, index, shape=padded(plan, index))
    assert loss == pytest.approx(padded_loss, rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, padded_gradients[name], atol=1e-5, err_msg=name)


def test_padding_changes_neither_loss_nor_statistics_of_tirgn():
    trainer, state, plan, data = prepare(make_config("tirgn", dropout=0.0))
    index = len(plan) - 1
    own, larger = (
        jax.jit(trainer.loss, static_argnums=5)(state.parameters, state.statistics, data, jnp.int32(index), KEY, shape)
        for shape in (plan.shapes[plan.shape_of[index]], padded(plan, index))
    )
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(larger), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5)


def padded(plan, index):
    """A larger shape than a step needs."""
    own = plan.shapes[plan.shape_of[index]]
    return own._replace(queries=own.queries + 24, object_history=own.object_history + 64)


@functools.cache
def one_step(model_type, *, compute_dtype=jnp.float32, remat=False):
    """Loss, parameters and temporary bytes of one optimiser step of a network large enough to tell."""
    config = make_config(model_type, embedding_dim=64, num_channels=50, history_length=7)
    trainer, state, plan, data = prepare(config, compute_dtype=compute_dtype, remat=remat, size=2000)
    lowered = trainer.step.lower(trainer, state, data, jnp.int32(4), KEY, shape=plan.shapes[0])
    compiled = lowered.compile()
    after = compiled(state, data, jnp.int32(4), KEY)
    loss = float(after.loss_sum) / int(after.query_count)
    return loss, flatten(after.parameters), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("model_type", [pytest.param("regcn", marks=pytest.mark.slow), "tirgn"])
def test_remat_is_the_same_function_in_less_memory(model_type):
    loss, parameters, memory = one_step(model_type)
    remat_loss, remat_parameters, remat_memory = one_step(model_type, remat=True)
    assert remat_loss == pytest.approx(loss, rel=1e-6)
    for name, array in parameters.items():  # Adam's first step is lr * sign(gradient)
        assert np.mean(np.abs(array - remat_parameters[name]) > 1e-4) < 0.01, name
    assert remat_memory < memory


def saved_bytes(model_type, compute_dtype):
    """Bytes that the forward pass keeps for the backward pass.

    Not ``memory_analysis()``: on a CPU, XLA widens bf16 products to float32 in temporaries of its own.
    """
    config = make_config(model_type, embedding_dim=64, num_channels=50)
    trainer, state, plan, data = prepare(config, compute_dtype=compute_dtype, size=2000)

    def pullback(parameters):
        arguments = (state.statistics, data, jnp.int32(4), KEY, plan.shapes[0])
        return jax.vjp(lambda p: trainer.loss(p, *arguments)[0], parameters)[1]

    kept = jax.tree.leaves(jax.eval_shape(pullback, state.parameters))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept if leaf.dtype != KEY.dtype)


@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_bf16_keeps_less_for_the_backward_pass(model_type):
    assert saved_bytes(model_type, jnp.bfloat16) < 0.8 * saved_bytes(model_type, jnp.float32)


@pytest.mark.parametrize("model_type", [pytest.param("regcn", marks=pytest.mark.slow), "tirgn"])
def test_bf16_has_the_same_loss_and_float32_parameters(model_type):
    loss, _, _ = one_step(model_type)
    bf16_loss, parameters, _ = one_step(model_type, compute_dtype=jnp.bfloat16)
    assert bf16_loss == pytest.approx(loss, rel=0.02)
    assert bf16_loss != loss
    assert all(array.dtype == np.float32 for array in parameters.values())


def test_a_run_compiles_once_per_shape():
    trainer, state, plan, data = prepare(make_config("regcn"), batch_size=6)
    before = trainer.step._cache_size()
    for index in range(len(plan)):
        state = trainer.step(state, data, jnp.int32(index), KEY, shape=plan.shapes[plan.shape_of[index]])
    assert trainer.step._cache_size() - before == len(plan.shapes) <= MAX_SHAPES
    assert int(state.step) == len(plan)
    assert int(state.query_count) == plan.counts.sum()
