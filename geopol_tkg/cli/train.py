"""``geopol-tkg train``: a dataset to a trained network."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geopol_tkg.cli import _options as opt
from geopol_tkg.cli._app import (
    JsonFlag,
    Output,
    QuietFlag,
    StopSignals,
    VerboseFlag,
    app,
    new_table,
    plain,
)
from geopol_tkg.config import (
    DEFAULT_DATASET,
    DEFAULT_MODEL_DIR,
    SAMPLE_CONFIG,
    IngestConfig,
    MaskMode,
    ModelConfig,
    ModelType,
    Precision,
    TrainConfig,
)
from geopol_tkg.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from geopol_tkg.data.dataset import Dataset
    from geopol_tkg.training.run import TrainingRun

_MODEL, _RUN = "Network", "Run"
_DEFAULTS = TrainConfig()


def _model(text: str, **limits: float) -> Any:
    return typer.Option(help=text, rich_help_panel=_MODEL, **limits)  # type: ignore[arg-type]


def _run(text: str, *flags: str, **limits: float) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=_RUN, **limits)  # type: ignore[arg-type]


@app.command("train")
def command(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="Dataset directory, or events to ingest first. (default: data/gdelt; if there is none, the "
            "bundled sample)",
            show_default=False,
        ),
    ] = None,
    model: Annotated[ModelType, _model("Which network.")] = ModelConfig.model_type,
    history_length: Annotated[int, _model("Snapshots evolved.", min=1)] = ModelConfig.history_length,
    history_rate: Annotated[
        float, _model("Weight of the history mode (TiRGN).", min=0, max=1)
    ] = ModelConfig.history_rate,
    history_window: Annotated[
        int, _model("Steps the history vocabulary looks back; 0 = all (TiRGN).", min=0)
    ] = ModelConfig.history_window,
    history_mask_mode: Annotated[
        MaskMode, _model("Unseen entities in the history mode: logit 0 (multiply) or none (exclude).")
    ] = ModelConfig.history_mask_mode,
    embedding_dim: Annotated[int, _model("Hidden size.", min=1)] = ModelConfig.embedding_dim,
    num_layers: Annotated[int, _model("Graph convolutions per snapshot.", min=1)] = ModelConfig.num_layers,
    dropout: Annotated[float, _model("Dropout rate.", min=0, max=0.99)] = ModelConfig.dropout,
    epochs: Annotated[int, _run("Most epochs.", min=1)] = _DEFAULTS.epochs,
    patience: Annotated[int, _run("Epochs without a better valid MRR before stopping.", min=1)] = (_DEFAULTS.patience),
    lr: Annotated[float, _run("Learning rate.", min=0)] = _DEFAULTS.lr,
    batch_size: Annotated[
        int, _run("Queries per optimiser step, of one timestamp; 0 = all of a timestamp.", min=0)
    ] = _DEFAULTS.batch_size,
    grad_clip: Annotated[float, _run("Largest gradient norm; 0 = no limit.", min=0)] = _DEFAULTS.grad_clip,
    weight_decay: Annotated[float, _run("L2 added to the gradient.", min=0)] = _DEFAULTS.weight_decay,
    task_weight: Annotated[
        float, _run("Weight of the entity loss; relations have the rest.", min=0, max=1)
    ] = _DEFAULTS.task_weight,
    eval_interval: Annotated[int, _run("Epochs between validations.", min=1)] = _DEFAULTS.eval_interval,
    checkpoint_interval: Annotated[
        int, _run("Epochs between saves of the last state.", min=1)
    ] = _DEFAULTS.checkpoint_interval,
    precision: Annotated[
        Precision, _run("Of matrix products; auto = bf16 on a GPU, f32 on a CPU.")
    ] = _DEFAULTS.precision,
    remat: Annotated[
        bool | None,
        _run("Recompute the evolution to save memory. (default: on a GPU)", "--remat/--no-remat"),
    ] = None,
    device: opt.DeviceOption = _DEFAULTS.device,
    seed: Annotated[int, _run("Of everything random.", min=0)] = _DEFAULTS.seed,
    max_time: Annotated[float, _run("Seconds after which to save and stop; 0 = no limit.", min=0)] = (
        _DEFAULTS.max_time
    ),
    model_dir: Annotated[Path, _run("Where checkpoints go.")] = Path(DEFAULT_MODEL_DIR),
    logdir: Annotated[Path, _run("Where TensorBoard logs go.")] = Path("runs"),
    run_name: Annotated[str | None, _run("Folder in the log directory. (default: the model)")] = None,
    wandb: Annotated[
        bool | None,
        _run(
            "Log to Weights & Biases. (default: when WANDB_API_KEY or WANDB_MODE is set)",
            "--wandb/--no-wandb",
        ),
    ] = None,
    resume: Annotated[bool, _run("Go on from the last checkpoint.", "--resume")] = False,
    overwrite: Annotated[bool, _run("Replace an earlier model.", "--overwrite")] = False,
    dry_run: Annotated[bool, _run("Compile, show shapes and memory, train nothing.", "--dry-run")] = False,
    entity: opt.EntityOption = opt.INGEST.entity,
    relation: opt.RelationOption = opt.INGEST.relation,
    granularity: opt.GranularityOption = opt.INGEST.granularity,
    time: opt.TimeOption = opt.INGEST.time,
    num_days: opt.NumDaysOption = opt.INGEST.num_days,
    max_events: opt.MaxEventsOption = opt.INGEST.max_events,
    min_mentions: opt.MinMentionsOption = opt.INGEST.min_mentions,
    min_entity_count: opt.MinEntityCountOption = opt.INGEST.min_entity_count,
    keep_self_pairs: opt.SelfPairsOption = opt.INGEST.keep_self_pairs,
    split: opt.SplitOption = opt.DEFAULT_SPLIT,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Train TiRGN or RE-GCN; keeps the checkpoint with the best valid MRR.

    Validation follows the protocol of eval: all queries, both directions, time-aware filter. Training
    ends after --patience epochs without a better valid MRR. SIGINT and SIGTERM save and stop; --resume
    goes on from there.
    """
    chosen = locals()
    output = Output(json=json, quiet=quiet, verbose=verbose)
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other")
    settings = _take(TrainConfig, chosen)
    ingest_config = IngestConfig(**{**_given(IngestConfig, chosen), "split": opt.parse_split(split)})
    opt.choose_device(device)
    data = _open_dataset(dataset, ingest_config, output)
    from geopol_tkg.training.run import RunFiles

    files = RunFiles(model_dir, logdir / (run_name or model), model)
    if (old := files.existing()) and not (resume or overwrite or dry_run):
        raise TrainingError(f"{old} exists: --resume goes on with it, --overwrite replaces it")
    network = ModelConfig(
        model_type=model,
        num_entities=data.num_entities,
        num_relations=data.num_relations,
        embedding_dim=embedding_dim,
        num_layers=num_layers,
        dropout=dropout,
        history_length=history_length,
        history_rate=history_rate,
        history_window=history_window,
        history_mask_mode=history_mask_mode,
    )
    train(data, network, settings, files=files, output=output, resume=resume, dry_run=dry_run, wandb=wandb)


def _given(config_type: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    """The options that are fields of a configuration."""
    return {f.name: chosen[f.name] for f in fields(config_type) if f.name in chosen and f.name != "split"}


def _take(config_type: type[TrainConfig], chosen: dict[str, Any]) -> TrainConfig:
    return config_type(**_given(config_type, chosen))


def train(
    dataset: "Dataset",
    model: ModelConfig,
    config: TrainConfig,
    *,
    files: Any,
    output: Output,
    resume: bool = False,
    dry_run: bool = False,
    wandb: bool | None = False,
) -> None:
    """Train a network and report; exits with 130 or 143 after a signal, the state being saved."""
    with StopSignals() as signals:
        holder: list[Any] = []
        run = _prepare(dataset, model, config, files, output, resume, signals, holder)
        if dry_run:
            return _report_dry_run(run, output)
        result = _train(run, output, holder, signals, _start_wandb(wandb, run, output))
    content = _summary(run, result)
    table = new_table(f"Trained {model.model_type}: {content['status']}", "", "")
    for name in ("epochs_trained", "best_epoch", "best_mrr", "total_time", "checkpoint", "last", "run_dir"):
        table.add_row(name.replace("_", " "), plain(content[name]))
    output.result(content, table)
    if signals:
        raise typer.Exit(signals.exit_code)
    return None


def _prepare(
    dataset: "Dataset",
    model: ModelConfig,
    config: TrainConfig,
    files: Any,
    output: Output,
    resume: bool,
    signals: StopSignals,
    holder: list[Any],
) -> "TrainingRun":
    """Build the run; validation reports to the display that ``holder`` will hold."""
    from geopol_tkg.evaluation.evaluator import Interrupted, evaluate
    from geopol_tkg.models.forecaster import NetworkForecaster
    from geopol_tkg.training.run import TrainingRun

    def validate(forecaster: NetworkForecaster) -> dict[str, Any] | None:
        progress = holder[0].evaluating if holder else None
        try:
            ranks = evaluate(forecaster, dataset, split="valid", should_stop=lambda: bool(signals), progress=progress)
        except Interrupted:
            return None
        return ranks.metrics()

    history = _history(dataset, model.history_window, output)
    run = TrainingRun(dataset, history, model=model, config=config, files=files, validate=validate, resume=resume)
    _announce(run, dataset, output)
    return run


def _history(dataset: "Dataset", window: int, output: Output) -> Any:
    from geopol_tkg.data.history import load_or_build

    history, reason = load_or_build(dataset, window=window)
    if reason is None:
        output.detail(f"history vocabulary: {dataset.path}/history.npz")
        return history
    output.note(f"history vocabulary built (window {window}): {reason}")
    if dataset.path is not None:
        history.save(dataset.path / "history.npz", dataset_hash=dataset.content_hash)
    return history


def _announce(run: "TrainingRun", dataset: "Dataset", output: Output) -> None:
    counts = dataset.counts()
    output.note(
        f"{run.model.model_type}: {run.num_parameters:,} parameters on {run.device.device_kind} "
        f"({run.config.device}), {run.config.precision}, remat {'on' if run.config.remat else 'off'}"
    )
    output.note(
        f"{counts['train']:,} training facts, {counts['entities']:,} entities, "
        f"{counts['relations']:,} relations; {len(run.plan)} steps an epoch"
    )
    if run.standing.epoch or run.standing.step_in_epoch:
        output.note(f"resuming after epoch {run.standing.epoch}, step {run.standing.step_in_epoch} of the next")


def _train(run: "TrainingRun", output: Output, holder: list[Any], signals: StopSignals, wandb_run: Any | None) -> Any:
    """Run all epochs; the last result, or None when a resumed run had nothing left to do."""
    import time

    from geopol_tkg.cli._progress import TrainDisplay
    from geopol_tkg.training.trackers import TrainingLogger

    deadline = time.monotonic() + run.config.max_time if run.config.max_time else None

    def should_stop() -> str | None:
        if signals:
            return "interrupted"
        return "max_time" if deadline is not None and time.monotonic() > deadline else None

    first_epoch = run.standing.epoch + 1
    logger = TrainingLogger(
        run.files.run_dir,
        run.files.metrics,
        model=run.model.model_type,
        first_epoch=first_epoch,
        wandb_run=wandb_run,
    )
    result = None
    display = TrainDisplay(output, run.config, run.memory, steps=len(run.plan), first_epoch=first_epoch)
    with display:
        holder.append(display)
        for result in run.epochs(logger, should_stop=should_stop, on_step=display.step):
            if result.standing.step_in_epoch == 0:
                display.epoch(result)
    logger.close(_summary(run, result))
    return result


def _start_wandb(wanted: bool | None, run: "TrainingRun", output: Output) -> Any | None:
    import os

    from geopol_tkg.training.trackers import start_wandb

    configured = bool(os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"))
    if not (configured if wanted is None else wanted):
        return None
    try:
        return start_wandb(run.files.run_dir, run.settings())
    except Exception as error:  # noqa: BLE001 - a tracker must never stop training
        output.note(f"warning: no Weights & Biases for this run: {error}")
        return None


def _summary(run: "TrainingRun", result: Any) -> dict[str, Any]:
    standing = run.standing
    stopped = "patience" if result is None else result.stopped
    return {
        "status": {"patience": "early_stopped", "epochs": "completed"}.get(stopped, stopped),
        "epochs_trained": standing.epoch,
        "best_epoch": standing.best_epoch,
        "best_mrr": standing.best_mrr if standing.best_epoch else None,
        "total_time": round(standing.elapsed, 3),
        "early_stopped": stopped == "patience",
        "model_type": run.model.model_type,
        "checkpoint": str(run.files.best) if standing.best_epoch else None,
        "last": str(run.files.last),
        "run_dir": str(run.files.run_dir),
    }


def _report_dry_run(run: "TrainingRun", output: Output) -> None:
    import time

    started = time.perf_counter()
    shapes = run.compiled_memory()
    content = {
        "status": "dry_run",
        "model_type": run.model.model_type,
        "num_parameters": run.num_parameters,
        "steps_per_epoch": len(run.plan),
        "compile_seconds": round(time.perf_counter() - started, 2),
        "shapes": shapes,
    }
    table = new_table("Dry run: step shapes and the memory they need", *(n.replace("_", " ") for n in shapes[0]))
    for shape in shapes:
        table.add_row(*(f"{value:,}" for value in shape.values()))
    output.result(content, table)


def _open_dataset(source: str | None, config: IngestConfig, output: Output) -> "Dataset":
    """A dataset directory as it is; events ingested into ``data/<name>`` first; by default the sample."""
    from geopol_tkg.cli.ingest import ingest_to
    from geopol_tkg.data.dataset import Dataset, is_dataset

    if source is None and not is_dataset(Path(DEFAULT_DATASET)):
        output.note(
            f"NO DATASET given and none at {DEFAULT_DATASET}: training on the BUNDLED SAMPLE of GDELT, "
            f"ingested into {opt.SAMPLE_DATASET}"
        )
        return ingest_to(["sample"], SAMPLE_CONFIG, opt.SAMPLE_DATASET, output)
    path = Path(source or DEFAULT_DATASET)
    if is_dataset(path):
        return Dataset.load(path)
    out = Path("data") / path.name.split(".")[0]
    output.note(f"{source}: not a dataset; ingesting it into {out}")
    return ingest_to([str(source)], config, out, output)
