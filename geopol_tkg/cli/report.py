"""``geopol-tkg report``: one HTML file about models, their baselines and their forecasts."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geopol_tkg.cli import _options as opt
from geopol_tkg.cli._app import DataOption, JsonFlag, Output, QuietFlag, VerboseFlag, app, new_table, plain
from geopol_tkg.config import DEFAULT_MODEL_DIR, SplitName
from geopol_tkg.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from geopol_tkg.cli._models import OpenModel
    from geopol_tkg.data.dataset import Dataset
    from geopol_tkg.report.content import Example, Model, Report

_BASELINES = ("recurrency", "frequency")


@app.command("report")
def command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...",
            help="Checkpoints, folders (their best checkpoints) and baselines; the first is what the report is "
            "about. (default: models/tkg)",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    split: Annotated[SplitName, typer.Option(help="Which split.")] = "test",
    output_path: Annotated[Path, typer.Option("--output", help="HTML file.")] = Path("report.html"),
    examples: Annotated[int, typer.Option(min=0, help="Queries shown with their answers.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Of the queries drawn for examples.")] = 0,
    device: opt.DeviceOption = "auto",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Write a report: training curves, comparison, strata, calibration, examples; one HTML file.

    The file needs no network. The baselines recurrency and frequency stand beside every model, recurrency
    where there is enough before the split to fit it on.
    """
    from datetime import UTC, datetime

    from geopol_tkg.data.files import replace_file
    from geopol_tkg.evaluation.ranking import overlap_lines
    from geopol_tkg.report.page import page

    output = Output(json=json, quiet=quiet, verbose=verbose)
    opt.require_file(output_path, "--output")
    opt.choose_device(device)
    dataset = None if data is None else opt.open_dataset(data)
    names = _expanded(runs or [DEFAULT_MODEL_DIR])
    content = report(names, dataset=dataset, split=split, examples=examples, seed=seed, output=output)
    with replace_file(output_path) as file:
        file.write(page(content, made=datetime.now(UTC)).encode(errors="backslashreplace"))
    summary = _summary(content, output_path)
    title = f"{summary['num_queries']:,} queries of {split}, single-step, time filter, both directions"
    output.result(summary, title, _table(summary), *overlap_lines(summary["models"]), "", f"report: {output_path}")


def report(
    names: Sequence[str], *, dataset: "Dataset | None", split: SplitName, examples: int, seed: int, output: Output
) -> "Report":
    """Measure every model and what stands beside it."""
    from geopol_tkg.cli._models import shared_dataset
    from geopol_tkg.report.content import Report, distinct_names

    if dataset is None:
        dataset = shared_dataset(names) or opt.open_dataset(None)
    chosen = [*names, *_baselines(names, dataset, split, output)]
    models = [
        _measured(run, name, dataset, split=split, output=output)
        for run, name in zip(chosen, distinct_names(chosen), strict=True)
    ]
    shown = _examples(models[0], dataset, split=split, number=examples, seed=seed, output=output)
    words = ["geopol-tkg", "report", *names, *([] if dataset.path is None else ["--data", str(dataset.path)])]
    words += ["--split", split, "--examples", str(examples), "--seed", str(seed)]
    return Report(models, shown, dataset, split, seed, shlex.join(words))


def _baselines(names: Sequence[str], dataset: "Dataset", split: SplitName, output: Output) -> list[str]:
    """Those that nobody named; without what cannot be fitted, for there is too little before the split."""
    from geopol_tkg.models.recurrency import before_split

    missing = [name for name in _BASELINES if name not in {named.partition(":")[0] for named in names}]
    if "recurrency" in missing and split != "test":
        try:
            before_split(dataset, split)
        except UsageError as error:
            output.note(f"the report goes without it: {error}")
            missing.remove("recurrency")
    return missing


def _expanded(runs: Sequence[str]) -> list[str]:
    """Folders replaced by their best checkpoints, names without suffixes, each once."""
    found: dict[str, None] = {}
    for run in runs:
        path = Path(run)
        if not path.is_dir():
            found[str(path.with_suffix("")) if path.suffix in (".npz", ".json") else run] = None
            continue
        stems = [str(file.with_suffix("")) for file in sorted(path.glob("*_best.json"), key=_age)]
        if not stems:
            raise CheckpointError(f"{run}: no checkpoint here (no *_best.json); run geopol-tkg train first")
        found |= dict.fromkeys(stems)
    return list(found)


def _measured(run: str, name: str, dataset: "Dataset", *, split: SplitName, output: Output) -> "Model":
    from geopol_tkg.checkpoint import load_checkpoint
    from geopol_tkg.cli.evaluate import evaluate_named
    from geopol_tkg.forecasts import is_ensemble
    from geopol_tkg.models.recurrency import is_baseline
    from geopol_tkg.report.content import Model
    from geopol_tkg.report.curves import read_curves

    output.note(f"evaluating {name}")
    ranks, metrics = evaluate_named(
        run, dataset=dataset, split=split, protocol="single-step", filter_name="time", output=output
    )
    if is_baseline(run) or is_ensemble(run):
        return Model(name, run, ranks, metrics, note=_note(metrics))
    checkpoint = load_checkpoint(Path(run))
    return Model(
        name,
        run,
        ranks,
        metrics,
        checkpoint=checkpoint,
        curves=read_curves(Path(run).parent / "metrics.jsonl", checkpoint.config.model_type),
        note=_note(metrics),
    )


def _opened(run: str, dataset: "Dataset", split: SplitName, output: Output) -> "OpenModel":
    """A model once more, its remarks having been made."""
    from geopol_tkg.cli._models import open_model

    silent = replace(output, quiet=True)
    return open_model(run, dataset, split=split, protocol="single-step", output=silent)


def _note(metrics: dict[str, Any]) -> str:
    """What the figures of a model on another dataset than its own suffer from."""
    unknown = f"{metrics.get('unknown_entities', 0):,} entities and {metrics.get('unknown_relations', 0):,} relations"
    notes = [f"{unknown} of the dataset are unknown to it"] if "unknown_entities" in metrics else []
    if metrics.get("overlaps_training"):
        notes.append("it was trained on times of this split, so that these figures are no forecasts")
    return "; ".join(notes)


def _examples(
    model: "Model", dataset: "Dataset", *, split: SplitName, number: int, seed: int, output: Output
) -> "list[Example]":
    from geopol_tkg.report.content import Example, true_answers
    from geopol_tkg.report.sample import draw, first_answers

    if not number:
        return []
    rows = draw(model.ranks, number, seed=seed)
    opened = _opened(model.run, dataset, split, output)
    answers = first_answers(opened.forecaster, model.ranks, rows, temperature=opened.temperature)
    return [
        Example(row, found, true_answers(model.ranks, row)) for row, found in zip(rows.tolist(), answers, strict=True)
    ]


def _summary(content: "Report", path: Path) -> dict[str, Any]:
    from geopol_tkg.cli.evaluate import REMARKS
    from geopol_tkg.evaluation.ranking import METRICS

    rows = []
    for model in content.models:
        low, high = model.interval or (None, None)
        kept = (*METRICS, "object", "subject", "strata", *(name for name in REMARKS if name in model.metrics))
        rows.append(
            {
                "name": model.name,
                "run": model.run,
                **{key: model.metrics[key] for key in kept},
                "ci_low": low,
                "ci_high": high,
                "calibration_error": None if model.calibration is None else model.calibration["ece"],
            }
        )
    return {
        "output": str(path),
        "models": rows,
        "num_queries": len(content.ranks.rank),
        "split": content.split,
        "protocol": "single-step",
        "filter": "time",
        "dataset": content.dataset.content_hash,
    }


def _table(content: dict[str, Any]) -> "Table":
    from geopol_tkg.evaluation.ranking import METRICS, format_metric

    table = new_table("model", *METRICS)
    for row in content["models"]:
        table.add_row(plain(row["name"]), *(format_metric(row[name]) for name in METRICS))
    return table


def _age(file: Path) -> tuple[float, str]:
    """The newest first."""
    return -file.stat().st_mtime, file.name
