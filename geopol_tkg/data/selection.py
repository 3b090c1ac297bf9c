"""Which facts stay: days, repeats, rare entities, thinning, and where the split falls."""

import numpy as np

from geopol_tkg.data.dataset import Split
from geopol_tkg.data.times import DAY
from geopol_tkg.errors import DataError, UsageError


def in_last_days(seconds: np.ndarray, num_days: int, last: int) -> np.ndarray:
    """Whether each time is on one of the last days, the day of ``last`` included: bool [f]."""
    if num_days == 0:
        return np.ones(len(seconds), bool)
    return seconds // DAY > last // DAY - num_days


def distinct_facts(columns: tuple[np.ndarray, ...]) -> np.ndarray:
    """Distinct rows of the columns time, subject, relation, object, in that order: int64 [f, 4]."""
    sizes = [int(column.max(initial=0)) + 1 for column in columns]
    if float(np.prod(np.array(sizes, np.float64))) > 2**62:
        return np.unique(np.stack(columns, axis=1).astype(np.int64), axis=0)
    keys = np.zeros(len(columns[0]), np.int64)
    for column, size in zip(columns, sizes, strict=True):
        keys *= size
        keys += column
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) > 0]
    return np.stack(np.unravel_index(keys, sizes), axis=1)


def of_frequent_entities(facts: np.ndarray, minimum: int) -> np.ndarray:
    """Whether both entities of each fact are in at least ``minimum`` facts: bool [f].

    One pass: the counts are not taken again after facts are left out.
    """
    first, second = facts[:, 1], facts[:, 3]
    size = int(max(first.max(initial=0), second.max(initial=0))) + 1
    counts = np.bincount(first, minlength=size) + np.bincount(second[second != first], minlength=size)
    frequent = counts >= minimum
    return frequent[first] & frequent[second]


def thinned(times: np.ndarray, maximum: int, seed: int) -> np.ndarray:
    """A random choice of ``maximum`` facts, from each timestamp its share: bool [f], seeded.

    Args:
        times: ascending.
    """
    if maximum == 0 or len(times) <= maximum:
        return np.ones(len(times), bool)
    _, starts, counts = np.unique(times, return_index=True, return_counts=True)
    quota = _shares(counts, maximum)
    order = np.lexsort((np.random.default_rng(seed).random(len(times)), times))
    place = np.arange(len(times)) - np.repeat(starts, counts)
    kept = np.zeros(len(times), bool)
    kept[order[place < np.repeat(quota, counts)]] = True
    return kept


def _shares(counts: np.ndarray, total: int) -> np.ndarray:
    """Integers in proportion to counts that sum to ``total`` (largest remainders)."""
    exact = counts * (total / counts.sum())
    quota = np.floor(exact).astype(np.int64)
    most = np.argsort(quota - exact, kind="stable")[: total - int(quota.sum())]
    quota[most] += 1
    return quota


def split_timestamps(timestamps: np.ndarray, shares: tuple[float, float, float]) -> Split:
    """Cut ascending timestamps by shares of their number, each split at least one.

    Raises:
        UsageError: shares that are not positive or do not sum to 1.
        DataError: fewer than three timestamps.
    """
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"--split {','.join(f'{s:g}' for s in shares)}: wanted three positive shares of 1")
    total = len(timestamps)
    if total < 3:
        raise DataError(
            f"{total} timestamp(s) cannot be split into train, valid and test; give more days or a finer --granularity"
        )
    valid = min(max(round(total * shares[0]), 1), total - 2)
    test = min(max(round(total * (shares[0] + shares[1])), valid + 1), total - 1)
    return Split(int(timestamps[valid]), int(timestamps[test]))
