"""The loop: patience, best, interruption, failure."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import make_config
from test_step import prepare

from geopol_tkg.checkpoint import flatten
from geopol_tkg.config import TrainConfig
from geopol_tkg.training.loop import NotFiniteError, Standing, epoch_order, fit


def run(scores, *, standing=None, state=None, should_stop=lambda: None, config=None, poison=False, **more):
    """Fit with validation scores given in advance; results and final states."""
    trainer, fresh, plan, data = prepare(make_config("regcn", num_layers=1), batch_size=16)
    if poison:
        fresh = fresh._replace(parameters=_poisoned(fresh.parameters))
    remaining = iter(scores)
    return list(
        fit(
            trainer,
            state or fresh,
            plan=plan,
            data=data,
            config=config or TrainConfig(epochs=len(scores), patience=2),
            evaluate=lambda _state: {"mrr": next(remaining)},
            standing=standing or Standing(),
            should_stop=should_stop,
            **{"on_step": lambda _done: None, **more},
        )
    ), plan


def _poisoned(parameters):
    parameters["encoder"]["entity_embedding"][...] = parameters["encoder"]["entity_embedding"][...] * jnp.nan
    return parameters


def test_patience_counts_epochs_since_the_best():
    results, _ = run([0.1, 0.3, 0.2, 0.3, 0.9])
    assert [r.improved for r in results] == [True, True, False, False]
    assert (results[-1].stopped, results[-1].standing.best_epoch, results[-1].standing.best_mrr) == ("patience", 2, 0.3)


def test_without_early_stopping_all_epochs_run():
    results, _ = run([0.1, 0.2, 0.3])
    assert [r.stopped for r in results] == [None, None, "epochs"]
    assert results[0].loss > results[-1].loss


def test_validation_comes_at_its_interval_and_at_the_end():
    results, _ = run([0.1, 0.2], config=TrainConfig(epochs=5, eval_interval=4, patience=9))
    assert [r.metrics is not None for r in results] == [False, False, False, True, True]


def test_a_refit_measures_nothing_and_keeps_its_last_epoch():
    results, _ = run([], config=TrainConfig(epochs=5, refit_epochs=3, patience=1))
    assert [(r.metrics, r.improved, r.stopped) for r in results] == [
        (None, False, None),
        (None, False, None),
        (None, True, "epochs"),
    ]
    assert (results[-1].standing.best_epoch, results[-1].standing.best_mrr) == (3, -1)


def test_patience_waits_for_a_validation():
    config = TrainConfig(epochs=8, eval_interval=4, patience=3)
    results, _ = run([0.2, 0.1], config=config)
    assert [r.standing.epoch for r in results if r.metrics] == [4, 8]
    assert results[-1].stopped == "patience"
    assert results[3].stopped is None


def test_an_interrupted_run_goes_on_to_the_same_parameters():
    whole, _ = run([0.1, 0.2])
    asked = iter(range(1000))
    first, plan = run([0.1, 0.2], should_stop=lambda: "interrupted" if next(asked) >= 7 else None)
    stopped = first[-1]
    assert (stopped.stopped, stopped.metrics) == ("interrupted", None)
    assert 0 < stopped.standing.step_in_epoch < len(plan)
    rest, _ = run([0.1, 0.2], standing=stopped.standing, state=stopped.state)
    for name, array in flatten(whole[-1].state.parameters).items():
        assert np.array_equal(array, flatten(rest[-1].state.parameters)[name]), name
    assert [r.loss for r in rest] == [r.loss for r in whole]


def test_the_order_of_steps_is_drawn_anew_each_epoch_and_repeats_for_a_seed():
    _, plan = run([0.1])
    first, again, second = (epoch_order(plan, seed=0, epoch=epoch) for epoch in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert sorted(second) == list(range(len(plan)))


def test_parts_of_an_epoch_to_be_saved_change_nothing():
    whole, plan = run([0.1, 0.2])
    asked = iter(range(1000))
    parts, _ = run([0.1, 0.2], should_save=lambda: next(asked) % 3 == 2)
    saved = [part.standing.step_in_epoch for part in parts if part.standing.step_in_epoch]
    assert len(saved) == 2 * len(plan) // 3 > 4
    assert [part.stopped for part in parts] == [None] * (len(parts) - 1) + ["epochs"]
    epochs = [part for part in parts if not part.standing.step_in_epoch]
    assert [(e.loss, e.standing.best_mrr) for e in epochs] == [(e.loss, e.standing.best_mrr) for e in whole]
    assert epochs[1].seconds <= epochs[1].standing.elapsed - epochs[0].standing.elapsed + 1e-6
    for name, array in flatten(whole[-1].state.parameters).items():
        assert np.array_equal(array, flatten(parts[-1].state.parameters)[name]), name


def test_an_epoch_can_be_saved_before_its_validation():
    _, plan = run([0.1])
    parts, _ = run([0.1], should_save=lambda: True)
    assert [part.standing.step_in_epoch for part in parts] == [*range(1, len(plan) + 1), 0]


def test_a_loss_that_is_not_finite_stops_the_run_by_name():
    with pytest.raises(NotFiniteError, match=r"not finite at step 1 of epoch 1 \(time index \d+\)"):
        run([0.1], poison=True)


@jax.custom_vjp
def spoiled(x):
    return x


spoiled.defvjp(lambda x: (x, None), lambda _, gradient: (gradient * jnp.nan,))


@pytest.mark.parametrize(("spoil", "failed"), [(spoiled, 0), (lambda x: x, -1)])
def test_a_gradient_that_is_not_finite_is_a_failure_though_the_loss_is_finite(monkeypatch, spoil, failed):
    def loss(_trainer, parameters, statistics, *_more):
        return sum(jnp.sum(spoil(leaf) ** 2) for leaf in jax.tree.leaves(parameters)), (1, statistics)

    trainer, state, plan, data = prepare(make_config("regcn", num_layers=1), batch_size=16)
    monkeypatch.setattr(type(trainer), "loss", loss)
    other = replace(trainer, config=TrainConfig(seed=failed + 2))  # compiled anew
    order = jnp.zeros(len(plan), jnp.int32)
    state = other.step(state, data, order, jax.random.key(0), shape=plan.shapes[0])
    assert jnp.isfinite(state.loss_sum)
    assert int(state.failed_step) == failed


def test_what_is_not_finite_ends_the_epoch_a_few_steps_later():
    taken = []
    with pytest.raises(NotFiniteError):
        run([0.1], poison=True, on_step=taken.append)
    assert len(taken) < 6


def test_standing_counts_epochs_without_improvement():
    assert replace(Standing(), epoch=5, best_epoch=2).epochs_without_improvement() == 3
