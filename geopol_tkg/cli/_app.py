"""What all commands share: the app, its output channels, common options."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TextIO

import typer
from typer.core import TyperGroup

from geopol_tkg.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of a table.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no log lines.")]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="More log lines; tracebacks of failures.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Dataset directory. (default: the one trained on)", show_default=False),
]

_ORDER = ("ingest", "vocab", "presets", "train", "eval", "compare", "report", "predict", "convert", "doctor")
_WIDE = 1000  # columns without a terminal: rows are never broken


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        """The order of work, not of the alphabet."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuses empty arguments, such as unset variables of scripts: as a path they would mean the current folder."""
        for before, text in zip(["", *args], args, strict=False):
            if not text or (text.startswith("--") and text.endswith("=")):
                what = text.rstrip("=") or (before if before.startswith("-") else "an argument")
                raise UsageError(f"{what} is empty; leave it out or give it a value")
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="geopol-tkg",
    cls=_Commands,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


@dataclass
class Output:
    """stdout carries the result, stderr everything else."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    traceback_wanted: ClassVar[bool] = False  # by the running command's --verbose, for the error boundary

    def __post_init__(self) -> None:
        Output.traceback_wanted = self.verbose

    def note(self, text: str) -> None:
        """A log line; nobody may be left who reads it."""
        if self.quiet:
            return
        try:
            print(text, file=sys.stderr, flush=True)
        except BrokenPipeError:
            silence(sys.stderr)

    def detail(self, text: str) -> None:
        """A log line for --verbose."""
        if self.verbose:
            self.note(text)

    def result(self, content: dict[str, Any], title: str, table: "Table", *lines: str) -> None:
        """Print the command's result: the JSON object, or a title, a table and lines below it."""
        if sys.stdout is None:  # closed by the caller
            return
        if self.json:
            unicode = (sys.stdout.encoding or "").lower().startswith("utf")
            print(json.dumps(content, allow_nan=False, ensure_ascii=not unicode), flush=True)
            return
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)
        with console.capture() as captured:
            console.print(table)
        rows = [line.rstrip() for line in captured.get().splitlines() if line.strip()]
        print(title, *rows, *lines, sep="\n", flush=True)


def silence(stream: TextIO) -> None:
    """Send a stream nowhere: what is written to it, and what it still holds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def new_table(*columns: str) -> "Table":
    """A table whose first column holds names and whose others hold figures; no header for empty names."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def plain(text: object) -> str:
    """Text for a rich table: labels may hold brackets."""
    from rich.markup import escape

    return escape(str(text))


def _version(value: bool) -> None:
    if value:
        from geopol_tkg import __version__

        print(f"geopol-tkg {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="GEOPOL_TKG_CONFIG",
            help="TOML file with a table of options for each command.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Forecast geopolitical events from GDELT with temporal knowledge graphs.

    Options can be set in a TOML file (`--config`; `[train]`, `lr = 0.01`) and by variables such as
    `GEOPOL_TKG_TRAIN_LR`. The command line wins over variables, variables over the file.
    """
    from geopol_tkg.cli._config import defaults

    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit(2)
    group: Any = ctx.command  # typer names no type that has commands
    ctx.default_map = defaults(group.commands, config)
