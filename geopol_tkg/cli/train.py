"""``geopol-tkg train``: a dataset to a trained model."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geopol_tkg.cli import _options as opt
from geopol_tkg.cli._app import JsonFlag, Output, QuietFlag, VerboseFlag, app
from geopol_tkg.cli._config import given, options_with_origins
from geopol_tkg.cli._presets import take_preset
from geopol_tkg.config import (
    DEFAULT_MODEL_DIR,
    OF_THE_RUN,
    ONLY_MEMORY,
    IngestConfig,
    MaskMode,
    ModelConfig,
    ModelType,
    Optimiser,
    Precision,
    RefitSplit,
    Schedule,
    TrainConfig,
)
from geopol_tkg.errors import UsageError

if TYPE_CHECKING:
    from geopol_tkg.checkpoint import Checkpoint
    from geopol_tkg.data.dataset import Dataset

_MODEL, _RUN = "Model", "Run"
_DEFAULTS = TrainConfig()
_COUNTS_ONLY = ("half_lives", "countries", "num_paths")
_TIRGN_ONLY = ("history_rate", "history_mask_mode")  # the window is also that of the index kept with the dataset
_STATIC_ONLY = ("static_angle", "static_weight")
_NETWORKS_ONLY = (
    "history_length",
    "history_window",
    *_TIRGN_ONLY,
    "embedding_dim",
    "num_layers",
    "dropout",
    "static_graph",
    *_STATIC_ONLY,
    "task_weight",
    "precision",
    "remat",
)


def _fields(*kinds: type) -> list[str]:
    return [field.name for kind in kinds for field in fields(kind)]


_FIXED_BY_REFIT = {"model", "static_graph", "countries", *_fields(ModelConfig, TrainConfig, IngestConfig)}.difference(
    ("count_prior", "through", *OF_THE_RUN, *ONLY_MEMORY)
)
_WITHOUT_EFFECT: dict[ModelType, tuple[str, ...]] = {
    "counts": _NETWORKS_ONLY,
    "regcn": (*_COUNTS_ONLY, *_TIRGN_ONLY),
    "tirgn": _COUNTS_ONLY,
}


def _model(text: str, *flags: str, **more: Any) -> typer.models.OptionInfo:
    return typer.Option(*flags, help=text, rich_help_panel=_MODEL, **more)


def _run(text: str, *flags: str, **more: Any) -> typer.models.OptionInfo:
    return typer.Option(*flags, help=text, rich_help_panel=_RUN, **more)


def _number(text: str, **more: Any) -> typer.models.OptionInfo:
    return _run(text, min=0, callback=opt.finite, **more)


@app.command("train")
def command(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="Dataset directory, or events to ingest first. (default: data/gdelt; if there is none, the "
            "bundled sample)",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        _model(
            "Settings for a dataset, published or measured, below all other options; geopol-tkg presets lists them.",
            callback=take_preset,
            is_eager=True,
        ),
    ] = None,
    model: Annotated[
        ModelType, _model("Which one: a network, or learned counts of the past.")
    ] = ModelConfig.model_type,
    history_length: Annotated[int, _model("Snapshots evolved.", min=1)] = ModelConfig.history_length,
    history_rate: Annotated[
        float, _model("Weight of the history mode (TiRGN).", min=0, max=1)
    ] = ModelConfig.history_rate,
    history_window: Annotated[
        int, _model("Steps the history vocabulary looks back; 0 = all (TiRGN).", min=0, max=2**31 - 1)
    ] = ModelConfig.history_window,
    history_mask_mode: Annotated[
        MaskMode, _model("Unseen entities in the history mode: logit 0 (multiply) or none (exclude).")
    ] = ModelConfig.history_mask_mode,
    half_lives: Annotated[
        str, _model("Steps after which a count weighs half, one count for each (counts).")
    ] = opt.DEFAULT_HALF_LIVES,
    countries: Annotated[
        bool,
        _model(
            "Learn apart how popular entities of the subject's country are, which labels like Role (Country) or "
            "CAMEO codes name (counts).",
            "--countries/--no-countries",
        ),
    ] = False,
    num_paths: Annotated[
        int,
        _model(
            "Entities that the subject has not met, but that those have met who met the same as it: look at how many "
            "such paths lead to each, of the N with most (counts).",
            min=0,
            metavar="N",
        ),
    ] = ModelConfig.num_paths,
    count_prior: Annotated[
        Path | None,
        _model("Checkpoint of --model counts, whose scores are added to the logits of a network, and trained on."),
    ] = None,
    refit: Annotated[
        Path | None,
        _model(
            "Checkpoint to train once more: its model, settings, dataset and number of epochs, on the facts that "
            "came after train, too (--through). What it learns from can measure it no more."
        ),
    ] = None,
    through: Annotated[RefitSplit, _model("The last split that a refit learns from.")] = "valid",
    embedding_dim: Annotated[int, _model("Hidden size.", min=1)] = ModelConfig.embedding_dim,
    num_layers: Annotated[int, _model("Graph convolutions per snapshot.", min=1)] = ModelConfig.num_layers,
    dropout: Annotated[float, _model("Dropout rate.", min=0, max=0.99)] = ModelConfig.dropout,
    static_graph: Annotated[
        bool, _model("Start from the words of labels like Role (Country).", "--static-graph/--no-static-graph")
    ] = False,
    static_angle: Annotated[
        float, _model("Degrees a step that entities may turn from there.", min=0, max=180)
    ] = ModelConfig.static_angle,
    static_weight: Annotated[
        float, _model("Weight of that constraint in the loss.", min=0, callback=opt.finite)
    ] = _DEFAULTS.static_weight,
    epochs: Annotated[int, _run("Most epochs.", min=1)] = _DEFAULTS.epochs,
    patience: Annotated[int, _run("Epochs without a better valid MRR before stopping.", min=1)] = (_DEFAULTS.patience),
    lr: Annotated[float, _run("Learning rate.", callback=opt.positive)] = _DEFAULTS.lr,
    train_window: Annotated[
        int, _run("Steps at the end of train to learn from; 0 = all. Earlier facts stay in the past.", min=0)
    ] = _DEFAULTS.train_window,
    batch_size: Annotated[
        int, _run("Queries (two for each fact) per optimiser step, of one timestamp; 0 = all of it.", min=0)
    ] = _DEFAULTS.batch_size,
    block_size: Annotated[
        int, _run("Distinct (s, r, ?) of a step scored at once; more are worked through block by block.", min=1)
    ] = _DEFAULTS.block_size,
    num_negatives: Annotated[
        int, _run("Entities that a step's softmax is estimated from; 0 = all, exactly.", min=0)
    ] = _DEFAULTS.num_negatives,
    label_smoothing: Annotated[
        float, _run("Share of a target's weight that all candidates divide.", min=0, max=0.99)
    ] = _DEFAULTS.label_smoothing,
    grad_clip: Annotated[float, _number("Largest gradient norm; 0 = no limit.")] = _DEFAULTS.grad_clip,
    optimiser: Annotated[
        Optimiser, _run("adam adds the weight decay to the gradient (L2), adamw to the update.")
    ] = _DEFAULTS.optimiser,
    weight_decay: Annotated[float, _number("Weight decay.")] = _DEFAULTS.weight_decay,
    schedule: Annotated[Schedule, _run("Of the learning rate; cosine ends at 0.")] = _DEFAULTS.schedule,
    warmup_epochs: Annotated[
        float, _number("Epochs over which the learning rate rises from 0.")
    ] = _DEFAULTS.warmup_epochs,
    task_weight: Annotated[
        float, _run("Weight of the entity loss; relations have the rest, and at 1 are not scored.", min=0, max=1)
    ] = _DEFAULTS.task_weight,
    eval_interval: Annotated[int, _run("Epochs between validations.", min=1)] = _DEFAULTS.eval_interval,
    checkpoint_interval: Annotated[
        int, _run("Epochs between saves of the last state.", min=1)
    ] = _DEFAULTS.checkpoint_interval,
    checkpoint_seconds: Annotated[
        float, _number("Most seconds between these, inside an epoch too.")
    ] = _DEFAULTS.checkpoint_seconds,
    precision: Annotated[
        Precision, _run("Of matrix products; auto = bf16 on a GPU, f32 on a CPU.")
    ] = _DEFAULTS.precision,
    remat: Annotated[
        bool | None,
        _run("Recompute the evolution to save memory. (default: on a GPU)", "--remat/--no-remat"),
    ] = None,
    device: opt.DeviceOption = _DEFAULTS.device,
    seed: Annotated[int, _run("Of everything random.", min=0, max=2**63 - 1)] = _DEFAULTS.seed,
    max_time: Annotated[float, _number("Seconds after which to save and stop; 0 = no limit.")] = (_DEFAULTS.max_time),
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
    """Train a network or the counting model; keeps the checkpoint with the best valid MRR.

    Validation follows the protocol of eval: all queries, both directions, time-aware filter. Training
    ends after --patience epochs without a better valid MRR. SIGINT and SIGTERM save and stop; --resume
    goes on from there. --refit trains a measured model once more, on later facts, too.
    """
    chosen = locals()
    output = Output(json=json, quiet=quiet, verbose=verbose)
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other: leave one out")
    if model == "tirgn" and history_rate == 1 and history_mask_mode == "exclude":
        raise UsageError("--history-rate 1 and --history-mask-mode exclude leave new facts no chance: lower the rate")
    ingest_config = IngestConfig(**_given(IngestConfig, chosen, split=opt.parse_split(split)))
    chosen["half_lives"] = opt.parse_half_lives(half_lives)
    opt.choose_device(device)
    from geopol_tkg.checkpoint import checkpoint_paths
    from geopol_tkg.cli._sources import open_or_ingest
    from geopol_tkg.cli._training import load_prior, load_refitted, refit_settings, train
    from geopol_tkg.data.dataset import Dataset
    from geopol_tkg.data.sources import SAMPLE
    from geopol_tkg.training.run import RunFiles

    options = options_with_origins(context)
    settings = TrainConfig(**_given(TrainConfig, chosen, through="train"))
    refitted = None
    if refit is None:
        _tell_what_has_no_effect(options, ("through",), "without --refit", output)
    else:
        _tell_what_has_no_effect(options, [name for name in options if name in _FIXED_BY_REFIT], "with --refit", output)
        source = opt.SAMPLE_DATASET if dataset == SAMPLE else dataset
        refitted, data = load_refitted(refit, None if source is None else Dataset.load(Path(source)))
        own = {name: chosen[name] for name in (*OF_THE_RUN, *given(options, ONLY_MEMORY))}
        settings = refit_settings(refitted, own, through)
        model = refitted.config.model_type
        if refitted.config.count_prior != (count_prior is not None):
            wanted, how = ("needs", "beside") if refitted.config.count_prior else ("takes no", "without")
            raise UsageError(f"--refit {wanted} --count-prior: {refit} was trained {how} one")
    files = RunFiles(model_dir, logdir / (run_name or model), model)
    if refit is not None and checkpoint_paths(refit.resolve()) == checkpoint_paths(files.best.resolve()):
        raise UsageError(f"--refit {refit}: would be replaced by its refit; name another --model-dir")
    files.check(resume=resume, overwrite=overwrite or dry_run)
    if refitted is None:
        of_ingest = given(options, [name for name in vars(ingest_config) if name != "seed"])
        data = open_or_ingest(dataset, ingest_config, of_ingest, output)
        _tell_what_has_no_effect(options, _WITHOUT_EFFECT[model], f"on --model {model}", output)
        if model != "counts" and not static_graph:
            _tell_what_has_no_effect(options, _STATIC_ONLY, "without --static-graph", output)
    prior = None if count_prior is None else load_prior(count_prior, data, model, settings)
    network = _new_model(chosen, data, prior) if refitted is None else refitted.config
    if prior is not None and _counts_of(prior.config) != _counts_of(network):
        raise UsageError(f"--count-prior {count_prior}: counts other things than that beside {refit}")
    train(
        data,
        network,
        settings,
        files=files,
        output=output,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        wandb=wandb,
        options=options,
        prior=prior,
        temperature=None if refitted is None else refitted.temperature,
    )


def _new_model(chosen: dict[str, Any], data: "Dataset", prior: "Checkpoint | None") -> ModelConfig:
    """The model that the options describe, of a dataset's sizes."""
    from geopol_tkg.cli._training import count_countries
    from geopol_tkg.data.static_graph import StaticGraph

    model = chosen["model"]
    sizes: dict[str, Any] = {"num_entities": data.num_entities, "num_relations": data.num_relations}
    if chosen["static_graph"]:
        if chosen["embedding_dim"] % 2:
            raise UsageError(f"--static-graph needs an even --embedding-dim, not {chosen['embedding_dim']}")
        sizes |= StaticGraph.from_labels(data.entities).sizes()
    if model != "counts":
        sizes |= {"num_paths": 0}
    if prior is not None:
        sizes |= {"half_lives": prior.config.half_lives, "num_countries": prior.config.num_countries}
    elif model == "counts" and chosen["countries"]:
        sizes |= {"num_countries": count_countries(data)}
    return ModelConfig(**_given(ModelConfig, chosen) | sizes | {"model_type": model, "count_prior": prior is not None})


def _counts_of(config: ModelConfig) -> tuple[Any, ...]:
    """What a counting model's shape follows from."""
    return config.half_lives, config.num_countries


def _tell_what_has_no_effect(
    options: dict[str, dict[str, Any]], names: Sequence[str], where: str, output: Output
) -> None:
    """Those of the names that were given."""
    if found := given(options, names):
        flags = ", ".join("--" + name.replace("_", "-") for name in found)
        output.note(f"no effect {where}: {flags}")


def _given(config_type: type, chosen: dict[str, Any], **others: Any) -> dict[str, Any]:
    """The options that are fields of a configuration, and the others."""
    return {name: chosen[name] for name in _fields(config_type) if name in chosen} | others
