"""The command line in this process and as the real program, and a tiny world that it has trained in."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from geopol_tkg.cli import _app, run_app
from geopol_tkg.data.events import mock_events

PROGRAM = Path(sys.executable).with_name("geopol-tkg")
SMALL = ("--embedding-dim", "8", "--num-layers", "1", "--history-length", "2", "--batch-size", "0")
SETTINGS = ("--granularity", "1h")


@dataclass(frozen=True)
class Finished:
    """A command that has run."""

    code: int
    out: str
    err: str

    def json(self):
        """The one object on stdout."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))

    def error(self):
        """The message of a failure: the last line on stderr, the only one that begins with error."""
        lines = self.err.splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self.err
        assert "Traceback" not in self.err
        return lines[-1]


def even_events(*, hours=20, per_hour=12, first_day=20171101, num_entities=8, seed=0) -> pa.Table:
    """Mock events with the same number of rows in each hour, so that one shape of step is compiled."""
    table = mock_events(hours * per_hour, seed=seed, num_entities=num_entities)
    hour = np.repeat(np.arange(hours), per_hour)
    days, day_hour = first_day + hour // 24, hour % 24
    columns = {"SQLDATE": days, "DATEADDED": days * 10**6 + day_hour * 10**4}
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


def call(*args) -> Finished:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, dict(os.environ), signal.getsignal(signal.SIGTERM)
    sys.argv = ["geopol-tkg", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_app()
    except SystemExit as done:
        code = done.code
    finally:
        sys.argv = before[0]
        os.environ.clear()
        os.environ.update(before[1])
        signal.signal(signal.SIGTERM, before[2])
        _app.Output.traceback_wanted = False
    return Finished(code, out.getvalue(), err.getvalue())


def environment(cache: Path, **more: str) -> dict[str, str]:
    """For a subprocess: a shared cache of compiled programs, little optimisation, no trackers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GEOPOL_TKG", "WANDB", "JAX"))}
    fast = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {**kept, **fast, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache), **more}


@pytest.fixture(scope="session")
def program(request):
    """Run the installed program in a folder."""
    cache = request.config.cache.mkdir("compiled")

    def run(*args, cwd, env=None) -> Finished:
        done = subprocess.run(
            [PROGRAM, *map(str, args)],
            cwd=cwd,
            env=environment(cache, **(env or {})),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    run.environment = lambda **more: environment(cache, **more)
    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, program) -> Path:
    """A folder in which the program has ingested, indexed and trained; not to be changed.

    One for all workers of a run: the first that wants it makes it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "trained"
    steps = [
        ("ingest", "events.parquet", *SETTINGS),
        ("vocab",),
        ("train", "--model", "tirgn", *SMALL, "--epochs", "2"),
    ]
    with FileLock(base / "trained.lock"):
        if not folder.exists():
            folder.mkdir()
            pq.write_table(even_events(), folder / "events.parquet")
            for step in steps:
                (folder / f"{step[0]}.json").write_text(json.dumps(vars(program(*step, "--json", cwd=folder))))
    return folder


def run_in_copy(folder: Path, parent: Path, *commands) -> tuple[Path, list[Finished]]:
    """A copy of a folder below another one, and what commands in it, in this process, have told."""
    shutil.copytree(folder, parent / "world")
    with pytest.MonkeyPatch.context() as context:
        context.chdir(parent / "world")
        return parent / "world", [call(*command) for command in commands]


@pytest.fixture
def world(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the trained folder to work in; its own dataset stays where it was trained."""
    shutil.copytree(trained, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
