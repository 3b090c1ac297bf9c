"""The live display fits 80 columns and loses nothing; lines elsewhere are plain."""

import contextlib
import io
import os
import pty
import re
import subprocess
import termios
from types import SimpleNamespace

import pytest
from cli_helpers import PROGRAM, SMALL
from rich.console import Console

from geopol_tkg.cli._app import Output
from geopol_tkg.cli._progress import TrainDisplay, _Bars, _can_animate, epoch_line, format_seconds
from geopol_tkg.config import TrainConfig
from geopol_tkg.training.loop import EpochResult, Standing

MEMORY = SimpleNamespace(kind="VRAM", used_mb=71234.5, epoch_high_mb=79876.0, limit_mb=143771.0)


def result(epoch=100, *, improved=True, stopped=None, metrics=True):
    standing = Standing(epoch=epoch, best_mrr=0.2987, best_epoch=epoch if improved else 1)
    found = {"mrr": 0.2987} if metrics else None
    return EpochResult(standing, None, 12.3456, found, improved, 3725.0, stopped)


def test_line_golden():
    line = epoch_line(result(), TrainConfig(epochs=200), MEMORY, epoch_seconds=36.0)
    assert line == (
        "epoch 100/200 | loss 12.3456 | valid MRR 0.2987 * | best 0.2987 @ 100 | patience 15/15 | "
        "VRAM 71,234 MB (high 79,876 of 143,771) | took 1 h 02 min | left <= 1 h 00 min"
    )
    last = epoch_line(
        result(4, improved=False, stopped="patience", metrics=False), TrainConfig(), MEMORY, epoch_seconds=1
    )
    assert last == (
        "epoch 4/100 | loss 12.3456 | best 0.2987 @ 1 | patience 12/15 | "
        "VRAM 71,234 MB (high 79,876 of 143,771) | took 1 h 02 min"
    )


def test_bars_fit_80_columns():
    stopping = []
    bars = _Bars(epochs=200, steps=12345, memory=MEMORY, done=99, is_stopping=lambda: bool(stopping))
    bars.epoch(100, epoch_line(result(), TrainConfig(epochs=200), MEMORY, epoch_seconds=36.0).split(" | "))
    bars.show("steps", 12345, 12345)
    bars.show("validation", 123456, 999999)
    assert [" ".join(line.split()) for line in shown(bars)] == [
        "epochs 100/200 0:00:00",
        "steps 12345/12345 0:00:00",
        "validation 123456/999999 0:00:00",
        "loss 12.3456 | valid MRR 0.2987 * | best 0.2987 @ 100 | patience 15/15",
        "VRAM 71,234 MB (high 79,876 of 143,771) | took 1 h 02 min | left <= 1 h 00 min",
    ]
    stopping.append(True)
    assert shown(bars)[-1].startswith("stopping: the step in hand is finished and saved")
    assert len(shown(bars)) == 6


def shown(bars):
    """Lines of the display on 80 columns, without the bars themselves."""
    console = Console(width=80, file=io.StringIO())
    console.print(bars._render())
    return [
        line.replace("━", "").replace("╸", "").replace("╺", "").rstrip()
        for line in console.file.getvalue().splitlines()
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("is_terminal", "term", "animates"),
    [(True, "xterm-256color", True), (True, "dumb", False), (True, "", False), (False, "xterm", False)],
)
def test_only_terminals_are_animated(monkeypatch, is_terminal, term, animates):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: is_terminal))
    assert _can_animate() == animates


def test_a_sign_of_life_without_a_terminal(monkeypatch, capsys):
    display = TrainDisplay(Output(), TrainConfig(), MEMORY, steps=9, first_epoch=4)
    with display:
        display.step(1)
        monkeypatch.setattr("geopol_tkg.cli._progress._HEARTBEAT_S", -1.0)
        display.step(2)
        display.evaluating(30, 90)
    assert capsys.readouterr().err == "epoch 4: step 2/9\nepoch 4: validation 30/90\n"


@pytest.mark.slow
def test_in_a_terminal_by_the_program(world, program):
    """Bars while it trains, the last epoch's figures afterwards; the cursor is there again."""
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (40, 100))
    args = ("train", "--model", "tirgn", *SMALL, "--epochs", "2", "--overwrite")
    environment = program.environment(TERM="xterm-256color")
    process = subprocess.Popen([PROGRAM, *args], env=environment, stdin=side, stdout=side, stderr=side)
    os.close(side)
    shown = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen, contextlib.suppress(OSError):  # its end, on Linux
        while part := screen.read(4096):
            shown += part
    assert process.wait() == 0
    text = shown.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"steps .*15/15", plain)
    assert re.search(r"RSS [\d,]+ MB \(high [\d,]+ of [\d,]+\) \| took", plain)
    drawn, after = text.split("\x1b[?25h")
    assert drawn.count("\x1b[?25l") == 1
    assert re.search(r"epochs .*2/2", drawn.rpartition("\x1b[2K")[2])
    assert "\x1b" not in after.partition("Trained tirgn: completed")[0]
