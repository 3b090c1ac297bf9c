"""Reading times as they come: datetimes, ISO text, YYYYMMDD and up to YYYYMMDDHHMMSS, epoch numbers."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

NO_TIME = np.iinfo(np.int64).min
DAY = 86400
_NUMBER = r"^\s*[+-]?\d+(\.\d*)?([eE][+]?\d+)?\s*$"
_EPOCH_UNITS = ((10**8, 10**11, 1), (10**11, 10**14, 10**3), (10**14, 10**17, 10**6), (10**17, 2**63, 10**9))
# YYYYMMDDHH and YYYYMMDDHHMM: in this range few epochs, of the 2030s and of 1976, look like them
_SHORT_MOMENTS = ((1979_01_01_00, 2100_12_31_23, 10**4), (1979_01_01_00_00, 2100_12_31_23_59, 100))


def parse_times(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Epoch seconds (UTC), :data:`NO_TIME` where there is no readable time: int64 [rows].

    Whole numbers are YYYYMMDD, YYYYMMDDHH, YYYYMMDDHHMM or YYYYMMDDHHMMSS where they can be, else an epoch
    in seconds, milliseconds, microseconds or nanoseconds by their size. Text without a zone is UTC.
    """
    encoded = _combined(column).dictionary_encode()
    seconds = np.append(_parse_distinct(encoded.dictionary), NO_TIME)
    return seconds[pc.fill_null(encoded.indices, len(seconds) - 1).to_numpy(zero_copy_only=False)]


def _combined(column: Any) -> Any:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_null(array.type):
        return array.cast(pa.string())
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _parse_distinct(values: Any) -> np.ndarray:
    kind = values.type
    if pa.types.is_date(kind):
        return values.cast(pa.timestamp("s")).cast(pa.int64()).to_numpy(zero_copy_only=False)
    if pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp("s", kind.tz), safe=False).cast(pa.int64()).to_numpy()
    if pa.types.is_integer(kind):
        return seconds_of_numbers(values.to_numpy(zero_copy_only=False).astype(np.int64))
    if pa.types.is_floating(kind):
        return seconds_of_numbers(_whole(values.to_numpy(zero_copy_only=False)))
    return _seconds_of_text(values.cast(pa.string()))


def _seconds_of_text(values: Any) -> np.ndarray:
    seconds = np.full(len(values), NO_TIME, np.int64)
    numeric = pc.match_substring_regex(values, _NUMBER).to_numpy(zero_copy_only=False).astype(bool)
    numbers = pc.utf8_trim_whitespace(values.filter(pa.array(numeric))).cast(pa.float64())
    seconds[numeric] = seconds_of_numbers(_whole(numbers.to_numpy(zero_copy_only=False)))
    text = values.filter(pa.array(~numeric)).to_pandas().str.strip().str.replace(r"\s*UTC$", "", regex=True)
    text = text.where(text.str.match(r"\d"))  # "now" and "today" are no times of events
    moments = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
    naive = moments.dt.tz_localize(None).to_numpy().astype("datetime64[s]").astype(np.int64)
    seconds[~numeric] = naive  # NaT is the smallest integer too
    return seconds


def _whole(numbers: np.ndarray) -> np.ndarray:
    """Floats as int64, 0 (no time) where they are not finite."""
    usable = np.isfinite(numbers) & (np.abs(numbers) < 2.0**62)
    return np.where(usable, numbers, 0).astype(np.int64)


def seconds_of_numbers(numbers: np.ndarray) -> np.ndarray:
    """Epoch seconds of YYYYMMDD, with HH, HHMM or HHMMSS behind it or not, or of epoch numbers: int64."""
    seconds = np.full(len(numbers), NO_TIME, np.int64)
    for low, high, per_second in _EPOCH_UNITS:
        chosen = (numbers >= low) & (numbers < high)
        seconds[chosen] = numbers[chosen] // per_second
    for low, high, scale in _SHORT_MOMENTS:
        chosen = (numbers >= low) & (numbers <= high)
        found = _seconds_of_digits(numbers[chosen] * scale)
        seconds[chosen] = np.where(found == NO_TIME, seconds[chosen], found)
    days = (numbers >= 1800_01_01) & (numbers <= 2200_12_31)
    moments = (numbers >= 1800_01_01_00_00_00) & (numbers <= 2200_12_31_23_59_59)
    seconds[days] = _seconds_of_digits(numbers[days] * 10**6)
    seconds[moments] = _seconds_of_digits(numbers[moments])
    return seconds


def _seconds_of_digits(digits: np.ndarray) -> np.ndarray:
    """Epoch seconds of YYYYMMDDHHMMSS; no time where a part is out of its range."""
    date, clock = np.divmod(digits, 10**6)
    year, month, day = date // 10**4, date // 100 % 100, date % 100
    hour, minute, second = clock // 10**4, clock // 100 % 100, clock % 100
    months = (year - 1970) * 12 + np.clip(month, 1, 12) - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    length = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) - first
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (day <= length)
    valid &= (hour < 24) & (minute < 60) & (second < 60)
    seconds = (first + day - 1) * DAY + hour * 3600 + minute * 60 + second
    return np.where(valid, seconds, NO_TIME)
