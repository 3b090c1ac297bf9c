"""What can forecast: a trained network or a baseline, behind one interface."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

# Subjects [b] and relations [b] (0..2R-1, inverses included) to scores [b, n] of every entity as the
# object: a NumPy or JAX array, higher is better.
ScoreFunction = Callable[[np.ndarray, np.ndarray], Any]


class Block(NamedTuple):
    """Queries of a time that are scored together: subjects [b] and relations [b]."""

    time: int
    subjects: np.ndarray
    relations: np.ndarray


def visible(time: int, horizon: int | None) -> int:
    """The time before which facts are visible to queries of ``time``."""
    return time if horizon is None else min(time, horizon)


class Forecaster(Protocol):
    """Scores queries of any time from the facts before it.

    Attributes:
        name: what reports and errors call it.
        horizon: nothing at or after this time index is visible (multi-step); None for single-step.
    """

    name: str
    horizon: int | None

    def at(self, time: int) -> ScoreFunction:
        """Scores for queries of a time index, as if facts ended before ``min(time, horizon)``.

        Ascending times are cheap; an earlier time than the last one gives the right answer too.
        """
        ...


@runtime_checkable
class Expectant(Protocol):
    """A forecaster that compiles for sizes which depend on the queries."""

    def expect(self, blocks: Iterable[Block]) -> None:
        """Make room for all of these blocks, so that fewer programs score them; scores are the same without."""
        ...
