"""What all commands share: the app, output channels, the error boundary, common options."""

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geopol_tkg.errors import GeopolTkgError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of a table.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no log lines.")]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="More log lines; tracebacks of failures.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Dataset directory. (default: the one trained on)", show_default=False),
]

app = typer.Typer(
    name="geopol-tkg",
    help="Forecast geopolitical events from GDELT with temporal knowledge graphs.",
    no_args_is_help=True,
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

    def __post_init__(self) -> None:
        os.environ["GEOPOL_TKG_VERBOSE"] = "1" if self.verbose else ""

    def note(self, text: str) -> None:
        """A log line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def detail(self, text: str) -> None:
        """A log line for --verbose."""
        if self.verbose:
            self.note(text)

    def result(self, content: dict[str, Any], table: "Table") -> None:
        """Print the command's result."""
        if self.json:
            text = json.dumps(content, allow_nan=False, ensure_ascii=False)
            print(text, flush=True)  # noqa: T201
            return
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console = Console(width=160)
        console.print(table)


@dataclass
class StopSignals:
    """SIGINT and SIGTERM as a flag, so that work in hand is finished and saved.

    A script's background jobs start with SIGINT ignored; the handlers are set all the same. A second
    signal ends the process at once.
    """

    number: int | None = None
    _before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)

    def __bool__(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int:
        return 128 + (self.number or 0)


def new_table(title: str, *columns: str) -> "Table":
    """A table whose first column holds names and whose others hold figures."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def plain(text: object) -> str:
    """Text for a rich table: labels may hold brackets."""
    from rich.markup import escape

    return escape(str(text))


def _version(value: bool) -> None:
    if value:
        from geopol_tkg import __version__

        print(f"geopol-tkg {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Forecast geopolitical events from GDELT with temporal knowledge graphs."""


def run_app() -> int:
    """Run the command line; expected failures become one line on stderr and an exit code."""
    try:
        app(standalone_mode=True)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (GeopolTkgError, OSError, RuntimeError) as error:
        return _report(error)
    return 0


def _report(error: Exception) -> int:
    if os.environ.get("GEOPOL_TKG_VERBOSE"):
        import traceback

        traceback.print_exc()
    message = _explain(error)
    if message is None:
        raise error
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    return 2 if isinstance(error, UsageError) else 1


def _explain(error: Exception) -> str | None:
    """One line for what users can mend; None for a defect, which keeps its traceback."""
    if isinstance(error, GeopolTkgError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if "RESOURCE_EXHAUSTED" in str(error):
        return "out of device memory: lower --batch-size or --embedding-dim, or use --remat or --precision bf16"
    return None
