"""What people see of a training run: live bars on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from geopol_tkg.cli._app import Output

if TYPE_CHECKING:
    from rich.console import Group

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
    parts = [f"epoch {standing.epoch}/{config.last_epoch}", f"loss {result.loss:.4f}"]
    if result.metrics is not None:
        parts.append(f"valid MRR {result.metrics['mrr']:.4f}{' *' if result.improved else ''}")
    if not config.refit_epochs:
        if standing.best_epoch:
            parts.append(f"best {standing.best_mrr:.4f} @ {standing.best_epoch}")
        left = config.patience - standing.epochs_without_improvement()
        parts.append(f"patience {max(left, 0)}/{config.patience}")
    parts.append(memory_text(memory))
    return " | ".join([*parts, time_text(result, config, epoch_seconds)])


def time_text(result: "EpochResult", config: "TrainConfig", epoch_seconds: float) -> str:
    """What the epoch took, and at most how long the others take."""
    took = f"took {format_seconds(result.seconds)}"
    if result.stopped is not None:
        return took
    return f"{took} | left <= {format_seconds((config.last_epoch - result.standing.epoch) * epoch_seconds)}"


def memory_text(memory: "MemoryMeter") -> str:
    """Memory now, the epoch's high and the limit, by its right name (VRAM, or RSS on a CPU)."""
    limit = f" of {memory.limit_mb:,.0f}" if memory.limit_mb else ""
    return f"{memory.kind} {memory.used_mb:,.0f} MB (high {memory.epoch_high_mb:,.0f}{limit})"


class Heartbeat:
    """A line now and then about work that takes long; none about work that does not."""

    def __init__(self, output: Output, what: str) -> None:
        self._output = output
        self._what = what
        self._last_sign = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """So much of it is done."""
        if time.monotonic() - self._last_sign > _HEARTBEAT_S:
            self._last_sign = time.monotonic()
            self._output.note(f"{self._what}: {done:,} of {total:,} queries")


class TrainDisplay(AbstractContextManager["TrainDisplay"]):
    """Bars for epochs, steps and evaluation with the run's figures; without a terminal, lines."""

    def __init__(
        self,
        output: Output,
        config: "TrainConfig",
        memory: "MemoryMeter",
        *,
        steps: int,
        first_epoch: int,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._output = output
        self._config = config
        self._memory = memory
        self._steps = steps
        self._epoch = first_epoch
        self._durations: list[float] = []
        self._last_sign = time.monotonic()
        self._bars: _Bars | None = None
        if _can_animate() and not output.quiet:
            self._bars = _Bars(config.last_epoch, steps, memory, done=first_epoch - 1, is_stopping=is_stopping)

    def __enter__(self) -> "TrainDisplay":
        if self._bars is not None:
            self._bars.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def step(self, done: int) -> None:
        """So many steps of the epoch are done."""
        if self._bars is not None:
            self._bars.show("steps", done, self._steps)
        self._heartbeat(f"epoch {self._epoch}: step {done}/{self._steps}")

    def evaluating(self, done: int, total: int) -> None:
        """So many validation queries are ranked."""
        if self._bars is not None:
            self._bars.show("validation", done, total)
        self._heartbeat(f"epoch {self._epoch}: validation {done}/{total}")

    def epoch(self, result: "EpochResult") -> None:
        """An epoch is over."""
        self._durations.append(result.seconds)
        recent = self._durations[1:][-5:] or self._durations  # the first one compiles
        line = epoch_line(result, self._config, self._memory, epoch_seconds=sum(recent) / len(recent))
        self._epoch = result.standing.epoch + 1
        self._last_sign = time.monotonic()
        if self._bars is None:
            self._output.note(line)
            return
        self._bars.epoch(result.standing.epoch, line.split(" | "))
        self._output.detail(line)

    def _heartbeat(self, text: str) -> None:
        if self._bars is None and time.monotonic() - self._last_sign > _HEARTBEAT_S:
            self._last_sign = time.monotonic()
            self._output.note(text)


def _can_animate() -> bool:
    """Whether stderr is a terminal that moves its cursor; FORCE_COLOR does not make a log file one."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class _Bars:
    """Bars for the epochs, the steps of one and its validation; below them figures on lines that 80 columns hold."""

    def __init__(
        self, epochs: int, steps: int, memory: "MemoryMeter", *, done: int, is_stopping: Callable[[], bool]
    ) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description:<12}"), BarColumn(32), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, auto_refresh=False)
        self._tasks = {
            "epochs": self._progress.add_task("epochs", total=epochs, completed=done),
            "steps": self._progress.add_task("  steps", total=steps),
            "validation": self._progress.add_task("  validation", visible=False),
        }
        self._memory = memory
        self._is_stopping = is_stopping
        self._figures: list[str] = []
        self._times: list[str] = []
        console = Console(stderr=True)
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4)

    def show(self, what: str, done: int, total: int) -> None:
        """Where the epoch is; a bar that is done stays until it begins anew."""
        task = self._tasks[what]
        if done < self._progress.tasks[task].completed:
            self._progress.reset(task)
        self._progress.update(task, completed=done, total=total, visible=True)

    def epoch(self, number: int, parts: list[str]) -> None:
        """An epoch is over; its figures stay until the next one's."""
        place = next(i for i, part in enumerate(parts) if part.startswith(self._memory.kind))
        self._figures, self._times = parts[1:place], parts[place + 1 :]
        self._progress.update(self._tasks["epochs"], completed=number)

    def stop(self) -> None:
        """Leave the epochs and the last figures on the screen."""
        self._is_stopping = lambda: False
        for what in ("steps", "validation"):
            self._progress.update(self._tasks[what], visible=False)
        self.live.stop()

    def _render(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        lines = [" | ".join(self._figures)] if self._figures else []
        lines.append(" | ".join([memory_text(self._memory), *self._times]))
        if self._is_stopping():
            lines.append("stopping: the step in hand is finished and saved; once more ends at once")
        return Group(self._progress, *map(Text, lines))
