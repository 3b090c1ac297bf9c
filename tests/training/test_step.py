"""The optimiser step: both tasks, both directions, padding, precision, memory."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import STATIC_GRAPH, N, R, make_config, make_dataset

from geopol_tkg.checkpoint import flatten
from geopol_tkg.config import TrainConfig
from geopol_tkg.data.dataset import with_inverses
from geopol_tkg.data.history import HistoryVocabulary, build_for
from geopol_tkg.data.snapshots import Snapshots
from geopol_tkg.errors import DataError, UsageError
from geopol_tkg.models.graph import GraphArrays, cut_snapshot
from geopol_tkg.models.sampling import Sample, draw
from geopol_tkg.training.loop import Standing, fit
from geopol_tkg.training.plan import MAX_SHAPES, StepShape, TaskShape, plan_steps, two_levels
from geopol_tkg.training.step import learning_rate, make_optimiser, make_trainer, put_step_data

KEY = jax.random.key(7)


def prepare(config, **settings):
    """Trainer, a state of one's own, plan and data; built once for the same arguments."""
    trainer, state, plan, data = _prepare(config, **settings)
    return trainer, jax.tree.map(jnp.copy, state), plan, data


@functools.cache
def _prepare(config, *, compute_dtype=jnp.float32, remat=False, size=120, **settings):
    train = TrainConfig(**{"batch_size": 0, **settings})
    plan, snapshots, history = _plan(config, size=size, **settings)
    trainer, state = make_trainer(config, train, compute_dtype=compute_dtype, remat=remat)
    return trainer, state, plan, put_step_data(plan, snapshots, history, num_negatives=train.num_negatives)


def plan_of(config, **settings):
    return _plan(config, **settings)[0]


def _plan(config, *, size=120, num_timestamps=99, **settings):
    settings = TrainConfig(**{"batch_size": 0, **settings})
    dataset = make_dataset(size=size)
    dataset = replace(dataset, facts=dataset.facts[dataset.facts[:, 3] < num_timestamps])
    history = build_for(dataset, window=config.history_window)
    snapshots = Snapshots.build(dataset.facts, num_relations=R, model_type=config.model_type)
    plan = plan_steps(
        dataset.facts_of("train"),
        snapshots=snapshots,
        history=history,
        history_length=config.history_length,
        batch_size=settings.batch_size,
        block_size=settings.block_size,
        train_window=settings.train_window,
        sampled=settings.num_negatives > 0,
        seed=0,
    )
    return plan, snapshots, history


@functools.partial(jax.jit, static_argnames=("trainer", "shape"))
def loss_of(trainer, state, data, index, *, shape):
    return trainer.loss(state.parameters, state.statistics, data, index, KEY, shape)


@functools.partial(jax.jit, static_argnames=("trainer", "shape"))
def gradients_of(trainer, state, data, index, *, shape):
    gradient = jax.value_and_grad(trainer.loss, has_aux=True)
    return gradient(state.parameters, state.statistics, data, index, KEY, shape)


def loss_and_gradients(trainer, state, plan, data, index, *, shape=None):
    shape = shape or plan.shapes[plan.shape_of[index]]
    (loss, _), gradients = gradients_of(trainer, state, data, np.int32(index), shape=shape)
    return float(loss), flatten(gradients)


@pytest.mark.parametrize("batch_size", [0, 5, 16])
def test_every_training_query_is_asked_once_and_no_step_mixes_times(batch_size):
    dataset = make_dataset()
    plan = plan_of(make_config(), batch_size=batch_size)
    asked = []
    for start, count, time in zip(plan.starts, plan.counts, plan.times, strict=True):
        assert count <= batch_size or not batch_size
        asked += [(*query, time) for query in plan.queries[start : start + count].tolist()]
    train = dataset.facts_of("train")
    both = with_inverses(train[train[:, 3] > train[0, 3]], R)
    assert sorted(asked) == sorted(map(tuple, both.tolist()))
    if not batch_size:
        assert len(plan) == len(np.unique(both[:, 3]))


@pytest.mark.parametrize("batch_size", [0, 5])
def test_queries_that_differ_in_their_answer_alone_are_asked_once(batch_size):
    plan = plan_of(make_config(history_window=4), size=500, batch_size=batch_size)
    for task, columns in ((plan.entity, [0, 1, 2]), (plan.relation, [0, 2, 1])):
        assert len(task.pairs) < len(plan.queries)
        owners = np.repeat(np.arange(len(task.pairs)), task.answers[:, 1] - task.answers[:, 0])
        steps = np.repeat(np.arange(len(plan)), task.counts)
        assert len(np.unique(np.column_stack([steps, task.pairs]), axis=0)) == len(task.pairs)
        asked = np.column_stack([steps[owners], task.pairs[owners], task.targets]).tolist()
        facts = np.column_stack([np.repeat(np.arange(len(plan)), plan.counts), plan.queries[:, columns]]).tolist()
        assert sorted(asked) == sorted(facts)


@pytest.mark.parametrize(("train_window", "first"), [(1, 5), (2, 4), (99, 1)])
def test_a_train_window_keeps_the_last_steps_of_train_and_their_past(train_window, first):
    whole, plan = plan_of(make_config()), plan_of(make_config(), train_window=train_window)
    kept = whole.times >= first
    np.testing.assert_array_equal(plan.times, whole.times[kept])
    np.testing.assert_array_equal(plan.ordinals, whole.ordinals[kept])
    assert sorted(plan.queries.tolist()) == sorted(whole.queries[whole.starts[kept].min() :].tolist())


@pytest.mark.parametrize(
    ("sizes", "least_saved", "levels"),
    [
        ([90, 100, 10, 8], 162, [0, 0, 1, 1]),  # saves 180, and no other bound more
        ([90, 100, 10, 8], 181, [0, 0, 0, 0]),
        ([100, 100, 91, 91], 1, [0, 0, 0, 0]),  # less than a tenth
        ([7, 7], 0, [0, 0]),
    ],
)
def test_a_second_shape_must_save_enough(sizes, least_saved, levels):
    assert two_levels(np.array(sizes), least_saved=least_saved).tolist() == levels


def test_windows_end_before_their_queries():
    dataset = make_dataset()
    plan = plan_of(make_config())
    times = np.append(dataset.timestamps, -1)
    assert all((times[window] < time).all() for window, time in zip(plan.ordinals, plan.times, strict=True))
    assert (plan.ordinals[:, -1] >= 0).all()


@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_snapshots_are_cut_as_they_are_where_few_facts_end_a_dataset(model_type):
    crowded = [(s, s % 3, 9 + s, time) for time in range(8) for s in range(9)]
    facts = np.array([*crowded, *((s, 0, 10 + s, 8 + s) for s in range(3))], np.int32)
    snapshots = Snapshots.build(facts, num_relations=3, model_type=model_type)
    history = HistoryVocabulary.build(facts, num_entities=20, num_relations=3, window=0)
    plan = plan_steps(facts, snapshots=snapshots, history=history, history_length=3, batch_size=0, seed=0)
    graph = GraphArrays.put(snapshots)
    for ordinals, number in zip(plan.ordinals, plan.shape_of, strict=True):
        for ordinal in ordinals[ordinals >= 0]:
            shape = plan.shapes[number].window
            found = cut_snapshot(graph, ordinal, shape, num_entities=20, num_relations=3)
            for part, column in ((snapshots.connected, found.entity), (snapshots.members, found.member_entity)):
                start, end = part.starts[ordinal : ordinal + 2]
                own = part.columns[-1] if part is snapshots.members else part.columns[0]
                np.testing.assert_array_equal(column[: end - start], own[start:end])


def test_one_training_timestamp_is_too_few():
    with pytest.raises(DataError, match="two timestamps"):
        plan_of(make_config(), num_timestamps=1)


def quiet(model_type, **changes):
    """A small network without dropout: tests that use the same one share its programs."""
    return make_config(model_type, dropout=0.0, num_layers=1, **changes)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("regcn", {}),
        pytest.param("tirgn", {"history_mask_mode": "exclude", "history_window": 0}, marks=pytest.mark.slow),
    ],
)
def test_every_parameter_receives_a_gradient(model_type, changes):
    prepared = prepare(quiet(model_type, **changes), size=500)
    _, gradients = loss_and_gradients(*prepared, len(prepared[2]) - 1)
    # a bias in front of a batch norm shifts nothing: its gradient is zero by mathematics
    without = [name for name in gradients if not np.abs(gradients[name]).max() > 1e-7]
    assert all(name.endswith(("conv_bias", "linear_bias")) and "decoder" in name for name in without), without
    assert "encoder/relation_gru/hidden_weight" not in without


def test_relations_without_weight_are_not_scored():
    trainer, state, plan, data = prepare(quiet("regcn"), task_weight=1.0)
    _, (_, statistics) = loss_of(trainer, state, data, 0, shape=plan.shapes[plan.shape_of[0]])
    before, after = flatten(state.statistics), flatten(statistics)
    changed = {name.split("/")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"entity_decoder"}


@pytest.mark.parametrize("model_type", ["regcn", pytest.param("tirgn", marks=pytest.mark.slow)])
def test_padding_changes_neither_loss_nor_gradients(model_type):
    prepared = prepare(quiet(model_type), size=500)
    plan = prepared[2]
    index = len(plan) - 1
    loss, gradients = loss_and_gradients(*prepared, index)
    padded_loss, padded_gradients = loss_and_gradients(*prepared, index, shape=padded(plan, index))
    assert loss == pytest.approx(padded_loss, rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, padded_gradients[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_padding_changes_neither_loss_nor_statistics_of_tirgn():
    trainer, state, plan, data = prepare(quiet("tirgn"))
    index = len(plan) - 1
    own, larger = (
        loss_of(trainer, state, data, index, shape=shape)
        for shape in (plan.shapes[plan.shape_of[index]], padded(plan, index))
    )
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(larger), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5)


def padded(plan, index):
    """A larger shape than a step needs."""
    own = plan.shapes[plan.shape_of[index]]
    tasks = (TaskShape(task.queries + 24, 1, task.answers + 16, task.history + 64) for task in own[1:3])
    return StepShape(own.window, *tasks)


@pytest.mark.parametrize("model_type", ["regcn", pytest.param("tirgn", marks=pytest.mark.slow)])
def test_remat_is_the_same_function(model_type):
    config = quiet(model_type)
    prepared, other = prepare(config, size=500), prepare(config, size=500, remat=True)
    index = len(prepared[2]) - 1
    loss, gradients = loss_and_gradients(*prepared, index)
    remat_loss, remat_gradients = loss_and_gradients(*other, index)
    assert remat_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, remat_gradients[name], rtol=1e-4, atol=1e-6, err_msg=name)


@functools.cache
def one_step(model_type, *, compute_dtype=jnp.float32, remat=False):
    """Loss, parameters and temporary bytes of one optimiser step of a network large enough to tell."""
    config = make_config(model_type, embedding_dim=64, num_channels=50, history_length=7, num_layers=1)
    trainer, state, plan, data = prepare(config, compute_dtype=compute_dtype, remat=remat, size=2000)
    order = jnp.array([4], jnp.int32)
    compiled = trainer.step.lower(trainer, state, data, order, KEY, shape=plan.shapes[0]).compile()
    after = compiled(state, data, order, KEY)
    loss = float(after.loss_sum) / int(after.query_count)
    return loss, flatten(after.parameters), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_a_step_with_remat_needs_less_memory(model_type):
    assert one_step(model_type, remat=True)[2] < one_step(model_type)[2]


@pytest.mark.slow
def test_remat_lowers_memory_where_the_loop_over_snapshots_would_be_written_out():
    config = replace(make_config("regcn", embedding_dim=32, history_length=3, num_channels=1), num_entities=10_000)

    def temporary_bytes(remat):
        trainer, state, plan, data = prepare(config, remat=remat)
        lowered = trainer.step.lower(trainer, state, data, jnp.zeros(1, jnp.int32), KEY, shape=plan.shapes[0])
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(True) < 0.9 * temporary_bytes(False)


def test_float32_products_are_of_full_precision_on_every_device():
    trainer, state, plan, data = prepare(quiet("regcn"))
    traced = trainer.step.trace(trainer, state, data, jnp.zeros(1, jnp.int32), KEY, shape=plan.shapes[0])
    program = str(traced.jaxpr)
    assert program.count("dot_general[") > 10
    assert program.count("precision=") == program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 10


@functools.cache
def saved_bytes(config, size, **settings):
    """Bytes that the forward pass keeps for the backward pass.

    Not ``memory_analysis()``: on a CPU, XLA widens bf16 products to float32 in temporaries of its own.
    """
    trainer, state, plan, data = prepare(config, size=size, **settings)

    def pullback(parameters):
        arguments = (state.statistics, data, jnp.int32(4), KEY, plan.shapes[0])
        return jax.vjp(lambda p: trainer.loss(p, *arguments)[0], parameters)[1]

    kept = jax.tree.leaves(jax.eval_shape(pullback, state.parameters))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept if leaf.dtype != KEY.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_less_is_kept_for_the_backward_pass(model_type):
    wide = make_config(model_type, embedding_dim=64, num_channels=50)
    assert saved_bytes(wide, 2000, compute_dtype=jnp.bfloat16) < 0.8 * saved_bytes(wide, 2000)
    deep = make_config(model_type, embedding_dim=64, history_length=7, num_layers=1)
    assert saved_bytes(deep, 300, remat=True) < 0.97 * saved_bytes(deep, 300)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_bf16_has_the_same_loss_and_float32_parameters(model_type):
    loss, _, _ = one_step(model_type)
    bf16_loss, parameters, _ = one_step(model_type, compute_dtype=jnp.bfloat16)
    assert bf16_loss == pytest.approx(loss, rel=0.02)
    assert bf16_loss != loss
    assert all(array.dtype == np.float32 for array in parameters.values())


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_block_size_changes_nothing_but_rounding(model_type):
    """Dropout on: masks belong to a query's place in the step, batch norms see the whole step."""
    config = make_config(model_type, num_layers=1)
    outcomes = []
    for block_size in (1024, 16):
        trainer, state, plan, data = prepare(config, block_size=block_size, size=300)
        index = int(np.argmax(plan.counts))
        shape = plan.shapes[plan.shape_of[index]]
        assert (shape.entity.blocks == shape.relation.blocks == 1) == (block_size == 1024)
        (loss, (_, statistics)), gradients = gradients_of(trainer, state, data, index, shape=shape)
        outcomes.append((float(loss), flatten(statistics) | flatten(gradients)))
    (loss, arrays), (blocked_loss, blocked_arrays) = outcomes
    assert blocked_loss == pytest.approx(loss, rel=1e-5)
    for name, array in blocked_arrays.items():
        np.testing.assert_allclose(array, arrays[name], rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_memory_is_a_blocks_not_a_timestamps():
    def temporary_bytes(size):
        config = make_config("regcn", num_channels=50, num_layers=1)
        trainer, state, plan, data = prepare(config, size=size, block_size=64)
        order = jnp.zeros(1, jnp.int32)
        compiled = trainer.step.lower(trainer, state, data, order, KEY, shape=plan.shapes[0]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(6400) < 1.6 * temporary_bytes(800)


SAMPLED = [
    ("regcn", "multiply", 4, 1024),
    pytest.param("tirgn", "multiply", 4, 1024, marks=pytest.mark.slow),
    pytest.param("tirgn", "multiply", 0, 16, marks=pytest.mark.slow),
    pytest.param("tirgn", "exclude", 4, 16, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model_type", "mode", "window", "block_size"), SAMPLED)
def test_a_sample_of_all_entities_is_the_full_softmax(model_type, mode, window, block_size):
    """Slices of a window name a target more than once: each must count once."""
    config = quiet(model_type, history_mask_mode=mode, history_window=window)
    prepared = prepare(config, size=500)
    index = len(prepared[2]) - 1
    loss, gradients = loss_and_gradients(*prepared, index)
    sampled = prepare(config, size=500, num_negatives=N + 3, block_size=block_size)  # no more than there are
    sampled_loss, sampled_gradients = loss_and_gradients(*sampled, index)
    assert sampled_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(sampled_gradients[name], gradient, rtol=1e-3, atol=2e-5, err_msg=name)


def test_a_sample_estimates_the_partition_without_bias():
    logits = jax.random.normal(jax.random.key(1), (1, 50))
    target = jnp.array([7])

    def partition(key):
        drawn, log_size = draw(50, 8, key=key)
        sample = Sample(drawn, log_size, lambda ids: ids)
        return jnp.exp(logits[0, 7]) + jnp.sum(jnp.exp(sample.corrected(logits[:, drawn], target)))

    estimates = np.asarray(jax.vmap(partition)(jax.random.split(KEY, 20_000)), np.float64)
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - float(jnp.exp(logits).sum())) < 4 * error
    assert error < 0.01 * estimates.mean()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_entities_that_a_step_does_not_read_do_not_evolve(model_type):
    def lower(num_entities, rows=0):
        config = replace(quiet(model_type), num_entities=num_entities)
        trainer, state, plan, data = prepare(config, num_negatives=40)
        shape = plan.shapes[0]._replace(rows=rows or plan.shapes[0].rows)
        index = int(np.flatnonzero(plan.shape_of == 0)[0])
        return loss_of.lower(trainer, state, data, index, shape=shape).compile(), (state, data, index)

    few, arguments = lower(5000)
    every, _ = lower(5000, rows=5000)  # too many to be worth leaving others out
    assert float(few(*arguments)[0]) == pytest.approx(float(every(*arguments)[0]), rel=1e-6)
    larger, _ = lower(500_000)
    assert larger.memory_analysis().temp_size_in_bytes < 1.1 * few.memory_analysis().temp_size_in_bytes


def test_a_run_compiles_once_per_shape_and_moves_its_order_and_its_metrics_only(monkeypatch):
    """What the loop moves between host and device is asked for by name; the guard would refuse all else."""
    monkeypatch.setattr("geopol_tkg.training.plan._LEAST_QUERIES", 1)
    trainer, state, plan, data = _prepare.__wrapped__(quiet("regcn"))
    before = trainer.step._cache_size()
    epochs = fit(
        trainer,
        state,
        plan=plan,
        data=data,
        config=TrainConfig(epochs=3),
        evaluate=lambda state: {"mrr": 0.5},
        standing=Standing(),
        should_stop=lambda: None,
        on_step=lambda done: None,
    )
    next(epochs)
    with jax.transfer_guard("disallow"):
        result = next(epochs)
        assert trainer.step._cache_size() - before == len(plan.shapes) == MAX_SHAPES
        with pytest.raises(Exception, match="isallowed"):
            trainer.step(result.state, data, np.zeros(1, np.int32), KEY, shape=plan.shapes[0])  # the guard does guard
    assert int(result.state.step) == 2 * len(plan)
    state, order = result.state, jnp.arange(len(plan), dtype=jnp.int32)
    for shape in plan.shape_of:
        state = trainer.step(state, data, order, KEY, shape=plan.shapes[shape])
    assert int(state.query_count) == plan.counts.sum()


def test_trainers_of_the_same_function_are_equal():
    """So that a second training in a process compiles nothing."""

    def trainer(**settings):
        config = TrainConfig(**settings)
        return make_trainer(quiet("regcn"), config, compute_dtype=jnp.float32, remat=False)[0]

    assert trainer() == trainer(epochs=7, seed=3, patience=1)
    assert hash(trainer()) == hash(trainer(epochs=7, seed=3, patience=1))
    assert trainer() != trainer(task_weight=0.5)
    different = [{}, {"lr": 0.1}, {"grad_clip": 0}, {"optimiser": "adamw"}, {"weight_decay": 0}]
    different += [{"schedule": "cosine"}, {"schedule": "cosine", "epochs": 7}, {"warmup_epochs": 1}]
    assert len({make_optimiser(TrainConfig(**settings), 5) for settings in different}) == len(different)


def test_learning_rate_rises_falls_and_stays():
    def rates(**settings):
        schedule = learning_rate(TrainConfig(lr=0.1, epochs=10, **settings), steps_per_epoch=5)
        return [round(float(schedule(step)), 4) for step in (0, 5, 10, 30, 50)]

    assert rates() == [0.1] * 5
    assert rates(warmup_epochs=2) == [0, 0.05, 0.1, 0.1, 0.1]
    assert rates(schedule="cosine") == [0.1, 0.0976, 0.0905, 0.0345, 0]
    assert rates(schedule="cosine", warmup_epochs=2) == [0, 0.05, 0.1, 0.05, 0]
    with pytest.raises(UsageError, match="leaves nothing"):
        rates(warmup_epochs=10)


@pytest.mark.parametrize(("optimiser", "expected"), [("adam", 0.5 - 0.1), ("adamw", 0.5 - 0.1 * 0.2 * 0.5)])
def test_weight_decay_with_a_zero_gradient(optimiser, expected):
    """Adam moves by the sign of the decay it is given as a gradient; AdamW by the decay itself."""
    transformation = make_optimiser(TrainConfig(lr=0.1, weight_decay=0.2, optimiser=optimiser), 1)
    weight = {"w": jnp.array([0.5])}
    updates, _ = transformation.update(jax.tree.map(jnp.zeros_like, weight), transformation.init(weight), weight)
    assert float(weight["w"][0] + updates["w"][0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("grad_clip", "is_cut"), [(1.0, True), (0.0, False)])
def test_a_gradient_counts_with_a_norm_of_one_at_most(grad_clip, is_cut):
    """Adam's step does not know the scale of one gradient, but that of one beside the last."""

    def after(*lengths):
        transformation = make_optimiser(TrainConfig(grad_clip=grad_clip, weight_decay=0), 1)
        state = transformation.init(jnp.zeros(2))
        for length in lengths:
            updates, state = transformation.update(length * jnp.array([0.6, 0.8]), state, jnp.zeros(2))
        return updates

    assert bool(jnp.allclose(after(0.5, 10.0), after(0.5, 1.0))) == is_cut
    assert not jnp.allclose(after(0.5, 0.5), after(0.5, 1.0))


@pytest.mark.parametrize("conflict", [{"label_smoothing": 0.1}, {}])
def test_a_sample_serves_nothing_that_concerns_every_entity(conflict):
    config = make_config("regcn", **({} if conflict else STATIC_GRAPH.sizes()))
    settings = TrainConfig(num_negatives=5, **conflict)
    with pytest.raises(UsageError, match="every entity"):
        make_trainer(config, settings, compute_dtype=jnp.float32, remat=False)
