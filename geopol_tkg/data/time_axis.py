"""Time steps: the calendar of GDELT datasets, the bare numbers of quadruple folders."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from geopol_tkg.errors import DataError, UsageError

_UNIT_SECONDS = {"min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DATE_ADDED = re.compile(r"^(\d{8})(\d{6})$")  # as GDELT writes times
_WIDEST = 36_525 * 86400
_MONDAY = 4 * 86400  # 1970-01-05, so that weeks begin on Mondays


def granularity_seconds(text: str) -> int:
    """Seconds of a step written as ``15min``, ``1h``, ``1d`` or ``1w``."""
    match = re.fullmatch(r"(\d+)(min|h|d|w)", text.strip())
    if match is None or int(match[1]) == 0:
        raise UsageError(f"granularity {text!r} is not a number and a unit: try 15min, 1h, 1d or 1w")
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]]
    if seconds > _WIDEST:
        raise UsageError(f"granularity {text!r} is wider than a hundred years")
    return seconds


def floor_to_step(seconds: int, step: int) -> int:
    """Start of the step that holds the epoch second; days begin at 00:00 UTC, weeks on Monday."""
    offset = _MONDAY if step % _UNIT_SECONDS["w"] == 0 else 0
    return (seconds - offset) // step * step + offset


@dataclass(frozen=True)
class TimeAxis:
    """Maps time indices to times: index ``i`` starts at ``origin + i * step``.

    ``granularity`` is text such as ``1h`` when origin and step are seconds (UTC), and None for
    quadruple folders, whose times are bare integers.
    """

    origin: int
    step: int
    granularity: str | None

    def label(self, index: int) -> str:
        """ISO time of an index, or the bare number of a quadruple folder."""
        value = self.origin + index * self.step
        if self.granularity is None:
            return str(value)
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def index(self, text: str) -> int:
        """Index of the step that holds the time; the inverse of :meth:`label`.

        Raises:
            DataError: the text is no ISO time or YYYYMMDDHHMMSS (for calendars), or no integer.
        """
        try:
            if self.granularity is None:
                return (int(text) - self.origin) // self.step
            moment = datetime.fromisoformat(_DATE_ADDED.sub(r"\1T\2", text))
            moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            wanted = (
                "an integer" if self.granularity is None else "an ISO time like 2017-11-08T12:00, or 20171108120000"
            )
            raise DataError(f"time {text!r} is not {wanted}") from error
        return (int(moment.timestamp()) - self.origin) // self.step

    def offset_to(self, other: "TimeAxis") -> int:
        """Steps to add to an index of this axis to get the index on ``other``.

        Raises:
            DataError: the axes have different granularities, or origins that do not align.
        """
        if (self.step, self.granularity is None) != (other.step, other.granularity is None):
            raise DataError(
                f"granularity {self.granularity or self.step} differs from the checkpoint's "
                f"{other.granularity or other.step}: ingest with the same --granularity"
            )
        difference = self.origin - other.origin
        if difference % self.step:
            raise DataError(
                f"time steps begin at {self.label(0)}, the checkpoint's at {other.label(0)}: they do not align"
            )
        return difference // self.step
