"""A training run: a dataset and settings to checkpoints on disk and metrics in the trackers."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from filelock import FileLock, Timeout
from flax import nnx

from geopol_tkg.checkpoint import (
    Checkpoint,
    checkpoint_paths,
    describe_dataset,
    fill,
    flatten,
    load_checkpoint,
    read_manifest,
    remove_checkpoint,
    save_checkpoint,
    settle_checkpoint,
)
from geopol_tkg.config import ModelConfig, ModelType, TrainConfig
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.history import HistoryVocabulary
from geopol_tkg.errors import CheckpointError, TrainingError, no_gpu
from geopol_tkg.models.network import parameter_count
from geopol_tkg.models.registry import TrainedForecaster, build_context, build_forecaster
from geopol_tkg.training.loop import EpochResult, NotFiniteError, Standing, StopReason, fit
from geopol_tkg.training.memory import MemoryMeter, StepMemory, free_bytes, most_growth, too_little_memory
from geopol_tkg.training.plan import StepShape
from geopol_tkg.training.prepare import prepare
from geopol_tkg.training.step import TrainState, initial_state, learning_rate
from geopol_tkg.training.trackers import TrainingLogger

_MUCH = 1.25  # growth of one size of a step that may make it the one that needs most memory
FitTemperature = Callable[[TrainedForecaster], dict[str, Any]]
Validate = Callable[[TrainedForecaster], dict[str, Any] | None]


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes."""

    model_dir: Path
    run_dir: Path
    model_type: str

    @property
    def best(self) -> Path:
        """Stem of the best checkpoint."""
        return self.model_dir / f"{self.model_type}_best"

    @property
    def last(self) -> Path:
        """Stem of the last checkpoint, the one that resumes."""
        return self.model_dir / f"{self.model_type}_last"

    @property
    def metrics(self) -> Path:
        return self.model_dir / "metrics.jsonl"

    def existing(self) -> Path | None:
        """A file of an earlier run that a new one would replace."""
        paths = [path for stem in (self.best, self.last) for path in checkpoint_paths(stem)]
        paths += sorted(self.run_dir.glob("events.out.tfevents.*"))
        return next((path for path in paths if path.exists()), None)

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to replace an earlier run unasked, and to resume what is not there.

        Raises:
            TrainingError: files of an earlier run.
            CheckpointError: nothing to resume.
        """
        if resume:
            read_manifest(checkpoint_paths(self.last)[1])
        elif not overwrite and (old := self.existing()):
            raise TrainingError(f"{old} exists: --resume goes on with it, --overwrite replaces it")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only run that writes here, and tidy up after one that was killed.

        Raises:
            TrainingError: another run is at work.
        """
        with ExitStack() as held:
            for folder in sorted({self.model_dir.resolve(), self.run_dir.resolve()}):
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(FileLock(folder / ".lock", timeout=0))
                except Timeout as error:
                    raise TrainingError(
                        f"{folder}: another run is writing here; "
                        "wait for it, or choose another --model-dir and --run-name"
                    ) from error
            for stem in (self.best, self.last):
                settle_checkpoint(stem)
            yield


class TrainingRun:
    """Everything a run needs, built once; :meth:`epochs` trains.

    Args:
        validate: metrics of a forecaster on the valid split, or None when interrupted.
        resume: go on from the last checkpoint in ``files``.
        prior: the counting model that a network with ``count_prior`` starts with.
        temperature: of the model that is refitted; a refit has nothing left to fit one on.

    Raises:
        TrainingError: the device or precision asked for is not there.
        CheckpointError: resuming from a checkpoint of other data or another network.
    """

    def __init__(
        self,
        dataset: Dataset,
        history: HistoryVocabulary | None,
        *,
        model: ModelConfig,
        config: TrainConfig,
        files: RunFiles,
        validate: Validate,
        resume: bool = False,
        prior: Checkpoint | None = None,
        temperature: dict[str, Any] | None = None,
    ) -> None:
        self.device = jax.devices()[0]
        self.config = resolve(config, self.device, model.model_type)
        self.model = model
        self.files = files
        self.memory = MemoryMeter(self.device)
        self._dataset = dataset
        earlier = load_checkpoint(files.last) if resume else None
        self._is_new = earlier is None
        self._is_saved = not self._is_new
        self._save_after = time.monotonic() + self.config.checkpoint_seconds
        if earlier is not None:
            self._refuse_other(earlier)
        self._validate = validate
        self._temperature = temperature
        self._context = build_context(dataset, history, model)
        self.plan, self._trainer, self._state, self._data = prepare(
            dataset, history, self._context, model=model, config=self.config
        )
        self._learning_rate = learning_rate(self.config, len(self.plan))
        if prior is not None:
            self._state = with_prior(self._state, prior)
        self.standing = Standing()
        if earlier is not None:
            self._restore(earlier)

    @property
    def num_parameters(self) -> int:
        return parameter_count(self._state.parameters)

    def settings(self) -> dict[str, Any]:
        """All settings, resolved, and the dataset's description."""
        return {**asdict(self.model), **asdict(self.config), "dataset": describe_dataset(self._dataset)}

    def begin(self) -> None:
        """Save the untrained state of a new run, so that it can be resumed whenever it is killed."""
        if not self._is_saved:
            self._save_last(EpochResult(self.standing, self._state, 0.0, None, False, 0.0, None))

    def epochs(
        self, logger: TrainingLogger, *, should_stop: StopReason, on_step: Callable[[int], None]
    ) -> Iterator[EpochResult]:
        """Train, save and log; yields after each epoch, the checkpoints being on disk by then.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        self.begin()
        logger.log_once({"system/total_params": self.num_parameters})
        results = fit(
            self._trainer,
            self._state,
            plan=self.plan,
            data=self._data,
            config=self.config,
            evaluate=self._evaluate,
            standing=self.standing,
            should_stop=should_stop,
            on_step=self._sampling(on_step),
            should_save=self._is_due,
        )
        try:
            for result in results:
                self._keep(result, logger)
                yield result
        except NotFiniteError as error:
            raise TrainingError(self._explain(error)) from error

    def calibrate(self, fit: FitTemperature) -> dict[str, Any]:
        """Keep a temperature with the best checkpoint, where it has none yet; what the checkpoint says of it.

        Raises:
            CheckpointError: there is no best checkpoint.
        """
        best = load_checkpoint(self.files.best)
        if best.temperature is not None:
            return best.temperature
        temperature = fit(self._forecaster(*best.network()))
        save_checkpoint(self.files.best, replace(best, temperature=temperature))
        return temperature

    def _keep(self, result: EpochResult, logger: TrainingLogger) -> None:
        """Best, logs, last: should the process die in between, the last one repeats the epoch, logs and all."""
        completed = result.standing.epoch > self.standing.epoch
        moved = completed or result.standing.step_in_epoch != self.standing.step_in_epoch
        self.standing = result.standing
        if result.improved:
            save_checkpoint(self.files.best, self._checkpoint(result, with_resume=False))
        elif self._leaves_another_best(result, completed=completed):
            remove_checkpoint(self.files.best)  # what an overwritten run left would pass for this one's
        if completed:
            self.memory.sample()  # an epoch that was resumed behind its last step had none yet
            logger.log(result.standing.epoch, self._metrics(result))
            self.memory.new_epoch()
        interval_over = completed and result.standing.epoch % self.config.checkpoint_interval == 0
        if (interval_over or result.stopped is not None or self._is_due()) and (moved or not self._is_saved):
            self._save_last(result)  # not over what a resumed run began with, which knows its loss and metrics

    def _leaves_another_best(self, result: EpochResult, *, completed: bool) -> bool:
        """Whether a best checkpoint there is of another run; that before a refit stays until its one epoch to keep."""
        if result.standing.best_epoch or self.config.refit_epochs:
            return False
        return completed or (self._is_new and result.stopped is not None)

    def _is_due(self) -> bool:
        return time.monotonic() >= self._save_after

    def _save_last(self, result: EpochResult) -> None:
        save_checkpoint(self.files.last, self._checkpoint(result, with_resume=True))
        self._is_saved = True
        self._save_after = time.monotonic() + self.config.checkpoint_seconds

    def _explain(self, error: NotFiniteError) -> str:
        saved = read_manifest(checkpoint_paths(self.files.last)[1])["resume"]
        return (
            f"the loss or a gradient is not finite at step {error.step} of {len(self.plan)} in epoch {error.epoch}, "
            f"with the facts of {self._dataset.time_axis.label(error.time)} (time index {error.time}); the last good "
            f"checkpoint is {self.files.last} (epoch {saved['epoch']}, step {saved['step_in_epoch']} of the next): "
            "lower --lr or --grad-clip, or use --precision f32"
        )

    def step_memory(self) -> list[StepMemory]:
        """Compile each step shape (training uses the same programs) and tell the bytes its buffers need."""
        return [self._memory_of(shape) for shape in self.plan.shapes]

    def _memory_of(self, shape: Any) -> StepMemory:
        order = jnp.arange(len(self.plan), dtype=jnp.int32)
        key = jax.random.key(self.config.seed)
        lowered = self._trainer.step.lower(self._trainer, self._state, self._data, order, key, shape=shape)
        return StepMemory.of(
            lowered.compile(),
            steps=int((self.plan.shape_of == self.plan.shapes.index(shape)).sum()),
            queries=shape.queries,
            neighbours=shape.window.neighbours if isinstance(shape, StepShape) else None,
        )

    def require_memory(self) -> StepMemory:
        """The step that needs most, which is compiled for it; refuses to start what cannot fit.

        The shape with most queries is compiled, and another one where it may need more: quiet days after a burst
        have few queries and a large window.

        Raises:
            TrainingError: the step needs more than is free.
        """
        first, *others = self.plan.shapes
        largest = self._memory_of(first)
        free = free_bytes(self.device)
        for shape in others:
            growth = most_growth(first, shape)
            if growth > _MUCH or (free is not None and largest.temporary_bytes * growth > free):
                largest = max(largest, self._memory_of(shape), key=lambda step: step.temporary_bytes)
        if free is not None and largest.temporary_bytes > free:
            raise TrainingError(too_little_memory(largest, free, self.device, model=self.model, config=self.config))
        return largest

    def _sampling(self, on_step: Callable[[int], None]) -> Callable[[int], None]:
        def sample(done: int) -> None:
            self.memory.sample()
            on_step(done)

        return sample

    def _evaluate(self, state: TrainState) -> dict[str, Any] | None:
        return self._validate(self._forecaster(*self._network(state)))

    def _forecaster(self, graphdef: Any, state: Any) -> TrainedForecaster:
        name = self.model.model_type
        return build_forecaster(graphdef, state, config=self.model, context=self._context, name=name)

    def _network(self, state: TrainState) -> tuple[Any, Any]:
        return nnx.split(nnx.merge(self._trainer.graphdef, state.parameters, state.statistics))

    def _metrics(self, result: EpochResult) -> dict[str, float]:
        metrics = {
            "train/loss": result.loss,
            "train/lr": float(self._learning_rate(int(result.state.step))),
            "system/epoch_duration_s": result.seconds,
        }
        if result.metrics is not None:
            names = ("mrr", "hits_at_1", "hits_at_3", "hits_at_10")
            metrics |= {f"eval/{name}": result.metrics[name] for name in names}
        return metrics | self.memory.metrics()

    def _checkpoint(self, result: EpochResult, *, with_resume: bool) -> Checkpoint:
        state = result.state
        trained = np.zeros(self._dataset.num_entities, bool)
        trained[self._dataset.facts_through(self.config.through)[:, [0, 2]].ravel()] = True
        resume = {**asdict(result.standing), **_counters(state)} if with_resume else None
        return Checkpoint(
            config=self.model,
            settings=asdict(self.config),
            epoch=result.standing.epoch,
            metrics={"train_loss": result.loss if int(state.step) else None, "valid": result.metrics},
            entity_to_id=self._dataset.entity_to_id,
            relation_to_id=self._dataset.relation_to_id,
            dataset=describe_dataset(self._dataset),
            arrays=flatten(state.parameters) | flatten(state.statistics),
            trained_entities=trained,
            temperature=None if with_resume else self._temperature,
            resume=resume,
            optimiser=flatten(state.optimiser) if with_resume else {},
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        resume = dict(checkpoint.resume or {})
        counters = {name: resume.pop(name) for name in _counters(self._state)}
        known = flatten(self._state.parameters).keys()
        parameters = {name: array for name, array in checkpoint.arrays.items() if name in known}
        statistics = {name: array for name, array in checkpoint.arrays.items() if name not in known}
        source = checkpoint.source
        restored = initial_state(
            fill(self._state.parameters, parameters, source=source),
            fill(self._state.statistics, statistics, source=source),
            fill(self._state.optimiser, checkpoint.optimiser, source=source),
            step=jnp.int32(counters["step"]),
        )
        self._state = restored._replace(
            loss_sum=jnp.float32(counters["loss_sum"]),
            query_count=jnp.int32(counters["query_count"]),
            position=jnp.int32(resume["step_in_epoch"]),
        )
        self.standing = Standing(**resume)

    def _refuse_other(self, checkpoint: Checkpoint) -> None:
        where = checkpoint_paths(self.files.last)[1]
        if checkpoint.resume is None:
            raise CheckpointError(f"{where}: holds no resume state; start anew with --overwrite")
        if checkpoint.dataset["content_hash"] != self._dataset.content_hash:
            raise CheckpointError(f"{where}: trained on another dataset; start anew with --overwrite")
        free = {"patience", "max_time", "checkpoint_interval", "checkpoint_seconds", "device"}
        if self.config.schedule == "constant":
            free.add("epochs")
        before = {**asdict(TrainConfig()), **checkpoint.settings, **asdict(checkpoint.config)}
        now = {**asdict(self.config), **asdict(self.model)}
        changed = sorted(name for name in now if name not in free and now[name] != before.get(name))
        if "refit_epochs" in changed:
            which = "another refit" if self.config.refit_epochs else "a refit; resume it with its --refit and --through"
            raise CheckpointError(f"{where}: of {which if before['refit_epochs'] else 'no refit'}")
        if changed:
            name = changed[0]
            raise CheckpointError(
                f"{where}: trained with {name} {before.get(name)}, not {now[name]}; "
                "resume with the same settings or start anew with --overwrite"
            )


def with_prior(state: TrainState, prior: Checkpoint) -> TrainState:
    """State of a network whose counting model has the parameters of a checkpoint of the same dataset.

    Raises:
        CheckpointError: it does not fit the network.
    """
    fixed = flatten(state.statistics)
    learned = {f"counts/{name}": array for name, array in prior.arrays.items() if f"counts/{name}" not in fixed}
    arrays = flatten(state.parameters) | learned
    return state._replace(parameters=fill(state.parameters, arrays, source=prior.source))


def resolve(config: TrainConfig, device: jax.Device, model: ModelType) -> TrainConfig:
    """Settings with ``auto`` replaced by what suits the device: bf16 and remat for networks on a GPU."""
    on_gpu = device.platform == "gpu"
    if config.device == "gpu" and not on_gpu:
        raise no_gpu("--device gpu", device.platform)
    device_used: Literal["gpu", "cpu"] = "gpu" if on_gpu else "cpu"
    if model == "counts":  # which has little to multiply and nothing to recompute
        return replace(config, precision="f32", remat=False, device=device_used)
    precision = config.precision if config.precision != "auto" else ("bf16" if on_gpu else "f32")
    remat = on_gpu if config.remat is None else config.remat
    return replace(config, precision=precision, remat=remat, device=device_used)


def _counters(state: TrainState) -> dict[str, float | int]:
    return {
        "step": int(state.step),
        "loss_sum": float(state.loss_sum),
        "query_count": int(state.query_count),
    }
