"""The command line. One file per command; each body imports what it needs, so --help is instant."""

import sys

from geopol_tkg.cli import (  # noqa: F401
    compare,
    convert,
    doctor,
    evaluate,
    ingest,
    predict,
    presets,
    report,
    train,
    vocab,
)
from geopol_tkg.cli._app import app
from geopol_tkg.cli._boundary import run_app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_app())
