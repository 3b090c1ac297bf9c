"""Help is complete and instant."""

import statistics
import subprocess
import sys
import time

import pytest
import typer
from cli_helpers import PROGRAM, call

from geopol_tkg.cli import app

COMMANDS = typer.main.get_command(app).commands
HEAVY = ("jax", "flax", "optax", "torch", "pandas", "wandb", "pyarrow", "numpy", "scipy", "tensorboardX", "rich")


def test_commands_stand_in_the_order_of_work():
    text = call("--help").out
    names = ["ingest", "vocab", "presets", "train", "eval", "compare", "report", "predict", "convert", "doctor"]
    assert sorted(COMMANDS) == sorted(names)
    assert sorted(names, key=lambda name: text.index(f"│ {name} ")) == names


@pytest.mark.parametrize(
    "command",
    [(), ("train",), *(pytest.param((n,), marks=pytest.mark.slow) for n in COMMANDS if n != "train")],
    ids=lambda command: "".join(command) or "app",
)
def test_help_by_the_program(command):
    seconds, bare = [], []
    for flag in ("--help", "-h", "--help"):
        done, took = timed(PROGRAM, *command, flag)
        seconds.append(took)
        assert "Usage: geopol-tkg" in done.stdout
        bare.append(timed(sys.executable, "-c", "import typer.rich_utils")[1])
    limit = max(1.0, 4 * statistics.median(bare))  # of a slow machine; about 0.2 where nothing else runs
    assert statistics.median(seconds) < limit


def timed(*command):
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done, time.perf_counter() - started


@pytest.mark.parametrize("name", COMMANDS)
def test_everything_has_help(name):
    assert COMMANDS[name].help
    assert [param.name for param in COMMANDS[name].params if not getattr(param, "help", None)] == []


def test_import_is_light():
    code = f"import sys, geopol_tkg.cli; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_version_and_no_command():
    assert call("--version").out.startswith("geopol-tkg ")
    assert call("--version").code == 0
    done = call()
    assert done.code == 2
    assert "Usage: geopol-tkg" in done.out
