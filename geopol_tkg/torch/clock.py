"""Time steps of a ``.pt`` file: what ``geopol_tkg.data.time_axis`` does, for those who have torch alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from geopol_tkg.errors import DataError

_DATE_ADDED = re.compile(r"^(\d{8})(\d{6})$")  # as GDELT writes times


@dataclass(frozen=True)
class Clock:
    """Index ``i`` begins at ``origin + i * step``: seconds (UTC), or bare numbers without a granularity."""

    origin: int
    step: int
    granularity: str | None

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> "Clock":
        """From the ``context`` of a file."""
        return cls(context["origin"], context["step"], context["granularity"])

    def label(self, index: int) -> str:
        """ISO time of an index, or the bare number."""
        value = self.origin + index * self.step
        return str(value) if self.granularity is None else f"{datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}"

    def index(self, time: object) -> int:
        """Index of the step that holds a time: ISO text, YYYYMMDDHHMMSS, a datetime, or the bare number.

        Raises:
            DataError: it is none of these.
        """
        try:
            if self.granularity is None:
                return (int(str(time)) - self.origin) // self.step
            moment = datetime.fromisoformat(_DATE_ADDED.sub(r"\1T\2", str(time)))
            moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            wanted = (
                "an integer" if self.granularity is None else "an ISO time like 2017-11-08T12:00, or 20171108120000"
            )
            raise DataError(f"time {time!r} is not {wanted}") from error
        return (int(moment.timestamp()) - self.origin) // self.step
