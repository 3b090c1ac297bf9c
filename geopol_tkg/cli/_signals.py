"""SIGINT and SIGTERM: clean up and go, or finish and save what is in hand."""

import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

_LATER = 0.05  # seconds


def exit_on_signals() -> None:
    """Make SIGTERM an exit with 143 and SIGINT one with 130, both of which remove temporary files on their way out.

    A script's background jobs start with SIGINT ignored; it counts all the same.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _exit)
    if sys.unraisablehook is sys.__unraisablehook__:  # whoever has set another one keeps it
        sys.unraisablehook = _send_again


def _send_again(lost: "sys.UnraisableHookArgs") -> None:
    """Python drops what a handler raises inside a callback, such as jax's of the garbage collector: try once more."""
    error = lost.exc_value
    if isinstance(error, KeyboardInterrupt):
        number = int(signal.SIGINT)
    elif isinstance(error, SystemExit) and error.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        number = int(error.code) - 128
    else:
        sys.__unraisablehook__(lost)
        return
    again = threading.Timer(_LATER, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@dataclass
class StopSignals:
    """SIGINT and SIGTERM as a flag, so that work in hand is finished and saved.

    A script's background jobs start with SIGINT ignored; the handlers are set all the same. A second
    signal ends the process at once, and so does the first one, with its exit code, while ``at_once`` is set.
    """

    at_once: bool = False
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
        if self.at_once:
            raise SystemExit(self.exit_code)

    def __bool__(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int:
        return 128 + (self.number or 0)
