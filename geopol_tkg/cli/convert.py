"""``geopol-tkg convert``: a checkpoint to a PyTorch ``.pt``."""

from pathlib import Path
from typing import Annotated

import typer

from geopol_tkg.cli import _options as opt
from geopol_tkg.cli._app import DataOption, JsonFlag, Output, QuietFlag, VerboseFlag, app, new_table, plain
from geopol_tkg.config import PARITY_TOLERANCE


@app.command("convert")
def command(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint. (default: the best one in models/tkg)", show_default=False),
    ] = None,
    data: DataOption = None,
    output_path: Annotated[
        Path | None,
        typer.Option("--output", help="File to write. (default: <model>_trained.pt beside it)", show_default=False),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0, callback=opt.finite, help="Largest difference of log-probabilities, JAX against PyTorch."),
    ] = PARITY_TOLERANCE,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Write weights, labels, frequencies and context as one .pt, checked against the JAX scores.

    Exits with 3, and leaves no file, when PyTorch's scores differ by more than the tolerance.
    """
    output = Output(json=json, quiet=quiet, verbose=verbose)
    opt.choose_device("cpu")
    stem = checkpoint or opt.default_checkpoint(output)
    from geopol_tkg.convert import convert
    from geopol_tkg.forecasts import load_model, next_time

    model = load_model(stem, None if data is None else opt.open_dataset(data))
    path = output_path or stem.parent / f"{model.checkpoint.config.model_type}_trained.pt"
    content = convert(
        model.checkpoint,
        model.alignment.known,
        model.history(),
        output=path,
        time=next_time(model.alignment),
        tolerance=tolerance,
    )
    table = new_table("", "")
    for name, value in content.items():
        table.add_row(name.replace("_", " "), plain(value))
    output.result(content, f"Converted {stem}" if content["passed"] else f"NOT converted: {stem}", table)
    if not content["passed"]:
        output.note(
            f"{path} was not written: PyTorch's scores differ by {content['max_abs_difference']:.3g}, "
            f"more than --tolerance {tolerance:g}"
        )
        raise typer.Exit(3)
