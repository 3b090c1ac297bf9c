"""The mean of several forecasters' probabilities, as a forecaster.

Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from geopol_tkg.models.base import Block, Expectant, Forecaster, ScoreFunction


class Member(NamedTuple):
    """A forecaster of log-probabilities, and the temperature that they are read with."""

    forecaster: Forecaster
    temperature: float


class EnsembleForecaster:
    """Scores are log-probabilities over all entities; members share ids, times and the horizon."""

    def __init__(self, members: Sequence[Member], *, name: str, horizon: int | None = None) -> None:
        self.name = name
        self.horizon = horizon
        self._members = members

    def at(self, time: int) -> ScoreFunction:
        """Each member's scores of a time, mixed."""
        return partial(_score, [(member.forecaster.at(time), member.temperature) for member in self._members])

    def expect(self, blocks: Iterable[Block]) -> None:
        """Make room in the members."""
        blocks = list(blocks)
        for member in self._members:
            if isinstance(member.forecaster, Expectant):
                member.forecaster.expect(blocks)


def _score(members: list[tuple[ScoreFunction, float]], subjects: np.ndarray, relations: np.ndarray) -> Array:
    scores = [score(subjects, relations) for score, _ in members]
    return _log_mean(scores, np.array([temperature for _, temperature in members], np.float32))


@jax.jit
def _log_mean(scores: Sequence[Array], temperatures: Array) -> Array:
    """Log of the mean of the probabilities that scores [b, n] of each member stand for: [b, n]."""
    parts = jax.nn.log_softmax(jnp.stack(scores) / temperatures[:, None, None])
    return jax.nn.logsumexp(parts, axis=0) - jnp.log(len(parts))
