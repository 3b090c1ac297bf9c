"""``geopol-tkg predict``: ranked forecasts by label."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from geopol_tkg.cli import _options as opt
from geopol_tkg.cli._app import DataOption, JsonFlag, Output, QuietFlag, VerboseFlag, app, new_table, plain
from geopol_tkg.cli._explanations import explanation_lines

if TYPE_CHECKING:
    from rich.table import Table


@app.command("predict")
def command(
    entity: Annotated[str, typer.Argument(metavar="SUBJECT", help="Entity label; the object with --object.")],
    relation: Annotated[str, typer.Argument(metavar="RELATION", help="Relation label.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint, or A+B for the mean of several. (default: the newest best one in models/tkg)",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    rank_subjects: Annotated[bool, typer.Option("--object", help="SUBJECT is the object; rank subjects.")] = False,
    at: Annotated[
        str | None,
        typer.Option(
            help="Time to forecast (2017-11-08T12:00, 20171108120000), from the facts before it. "
            "(default: the next step)",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Candidates shown.")] = 10,
    explain: Annotated[bool, typer.Option("--explain", help="Say what the past says of each candidate.")] = False,
    device: opt.DeviceOption = "auto",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Rank who comes next: (SUBJECT, RELATION, ?) at the next time step."""
    output = Output(json=json, quiet=quiet, verbose=verbose)
    opt.choose_device(device)
    name = checkpoint or str(opt.default_checkpoint(output))
    from geopol_tkg.forecasts import load_named, predict

    model = load_named(name, None if data is None else opt.open_dataset(data))
    asked: Literal["object", "subject"] = "subject" if rank_subjects else "object"
    content = predict(model, entity, relation, direction=asked, at=at, top=top, explain=explain)
    if content["steps_ahead"] > 1:
        output.note(f"{content['steps_ahead']:,} time steps after the last facts: what came between is not known here")
    query = f"(?, {relation}, {entity})" if rank_subjects else f"({entity}, {relation}, ?)"
    lines = explanation_lines(content, asked) if explain else ()
    output.result(content, f"{query} at {content['time']}", _table(content, asked), *lines)


def _table(content: dict[str, Any], asked: str) -> "Table":
    table = new_table(asked, "probability", "seen before", "last seen")
    for row in content["predictions"]:
        seen = "yes" if row["seen_before"] else "no"
        table.add_row(plain(row[asked]), f"{row['probability']:.4f}", seen, plain(row["last_seen"] or "–"))
    return table
