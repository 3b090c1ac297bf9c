"""What people see of a training run: live bars on a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from geopol_tkg.cli._app import Output

if TYPE_CHECKING:
    from rich.progress import Progress

    from geopol_tkg.config import TrainConfig
    from geopol_tkg.training.loop import EpochResult
    from geopol_tkg.training.memory import MemoryMeter

_HEARTBEAT_S = 30.0


def format_seconds(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def epoch_line(result: "EpochResult", config: "TrainConfig", memory: "MemoryMeter", *, epoch_seconds: float) -> str:
    """One line for an epoch: loss, validation, best, patience, memory, time."""
    standing = result.standing
    parts = [f"epoch {standing.epoch}/{config.epochs}", f"loss {result.loss:.4f}"]
    if result.metrics is not None:
        parts.append(f"valid MRR {result.metrics['mrr']:.4f}{' *' if result.improved else ''}")
    if standing.best_epoch:
        parts.append(f"best {standing.best_mrr:.4f} @ {standing.best_epoch}")
    left = config.patience - standing.epochs_without_improvement()
    parts.append(f"patience {max(left, 0)}/{config.patience}")
    parts.append(memory_text(memory))
    parts.append(f"{format_seconds(result.seconds)}")
    if result.stopped is None:
        parts.append(f"left <= {format_seconds((config.epochs - standing.epoch) * epoch_seconds)}")
    return " | ".join(parts)


def memory_text(memory: "MemoryMeter") -> str:
    """Memory now and the epoch's high, by its right name (VRAM, or RSS on a CPU)."""
    return f"{memory.kind} {memory.used_mb:,.0f} MB (high {memory.epoch_high_mb:,.0f})"


class TrainDisplay(AbstractContextManager["TrainDisplay"]):
    """Bars for epochs, steps and evaluation with the run's figures; without a terminal, lines."""

    def __init__(
        self, output: Output, config: "TrainConfig", memory: "MemoryMeter", *, steps: int, first_epoch: int
    ) -> None:
        self._output = output
        self._config = config
        self._memory = memory
        self._steps = steps
        self._epoch = first_epoch
        self._durations: list[float] = []
        self._last_sign = time.monotonic()
        self._progress: Progress | None = None
        if sys.stderr.isatty() and not output.quiet:
            self._progress = _new_progress()

    def __enter__(self) -> "TrainDisplay":
        if self._progress is not None:
            self._progress.start()
            done = self._epoch - 1
            self._epochs = self._progress.add_task("epochs", total=self._config.epochs, completed=done, note="")
            self._task = self._progress.add_task("steps", total=self._steps, note="compiling")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, done: int) -> None:
        """So many steps of the epoch are done."""
        if self._progress is not None:
            note = memory_text(self._memory)
            self._progress.update(self._task, description="steps", completed=done, total=self._steps, note=note)
        self._heartbeat(f"epoch {self._epoch}: step {done}/{self._steps}")

    def evaluating(self, done: int, total: int) -> None:
        """So many validation queries are ranked."""
        if self._progress is not None:
            self._progress.update(self._task, description="validation", completed=done, total=total, note="queries")
        self._heartbeat(f"epoch {self._epoch}: validation {done}/{total}")

    def epoch(self, result: "EpochResult") -> None:
        """An epoch is over."""
        self._durations.append(result.seconds)
        recent = self._durations[-5:]
        line = epoch_line(result, self._config, self._memory, epoch_seconds=sum(recent) / len(recent))
        self._epoch = result.standing.epoch + 1
        self._last_sign = time.monotonic()
        if self._progress is None:
            self._output.note(line)
            return
        self._progress.update(self._epochs, completed=result.standing.epoch, note=_live_note(line))
        self._progress.reset(self._task, description="steps", total=self._steps, note="")
        self._output.detail(line)

    def _heartbeat(self, text: str) -> None:
        if self._progress is None and time.monotonic() - self._last_sign > _HEARTBEAT_S:
            self._last_sign = time.monotonic()
            self._output.note(text)


def _live_note(line: str) -> str:
    """The epoch's figures on lines of their own, so that 80 columns hold them."""
    parts = line.split(" | ")[1:]
    middle = (len(parts) + 1) // 2
    return " | ".join(parts[:middle]) + "\n" + " | ".join(parts[middle:])


def _new_progress() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        refresh_per_second=4,
    )
