"""``geopol-tkg presets``: settings that train can take."""

from typing import Annotated

import typer

from geopol_tkg.cli._app import JsonFlag, Output, QuietFlag, VerboseFlag, app, new_table
from geopol_tkg.cli._presets import load_preset, preset_names

_TITLE = "geopol-tkg presets NAME shows one, geopol-tkg train DATASET --preset NAME takes it"


@app.command("presets")
def command(
    name: Annotated[
        str | None, typer.Argument(help="Preset to show in full. (default: list all)", show_default=False)
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """List settings for train --preset, or show one: published ones, and this program's own.

    A preset says which paper, if any, and which version of a dataset it is of, what was published for it, and the
    commands to run.
    """
    output = Output(json=json, quiet=quiet, verbose=verbose)
    shown = [load_preset(each) for each in ([name] if name is not None else preset_names())]
    if name is not None and not json:
        typer.echo(shown[0].text, nl=False)
        return
    table = new_table("preset", "model", "dataset", "published MRR")
    for column in table.columns[:3]:
        column.justify = "left"
    for preset in shown:
        mrr = preset.about.get("published", {}).get("mrr")
        table.add_row(preset.name, preset.train["model"], preset.about["dataset"], "–" if mrr is None else f"{mrr:.3f}")
    content = [{"name": preset.name, "about": preset.about, "train": preset.train} for preset in shown]
    output.result(content[0] if name is not None else {"presets": content}, _TITLE, table)
