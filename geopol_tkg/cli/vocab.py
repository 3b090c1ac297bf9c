"""``geopol-tkg vocab``: precompute the history vocabulary of a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from geopol_tkg.cli._app import JsonFlag, Output, QuietFlag, VerboseFlag, app, new_table
from geopol_tkg.config import ModelConfig


@app.command("vocab")
def command(
    dataset: Annotated[
        Path | None, typer.Argument(help="Dataset directory. (default: data/gdelt)", show_default=False)
    ] = None,
    window: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Steps looked back; 0 = all history.")
    ] = ModelConfig.history_window,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Index what was seen before every query, for both directions and for relation queries."""
    import time

    from geopol_tkg.cli._options import default_dataset
    from geopol_tkg.data.dataset import Dataset
    from geopol_tkg.data.history import build_for

    output = Output(json=json, quiet=quiet, verbose=verbose)
    directory = dataset or default_dataset()
    data = Dataset.load(directory)
    started = time.perf_counter()
    history = build_for(data, window=window)
    path = directory / "history.npz"
    history.save(path, dataset_hash=data.content_hash)
    content = {
        "rows": history.num_rows,
        "facts": len(data.facts),
        "window": window,
        "bytes": path.stat().st_size,
        "seconds": round(time.perf_counter() - started, 3),
        "out": str(path),
    }
    table = new_table("", "")
    for name in ("rows", "facts", "window", "bytes", "seconds"):
        table.add_row(name, f"{content[name]:,}")
    output.result(content, f"History vocabulary {path}", table)
