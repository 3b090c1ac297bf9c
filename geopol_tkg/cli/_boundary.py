"""The error boundary: expected failures become one line on stderr and an exit code."""

import io
import os
import sys
import traceback
from typing import Any

import typer

from geopol_tkg.cli._app import Output, app, silence
from geopol_tkg.cli._signals import exit_on_signals
from geopol_tkg.errors import GeopolTkgError, UsageError

_WrongUsage: type[Exception] = typer.BadParameter.__bases__[0]  # typer exports no base of what its parser raises


def run_app() -> int:
    """Run the command line; its exit code."""
    exit_on_signals()
    if sys.stderr is None:  # closed by the caller
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return app(prog_name=app.info.name, standalone_mode=False) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        silence(sys.stdout)
        return 1
    except _WrongUsage as error:
        return _report(error, _usage_message(error), code=2)
    except (GeopolTkgError, OSError, RuntimeError, MemoryError) as error:
        message = _explain(error)
        if message is None:
            raise
        return _report(error, message, code=2 if isinstance(error, UsageError) else 1)


def _report(error: Exception, message: str, *, code: int) -> int:
    if Output.traceback_wanted:
        traceback.print_exception(error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _usage_message(error: Any) -> str:
    """What the parser says, and where help is."""
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".").replace("Value error, ", "", 1)  # pydantic's words, in Typer's
    return f"{message}; see {context.command_path} --help" if context is not None else message


def _explain(error: Exception) -> str | None:
    """One line for what users can mend; None for a defect, which keeps its traceback."""
    if isinstance(error, GeopolTkgError):
        return str(error)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, MemoryError) and "jax" not in sys.modules:
        return f"out of memory: {error or 'none left'}; take fewer events (ingest --num-days, --max-events)"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        from geopol_tkg.training.memory import out_of_memory

        return out_of_memory(str(error))
    return None
