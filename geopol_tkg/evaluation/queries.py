"""The queries of a split in the order they are asked: by time, and those that differ in their answer alone at once."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from geopol_tkg.data.dataset import with_inverses

MOST_ANSWERS = 4  # queries of a block, for each (s, r, ?) that it has room for


class QueryBlock(NamedTuple):
    """Distinct ``(s, r, ?)`` of one time, and the queries that ask them.

    Attributes:
        subjects, relations: int32 [b], filled up by the first one again.
        row: int [q], which of them each query asks, ascending; q is ``MOST_ANSWERS`` · b at most.
        place: int [q], the query's place among those of its time.
    """

    subjects: np.ndarray
    relations: np.ndarray
    row: np.ndarray
    place: np.ndarray


def timestamps(facts: np.ndarray, num_relations: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each time index with its queries ``(s, r, o, t)`` in both directions, objects first: int32 [q, 4]."""
    times, starts = np.unique(facts[:, 3], return_index=True)
    for time, part in zip(times.tolist(), np.split(facts, starts[1:]), strict=True):
        yield time, with_inverses(part, num_relations)


def query_blocks(queries: np.ndarray, block_size: int) -> Iterator[QueryBlock]:
    """Queries [q, 4] of one time in blocks of ``block_size`` distinct ``(s, r, ?)``, or fewer of many answers.

    A model scores each ``(s, r, ?)`` once, however many answers it has. They are sorted by relation, so that the
    many relations of a busy subject do not meet in one block, whose size is that of the largest.
    """
    distinct, row = np.unique(queries[:, 1].astype(np.int64) << 32 | queries[:, 0], return_inverse=True)
    place = np.argsort(row, kind="stable")
    row = row[place]
    start = 0
    while start < len(row):
        first = row[start]
        end = min(np.searchsorted(row, first + block_size), start + MOST_ANSWERS * block_size)
        asked = distinct[first : row[end - 1] + 1]
        asked = np.pad(asked, (0, block_size - len(asked)), constant_values=asked[0])
        subjects, relations = (asked & 0xFFFFFFFF).astype(np.int32), (asked >> 32).astype(np.int32)
        yield QueryBlock(subjects, relations, row[start:end] - first, place[start:end])
        start = end
