"""What can forecast: a trained network or a baseline, behind one interface."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

# Subjects [b] and relations [b] (0..2R-1, inverses included) to scores [b, n] of every entity as the
# object: a NumPy or JAX array, higher is better.
ScoreFunction = Callable[[np.ndarray, np.ndarray], Any]


class Forecaster(Protocol):
    """Scores queries of any time from the facts before it.

    Attributes:
        name: what reports and errors call it.
        horizon: nothing at or after this time index is visible (multi-step); None for single-step.
    """

    name: str
    horizon: int | None

    def at(self, time: int) -> ScoreFunction:
        """Scores for queries of a time index; they depend only on facts before ``min(time, horizon)``.

        Ascending times are cheap; an earlier time than the last one gives the right answer too.
        """
        ...
