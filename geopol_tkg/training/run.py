"""A training run: a dataset and settings to checkpoints on disk and metrics in the trackers."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from geopol_tkg.checkpoint import (
    Checkpoint,
    checkpoint_paths,
    describe_dataset,
    fill,
    flatten,
    load_checkpoint,
    save_checkpoint,
)
from geopol_tkg.config import ModelConfig, TrainConfig
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.history import HistoryVocabulary
from geopol_tkg.data.static_graph import StaticGraph
from geopol_tkg.errors import CheckpointError, TrainingError
from geopol_tkg.models.forecaster import ForecastContext, NetworkForecaster
from geopol_tkg.models.network import parameter_count
from geopol_tkg.training.loop import EpochResult, Standing, StopReason, fit
from geopol_tkg.training.memory import MemoryMeter
from geopol_tkg.training.plan import plan_steps
from geopol_tkg.training.step import (
    TrainState,
    initial_state,
    learning_rate,
    make_trainer,
    put_step_data,
)
from geopol_tkg.training.trackers import TrainingLogger

Validate = Callable[[NetworkForecaster], dict[str, Any] | None]


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


class TrainingRun:
    """Everything a run needs, built once; :meth:`epochs` trains.

    Args:
        validate: metrics of a forecaster on the valid split, or None when interrupted.
        resume: go on from the last checkpoint in ``files``.

    Raises:
        TrainingError: the device or precision asked for is not there.
        CheckpointError: resuming from a checkpoint of other data or another network.
    """

    def __init__(
        self,
        dataset: Dataset,
        history: HistoryVocabulary,
        *,
        model: ModelConfig,
        config: TrainConfig,
        files: RunFiles,
        validate: Validate,
        resume: bool = False,
    ) -> None:
        self.device = jax.devices()[0]
        self.config = resolve(config, self.device)
        self.model = model
        self.files = files
        self.memory = MemoryMeter(self.device)
        self._dataset = dataset
        earlier = load_checkpoint(files.last) if resume else None
        self._has_last = earlier is not None
        if earlier is not None:
            self._refuse_other(earlier)
        self._validate = validate
        self._context = ForecastContext.build(dataset, history, model)
        self.plan = plan_steps(
            dataset.facts_of("train"),
            snapshots=self._context.snapshots,
            history=history,
            history_length=model.history_length,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            block_size=self.config.block_size,
        )
        self._trainer, self._state = make_trainer(
            model,
            self.config,
            compute_dtype=jnp.bfloat16 if self.config.precision == "bf16" else jnp.float32,
            remat=bool(self.config.remat),
            steps_per_epoch=len(self.plan),
            static_graph=StaticGraph.from_labels(dataset.entities) if model.num_words else None,
        )
        self._learning_rate = learning_rate(self.config, len(self.plan))
        negatives = self.config.num_negatives
        self._data = put_step_data(self.plan, self._context.snapshots, history, num_negatives=negatives)
        self.standing = Standing()
        if earlier is not None:
            self._restore(earlier)

    @property
    def num_parameters(self) -> int:
        return parameter_count(self._state.parameters)

    def settings(self) -> dict[str, Any]:
        """All settings, resolved, and the dataset's description."""
        return {**asdict(self.model), **asdict(self.config), "dataset": describe_dataset(self._dataset)}

    def epochs(
        self, logger: TrainingLogger, *, should_stop: StopReason, on_step: Callable[[int], None]
    ) -> Iterator[EpochResult]:
        """Train, save and log; yields after each epoch, the checkpoints being on disk by then."""
        logger.log_once({"system/total_params": self.num_parameters})
        for result in fit(
            self._trainer,
            self._state,
            plan=self.plan,
            data=self._data,
            config=self.config,
            evaluate=self._evaluate,
            standing=self.standing,
            should_stop=should_stop,
            on_step=self._sampling(on_step),
        ):
            completed = result.standing.epoch > self.standing.epoch
            self.standing = result.standing
            self._save(result)
            if completed:
                logger.log(result.standing.epoch, self._metrics(result))
            self.memory.new_epoch()
            yield result

    def compiled_memory(self) -> list[dict[str, int]]:
        """Compile each step shape and report its queries and the bytes its buffers need."""
        rows = []
        for number, shape in enumerate(self.plan.shapes):
            order = jnp.arange(len(self.plan), dtype=jnp.int32)
            key = jax.random.key(self.config.seed)
            lowered = self._trainer.step.lower(self._trainer, self._state, self._data, order, key, shape=shape)
            analysis = lowered.compile().memory_analysis()
            rows.append(
                {
                    "steps": int((self.plan.shape_of == number).sum()),
                    "queries": shape.queries,
                    "edges": shape.window.edges,
                    "argument_bytes": analysis.argument_size_in_bytes,
                    "temporary_bytes": analysis.temp_size_in_bytes,
                }
            )
        return rows

    def _sampling(self, on_step: Callable[[int], None]) -> Callable[[int], None]:
        def sample(done: int) -> None:
            self.memory.sample()
            on_step(done)

        return sample

    def _evaluate(self, state: TrainState) -> dict[str, Any] | None:
        forecaster = NetworkForecaster(
            *self._network(state), config=self.model, context=self._context, name=self.model.model_type
        )
        return self._validate(forecaster)

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

    def _save(self, result: EpochResult) -> None:
        """Best first: should the process die in between, the last one repeats the epoch.

        What an overwritten run left is removed until this run has its own: it would pass for this one's.
        """
        if result.standing.best_epoch == 0:
            _remove(self.files.best)
        if not self._has_last:
            _remove(self.files.last)
        if result.improved:
            save_checkpoint(self.files.best, self._checkpoint(result, with_resume=False))
        due = result.standing.epoch % self.config.checkpoint_interval == 0 or not self._has_last
        if due or result.stopped is not None:
            save_checkpoint(self.files.last, self._checkpoint(result, with_resume=True))
            self._has_last = True

    def _checkpoint(self, result: EpochResult, *, with_resume: bool) -> Checkpoint:
        state = result.state
        trained = np.zeros(self._dataset.num_entities, bool)
        trained[self._dataset.facts_of("train")[:, [0, 2]].ravel()] = True
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
            step=counters["step"],
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
        free = {"patience", "max_time", "checkpoint_interval", "device"}
        if self.config.schedule == "constant":
            free.add("epochs")
        before = {**checkpoint.settings, **asdict(checkpoint.config)}
        now = {**asdict(self.config), **asdict(self.model)}
        changed = sorted(name for name in now if name not in free and now[name] != before.get(name))
        if changed:
            name = changed[0]
            raise CheckpointError(
                f"{where}: trained with {name} {before.get(name)}, not {now[name]}; "
                "resume with the same settings or start anew with --overwrite"
            )


def resolve(config: TrainConfig, device: jax.Device) -> TrainConfig:
    """Settings with ``auto`` replaced by what suits the device: bf16 and remat on a GPU."""
    on_gpu = device.platform == "gpu"
    if config.device == "gpu" and not on_gpu:
        raise TrainingError(
            f"--device gpu was asked for, but jax sees only {device.platform}: install "
            "'geopol-tkg[cuda13]' (or cuda12) and check the driver with nvidia-smi"
        )
    precision = config.precision if config.precision != "auto" else ("bf16" if on_gpu else "f32")
    remat = on_gpu if config.remat is None else config.remat
    return replace(config, precision=precision, remat=remat, device="gpu" if on_gpu else "cpu")


def _remove(stem: Path) -> None:
    npz, manifest = checkpoint_paths(stem)
    manifest.unlink(missing_ok=True)
    npz.unlink(missing_ok=True)


def _counters(state: TrainState) -> dict[str, float | int]:
    return {
        "step": int(state.step),
        "loss_sum": float(state.loss_sum),
        "query_count": int(state.query_count),
    }
