"""The training loop as a generator: steps, validation, patience, best. It knows no disk and no screen."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from geopol_tkg.config import TrainConfig
from geopol_tkg.errors import TrainingError
from geopol_tkg.training.plan import Plan
from geopol_tkg.training.step import Trainer, TrainState, initial_state

_STEPS_IN_FLIGHT = 4
_PAUSED = "paused"

Evaluate = Callable[[TrainState], dict[str, Any] | None]
StopReason = Callable[[], str | None]


class NotFiniteError(TrainingError):
    """A loss or a gradient is not finite.

    Attributes:
        epoch, step: 1, 2, ...; the step is that of the epoch.
        time: index of its timestamp.
    """

    def __init__(self, *, epoch: int, step: int, time: int) -> None:
        super().__init__(f"loss or gradient not finite at step {step} of epoch {epoch} (time index {time})")
        self.epoch, self.step, self.time = epoch, step, time


@dataclass(frozen=True)
class Standing:
    """Where a run stands; with the train state, all that resuming needs.

    Attributes:
        epoch: epochs completed.
        step_in_epoch: steps done of the next one.
        elapsed: seconds trained, all parts of the run together.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    best_mrr: float = -1.0
    best_epoch: int = 0
    elapsed: float = 0.0

    def epochs_without_improvement(self) -> int:
        return self.epoch - self.best_epoch

    def ending(self, config: TrainConfig) -> str | None:
        """Why there is nothing left to train ("patience", "epochs"); None while there is."""
        if config.refit_epochs:
            return "epochs" if self.epoch >= config.refit_epochs else None
        validated = self.epoch if self.epoch >= config.epochs else self.epoch - self.epoch % config.eval_interval
        if validated - self.best_epoch >= config.patience:
            return "patience"
        return "epochs" if self.epoch >= config.epochs else None


@dataclass(frozen=True)
class EpochResult:
    """What an epoch came to, or the part of one that is to be saved (``standing.step_in_epoch > 0``).

    Attributes:
        metrics: of validation; None in an epoch without one.
        seconds: of the epoch so far, in this process.
        stopped: why the loop ends here ("patience", "epochs", or what ``should_stop`` said), else None.
    """

    standing: Standing
    state: TrainState
    loss: float
    metrics: dict[str, Any] | None
    improved: bool
    seconds: float
    stopped: str | None


def fit(
    trainer: Trainer,
    state: TrainState,
    *,
    plan: Plan,
    data: Any,
    config: TrainConfig,
    evaluate: Evaluate,
    standing: Standing,
    should_stop: StopReason,
    on_step: Callable[[int], None],
    should_save: Callable[[], bool] = lambda: False,
) -> Iterator[EpochResult]:
    """Train epoch by epoch until the epochs or the patience are used up, or ``should_stop`` says so.

    Args:
        evaluate: validation metrics of a state, with ``mrr`` among them; None when it was interrupted.
        standing: where to go on; ``Standing()`` for a new run.
        should_stop: asked after every step and during validation; a reason ends the run.
        on_step: told how many steps of the epoch are done.
        should_save: asked after every step; if so, the part of the epoch is a result of its own, to be
            saved before the next one is asked for: its state is used up then.

    Raises:
        NotFiniteError: a loss or gradient is not finite.
    """
    loss = earlier = 0.0
    key = jax.random.key(config.seed)
    while standing.ending(config) is None:
        started = time.perf_counter()
        state, steps, reason = _run_epoch(
            trainer, state, plan, data, config, key, standing, should_stop, on_step, should_save
        )
        loss = _mean_loss(state, plan, config.seed, standing.epoch + 1) if steps else loss
        done = steps == len(plan) and reason is None
        wants_metrics = done and _is_evaluated(standing.epoch + 1, config)
        metrics = evaluate(state) if wants_metrics else None
        reason = reason or should_stop()
        seconds = time.perf_counter() - started
        standing = replace(standing, elapsed=standing.elapsed + seconds)
        seconds, earlier = earlier + seconds, 0.0
        if not done or (wants_metrics and metrics is None):
            standing = replace(standing, step_in_epoch=steps)
            is_paused = reason == _PAUSED
            yield EpochResult(standing, state, loss, None, False, seconds, None if is_paused else reason)
            if not is_paused:
                return
            earlier = seconds
            continue
        improved = _is_best(standing, metrics, config)
        standing = _advance(standing, metrics, improved=improved)
        stopped = reason or standing.ending(config)
        state = _new_epoch(state)
        yield EpochResult(standing, state, loss, metrics, improved, seconds, stopped)
        if stopped:
            return


def epoch_order(plan: Plan, *, seed: int, epoch: int) -> np.ndarray:
    """Random order of the steps in an epoch (1, 2, ...); the same for the same seed and epoch."""
    return np.random.default_rng([seed, epoch]).permutation(len(plan))


def _run_epoch(
    trainer: Trainer,
    state: TrainState,
    plan: Plan,
    data: Any,
    config: TrainConfig,
    key: jax.Array,
    standing: Standing,
    should_stop: StopReason,
    on_step: Callable[[int], None],
    should_save: Callable[[], bool],
) -> tuple[TrainState, int, str | None]:
    """Run the rest of an epoch, or up to the first step that is not finite; steps done, and why it ended early."""
    order = epoch_order(plan, seed=config.seed, epoch=standing.epoch + 1)
    device_order = jax.device_put(order.astype(np.int32))
    in_flight: list[jax.Array] = []
    for done in range(standing.step_in_epoch, len(order)):
        if reason := should_stop():
            return state, done, reason
        shape = plan.shapes[plan.shape_of[order[done]]]
        state = trainer.step(state, data, device_order, key, shape=shape)
        in_flight.append(jnp.copy(state.failed_step))
        if len(in_flight) > _STEPS_IN_FLIGHT and jax.device_get(in_flight.pop(0)) >= 0:  # all that an epoch moves
            return state, done + 1, None
        on_step(done + 1)
        if should_save():
            return state, done + 1, _PAUSED
    return state, len(order), None


def _mean_loss(state: TrainState, plan: Plan, seed: int, epoch: int) -> float:
    failed, count, loss_sum = jax.device_get((state.failed_step, state.query_count, state.loss_sum))
    if failed >= 0:
        step = int(np.flatnonzero(epoch_order(plan, seed=seed, epoch=epoch) == failed)[0]) + 1
        raise NotFiniteError(epoch=epoch, step=step, time=int(plan.times[failed]))
    return float(loss_sum) / max(int(count), 1)


def _is_evaluated(epoch: int, config: TrainConfig) -> bool:
    return not config.refit_epochs and (epoch % config.eval_interval == 0 or epoch == config.epochs)


def _is_best(standing: Standing, metrics: dict[str, Any] | None, config: TrainConfig) -> bool:
    """Whether the epoch after this standing is the one to keep: of a refit, which measures nothing, its last."""
    if config.refit_epochs:
        return standing.epoch + 1 == config.refit_epochs
    return metrics is not None and metrics["mrr"] > standing.best_mrr


def _advance(standing: Standing, metrics: dict[str, Any] | None, *, improved: bool) -> Standing:
    epoch = standing.epoch + 1
    standing = replace(standing, epoch=epoch, step_in_epoch=0)
    if not improved:
        return standing
    best_mrr = standing.best_mrr if metrics is None else metrics["mrr"]
    return replace(standing, best_mrr=best_mrr, best_epoch=epoch)


def _new_epoch(state: TrainState) -> TrainState:
    return initial_state(state.parameters, state.statistics, state.optimiser, step=state.step)
