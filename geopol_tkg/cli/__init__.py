"""The command line. One file per command; each body imports what it needs, so --help is instant."""

from geopol_tkg.cli import (  # noqa: F401 - their import registers them
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

__all__ = ["app", "run_app"]
