"""Training from the command line: run, show, log, report. Loads jax; imported in bodies."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import typer

from geopol_tkg.checkpoint import Checkpoint, load_checkpoint
from geopol_tkg.cli._app import Output, new_table, plain, silence
from geopol_tkg.cli._models import require_checkpoint
from geopol_tkg.cli._progress import Heartbeat, TrainDisplay, format_seconds
from geopol_tkg.cli._signals import StopSignals
from geopol_tkg.config import OF_THE_RUN, ONLY_MEMORY, ModelConfig, ModelType, RefitSplit, TrainConfig
from geopol_tkg.data.countries import Countries
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.files import write_json
from geopol_tkg.data.history import HistoryVocabulary, load_or_build
from geopol_tkg.errors import CheckpointError, UsageError
from geopol_tkg.evaluation.evaluator import Interrupted, evaluate
from geopol_tkg.evaluation.temperature import fit_temperature
from geopol_tkg.forecasts import training_dataset
from geopol_tkg.models.registry import TrainedForecaster, uses_vocabulary
from geopol_tkg.training.loop import EpochResult
from geopol_tkg.training.memory import as_size, free_bytes
from geopol_tkg.training.run import RunFiles, TrainingRun
from geopol_tkg.training.trackers import TrainingLogger, start_wandb, system_description

# by what stopped the run, where it is not called the same
_STATUS = {"patience": "early_stopped", "epochs": "completed", "None": "failed"}
_OF_THE_DATASET = ("num_entities", "num_relations", "num_words", "num_static_edges", "num_countries")
_SHOWN = ("epochs_trained", "best_epoch", "best_mrr", "total_time", "checkpoint", "last", "run_dir")


def train(
    dataset: Dataset,
    model: ModelConfig,
    config: TrainConfig,
    *,
    files: RunFiles,
    output: Output,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    wandb: bool | None = False,
    options: dict[str, dict[str, Any]] | None = None,
    prior: Checkpoint | None = None,
    temperature: dict[str, Any] | None = None,
) -> None:
    """Train a network and report; exits with 130 or 143 after a signal, the state being saved.

    Args:
        options: of the command line, ``value`` and ``origin`` each; kept with the run.
        temperature: of the model that is refitted.
    """
    with StopSignals(at_once=True) as signals, nullcontext() if dry_run else files.locked():
        files.check(resume=resume, overwrite=overwrite or dry_run)
        validation = _Validation(dataset, signals)
        history = _history(dataset, model.history_window, output) if uses_vocabulary(model) else None
        if model.num_paths:
            output.note("following paths from every subject, at every time that is learned from")
        run = TrainingRun(
            dataset,
            history,
            model=model,
            config=config,
            files=files,
            validate=validation,
            resume=resume,
            prior=prior,
            temperature=temperature,
        )
        _announce(run, dataset, output)
        if dry_run:
            _report_dry_run(run, output)
            return
        signals.at_once = False
        result = _train(run, output, validation, wandb=wandb, resume=resume, options=options or {})
        content = _summary(run, result) | {"temperature": temperature and temperature["value"]}
        if content["checkpoint"] is not None and content["status"] != "interrupted" and not config.refit_epochs:
            content |= _calibrate(run, dataset, signals, output)
    table = new_table("", "")
    for name in _SHOWN:
        table.add_row(name.replace("_", " "), plain(_shown(content[name])))
    try:
        output.result(content, f"Trained {model.model_type}: {content['status'].replace('_', ' ')}", table)
    except BrokenPipeError:  # a signal to the group ends the reader too
        if content["status"] != "interrupted":
            raise
        silence(sys.stdout)
    if content["status"] == "interrupted":
        raise typer.Exit(signals.exit_code)


@dataclass
class _Validation:
    """Metrics of the valid split, by the protocol of eval; None when a signal came."""

    dataset: Dataset
    signals: StopSignals
    progress: Callable[[int, int], None] | None = None

    def __call__(self, forecaster: TrainedForecaster) -> dict[str, Any] | None:
        def stop() -> bool:
            return bool(self.signals)

        try:
            ranks = evaluate(forecaster, self.dataset, split="valid", should_stop=stop, progress=self.progress)
        except Interrupted:
            return None
        return ranks.metrics()


def count_countries(dataset: Dataset) -> int:
    """How many countries the labels of entities name.

    Raises:
        UsageError: they name none.
    """
    found = len(Countries.from_labels(dataset.entities, entity_kind=dataset.entity_kind).names)
    if not found:
        raise UsageError("--countries: no two labels name one country, as Role (Country) or CAMEO codes do")
    return found


def load_refitted(stem: Path, dataset: Dataset | None) -> tuple[Checkpoint, Dataset]:
    """The checkpoint to refit, and its dataset.

    Raises:
        CheckpointError: it is not the best of a training that ended, or one on another dataset than the one given.
    """
    require_checkpoint(str(stem))
    refitted = load_checkpoint(stem)
    dataset = training_dataset(refitted, stem, other="name it as DATASET") if dataset is None else dataset
    _require_dataset(stem, refitted, dataset, "--refit learns from its own")
    if refitted.resume is not None:
        raise CheckpointError(f"{stem}: is where a run stands; --refit wants its best model")
    if refitted.temperature is None:
        raise CheckpointError(f"{stem}: its training did not end; --resume it first")
    return refitted, dataset


def refit_settings(refitted: Checkpoint, own: dict[str, Any], through: RefitSplit) -> TrainConfig:
    """Settings of a checkpoint, but for some of the run's own, to train for as many epochs as it was."""
    known = {field.name for field in fields(TrainConfig)}
    settings = TrainConfig(**{name: value for name, value in refitted.settings.items() if name in known})
    return replace(settings, **own, refit_epochs=refitted.epoch, through=through)


def load_prior(stem: Path, dataset: Dataset, model: ModelType, config: TrainConfig) -> Checkpoint:
    """The counting model that a network is trained with.

    Raises:
        UsageError: it cannot be used with the other options.
        CheckpointError: it is no counting model, was trained on another dataset, or learned from later facts.
    """
    if model == "counts":
        raise UsageError("--count-prior is for networks: use --model tirgn or regcn")
    if config.num_negatives:
        raise UsageError("--count-prior scores every entity: it cannot be used with --num-negatives")
    require_checkpoint(str(stem))
    prior = load_checkpoint(stem)
    if prior.config.model_type != "counts":
        raise CheckpointError(f"{stem}: is a {prior.config.model_type}; --count-prior wants one of --model counts")
    if prior.config.num_paths:
        advice = "train it with --num-paths 0"
        raise CheckpointError(f"{stem}: follows paths, which counts beside a network do not; {advice}")
    _require_dataset(stem, prior, dataset, "train --model counts on this one first")
    if prior.trained_until > dataset.split.bounds(config.through)[1]:
        raise CheckpointError(f"{stem}: learned from facts after {config.through}; name one that did not")
    return prior


def _require_dataset(stem: Path, checkpoint: Checkpoint, dataset: Dataset, advice: str) -> None:
    if checkpoint.dataset["content_hash"] != dataset.content_hash:
        raise CheckpointError(f"{stem}: trained on another dataset; {advice}")


def _calibrate(run: TrainingRun, dataset: Dataset, signals: StopSignals, output: Output) -> dict[str, Any]:
    """Fit a temperature for the best checkpoint, where it has none; what the summary says of it."""

    def fit(forecaster: TrainedForecaster) -> dict[str, Any]:
        found = fit_temperature(
            forecaster,
            dataset,
            seed=run.config.seed,
            should_stop=lambda: bool(signals),
            progress=Heartbeat(output, "fitting the temperature"),
        )
        output.note(
            f"temperature {found.value:.4f} fitted on {found.num_queries:,} of {2 * dataset.counts()['valid']:,} "
            f"valid queries: NLL {found.nll_before:.4f} before, {found.nll_after:.4f} after"
        )
        return asdict(found)

    try:
        return {"temperature": run.calibrate(fit)["value"]}
    except Interrupted:
        return {"status": "interrupted"}


def _history(dataset: Dataset, window: int, output: Output) -> HistoryVocabulary:
    """The dataset's vocabulary; built, and kept where the dataset can be written, if it is not there."""
    history, reason = load_or_build(dataset, window=window)
    if reason is None or dataset.path is None:
        return history
    output.note(f"history vocabulary built (window {window}): {reason.partition(';')[0]}")
    path = dataset.path / "history.npz"
    try:
        history.save(path, dataset_hash=dataset.content_hash)
    except OSError as error:
        output.note(f"{path}: not kept ({error.strerror})")
    return history


def _announce(run: TrainingRun, dataset: Dataset, output: Output) -> None:
    counts = dataset.counts()
    output.note(
        f"{run.model.model_type}: {run.num_parameters:,} parameters on {run.device.device_kind} "
        f"({run.config.device}), {run.config.precision}, remat {'on' if run.config.remat else 'off'}"
    )
    window = run.config.train_window
    learned = f"{len(run.plan.queries) // 2:,} in the last {window} steps of " if window else ""
    facts = len(dataset.facts_through(run.config.through))
    if run.config.refit_epochs:
        output.note(f"refit: {run.config.refit_epochs} epochs on the facts through {run.config.through}")
    countries = f", {run.model.num_countries:,} countries" if run.model.num_countries else ""
    output.note(
        f"{learned}{facts:,} training facts, {counts['entities']:,} entities, "
        f"{counts['relations']:,} relations{countries}; {len(run.plan)} steps an epoch"
    )
    if run.standing.epoch or run.standing.step_in_epoch:
        output.note(f"resuming after epoch {run.standing.epoch}, step {run.standing.step_in_epoch} of the next")


def _train(
    run: TrainingRun,
    output: Output,
    validation: _Validation,
    *,
    wandb: bool | None,
    resume: bool,
    options: dict[str, dict[str, Any]],
) -> EpochResult | None:
    """Run all epochs; the last result, or None when a resumed run had nothing left to do."""
    should_stop = _stop_reason(run.config.max_time, validation.signals)
    _compile(run, output)
    run.begin()
    done = run.standing.epoch
    description = describe_run(run, options)
    write_json(run.files.run_dir / "config.json", description)
    logger = TrainingLogger(
        run.files.run_dir,
        run.files.metrics,
        model=run.model.model_type,
        first_epoch=done + 1,
        wandb_run=_start_wandb(wandb, run, description, output, resume=resume),
        warn=output.note,
    )
    logger.describe(description)
    result = None
    display = TrainDisplay(
        output,
        run.config,
        run.memory,
        steps=len(run.plan),
        first_epoch=done + 1,
        is_stopping=lambda: bool(validation.signals),
    )
    validation.progress = display.evaluating
    try:
        with display:
            for result in run.epochs(logger, should_stop=should_stop, on_step=display.step):
                if result.standing.epoch > done:
                    display.epoch(result)
                done = result.standing.epoch
    finally:
        logger.close(_summary(run, result))
    return result


def _compile(run: TrainingRun, output: Output) -> None:
    """Compile the step that needs most memory; refuses what cannot fit before anything is written."""
    if run.standing.ending(run.config) is not None:
        return
    output.note("compiling the optimiser step")
    started = time.perf_counter()
    largest = run.require_memory()
    needed = as_size(largest.argument_bytes + largest.temporary_bytes)
    output.note(f"compiled in {format_seconds(time.perf_counter() - started)}; a step needs {needed}")


def describe_run(run: TrainingRun, options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The resolved settings with their origins, the dataset, and the system."""
    settings = run.settings()
    dataset = settings.pop("dataset")
    derived = {name: {"value": value, "origin": _origin(name)} for name, value in settings.items()}
    resolved = {name: entry | {"value": settings.get(name, entry["value"])} for name, entry in options.items()}
    if run.config.refit_epochs:
        model = {
            "model": run.model.model_type,
            "static_graph": run.model.num_words > 0,
            "countries": run.model.num_countries > 0,
        }
        taken = {
            name: value
            for name, value in (settings | model).items()
            if name not in (*OF_THE_RUN, *ONLY_MEMORY, "count_prior")
        }
        resolved |= {name: {"value": value, "origin": "refit"} for name, value in taken.items()}
    return {"options": derived | resolved, "dataset": dataset, "system": system_description(run.device)}


def _origin(name: str) -> str:
    """Of a setting that is no option."""
    return "dataset" if name in _OF_THE_DATASET else "default"


def _stop_reason(max_time: float, signals: StopSignals) -> Callable[[], str | None]:
    deadline = time.monotonic() + max_time if max_time else None

    def reason() -> str | None:
        if signals:
            return "interrupted"
        return "max_time" if deadline is not None and time.monotonic() > deadline else None

    return reason


def _start_wandb(
    wanted: bool | None, run: TrainingRun, description: dict[str, Any], output: Output, *, resume: bool
) -> Any | None:
    configured = bool(os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"))
    if not (configured if wanted is None else wanted):
        return None
    try:
        return start_wandb(run.files.run_dir, description, resume=resume)
    except Exception as error:  # noqa: BLE001 - a tracker must never stop training
        mend = "; install 'geopol-tkg[wandb]'" if isinstance(error, ModuleNotFoundError) else ""
        output.note(f"warning: no Weights & Biases for this run: {' '.join(str(error).split())}{mend}")
        return None


def _summary(run: TrainingRun, result: EpochResult | None) -> dict[str, Any]:
    standing = run.standing
    stopped = str(run.standing.ending(run.config) if result is None else result.stopped)
    return {
        "status": _STATUS.get(stopped, stopped),
        "epochs_trained": standing.epoch,
        "best_epoch": standing.best_epoch,
        "best_mrr": standing.best_mrr if standing.best_mrr >= 0 else None,
        "total_time": round(standing.elapsed, 3),
        "early_stopped": stopped == "patience",
        "model_type": run.model.model_type,
        "through": run.config.through,
        "checkpoint": str(run.files.best) if standing.best_epoch else None,
        "last": str(run.files.last),
        "run_dir": str(run.files.run_dir),
    }


def _shown(value: Any) -> Any:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else value


def _report_dry_run(run: TrainingRun, output: Output) -> None:
    started = time.perf_counter()
    shapes = run.step_memory()
    needed = max(shape.argument_bytes + shape.temporary_bytes for shape in shapes)
    free = free_bytes(run.device)
    content = {
        "status": "dry_run",
        "model_type": run.model.model_type,
        "num_parameters": run.num_parameters,
        "steps_per_epoch": len(run.plan),
        "compile_seconds": round(time.perf_counter() - started, 2),
        "needed_bytes": needed,
        "free_bytes": free,
        "shapes": [asdict(shape) for shape in shapes],
    }
    table = new_table(*(name.replace("_", " ") for name in asdict(shapes[0])))
    for shape in shapes:
        table.add_row(*("–" if value is None else f"{value:,}" for value in asdict(shape).values()))
    seconds = format_seconds(time.perf_counter() - started)
    there = "" if free is None else f", {as_size(free)} are free"
    lines = (f"compiled in {seconds}; a step needs {as_size(needed)}{there}",)
    output.result(content, "Dry run: step shapes and the bytes they need", table, *lines)
