"""``geopol-tkg convert``: a checkpoint to a file for PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from geopol_tkg.cli import _options as opt
from geopol_tkg.cli._app import DataOption, JsonFlag, Output, QuietFlag, VerboseFlag, app, new_table, plain
from geopol_tkg.config import PARITY_TOLERANCE
from geopol_tkg.errors import UsageError

if TYPE_CHECKING:
    from geopol_tkg.evaluation.results import Ranks
    from geopol_tkg.forecasts import LoadedModel
    from geopol_tkg.models.base import Forecaster


@app.command("convert")
def command(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint. (default: the newest best one in models/tkg)", show_default=False),
    ] = None,
    data: DataOption = None,
    output_path: Annotated[
        Path | None,
        typer.Option("--output", help="File to write. (default: <model>_trained beside it)", show_default=False),
    ] = None,
    file_format: Annotated[
        Literal["pt", "safetensors", "torch-export", "onnx"],
        typer.Option(
            "--format",
            help="pt and safetensors hold all that TKGPredictor needs; torch-export (.pt2) and onnx are a program "
            "that scores queries of the next step.",
        ),
    ] = "pt",
    full: Annotated[
        bool, typer.Option("--full", help="Compare scores, ranks and MRR over the whole test split too.")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(min=0, callback=opt.finite, help="Largest difference of log-probabilities, JAX against PyTorch."),
    ] = PARITY_TOLERANCE,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Write weights, labels, frequencies and context as one file, checked against the JAX scores.

    A model card (.md) is written beside it. Exits with 3, and writes no file, when PyTorch's scores differ by more
    than the tolerance.
    """
    output = Output(json=json, quiet=quiet, verbose=verbose)
    opt.require_file(output_path, "--output")
    if output_path is not None and output_path.suffix == ".md":
        raise UsageError(f"--output {output_path}: the model card has this name; name a file that ends otherwise")
    opt.choose_device("cpu")
    stem = checkpoint or opt.default_checkpoint(output)
    from geopol_tkg.convert import SUFFIXES, convert
    from geopol_tkg.evaluation.ranking import overlap_lines
    from geopol_tkg.forecasts import is_ensemble, load_model, next_time

    if is_ensemble(str(stem)):
        raise UsageError(f"{stem}: an ensemble has no file of its own; convert its members one by one")
    model = load_model(stem, None if data is None else opt.open_dataset(data))
    path = output_path or stem.parent / f"{model.checkpoint.config.model_type}_trained{SUFFIXES[file_format]}"
    content = convert(
        model.checkpoint,
        model.alignment.known,
        model.history(),
        output=path,
        file_format=file_format,
        time=next_time(model.alignment),
        tolerance=tolerance,
        rank=_ranking(model, output) if full else None,
    )
    table = new_table("", "")
    for name, value in _flat(content):
        table.add_row(name.replace("_", " "), plain(value))
    title = f"Converted {stem}" if content["passed"] else f"NOT converted: {stem}"
    output.result(content, title, table, *overlap_lines([{"name": stem, **content.get("full", {})}]))
    if not content["passed"]:
        output.note(f"{path} was not written: {_reason(content)}")
        raise typer.Exit(3)


def _ranking(model: "LoadedModel", output: Output) -> "Callable[[Forecaster], Ranks]":
    """Ranks the test split of the facts that the network knows the labels of, in its own ids."""
    from geopol_tkg.cli._progress import Heartbeat
    from geopol_tkg.evaluation.evaluator import evaluate

    def rank(forecaster: "Forecaster") -> "Ranks":
        return evaluate(
            forecaster,
            model.alignment.known,
            known_entities=model.checkpoint.trained_entities,
            progress=Heartbeat(output, f"ranking {forecaster.name}"),
        )

    return rank


def _flat(content: dict[str, Any]) -> list[tuple[str, Any]]:
    """Rows of the table: the parity over the test split without its metrics by stratum."""
    full = content.get("full", {})
    rows = [(name, value) for name, value in content.items() if name != "full"]
    return rows + [(f"test {name}", value) for name, value in full.items() if name != "metrics"]


def _reason(content: dict[str, Any]) -> str:
    difference, tolerance = content["max_abs_difference"], content["tolerance"]
    if difference > tolerance:
        return f"PyTorch's scores differ by {difference:.3g}, more than --tolerance {tolerance:g}"
    full = content["full"]
    return (
        f"over the test split PyTorch's scores differ by {full['max_relative_difference']:.3g} (--tolerance "
        f"{tolerance:g}), {full['beyond_ties']} ranks beyond ties, MRR {full['mrr']:.4f} against {full['mrr_jax']:.4f}"
    )
