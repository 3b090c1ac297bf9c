"""A trained counting model as a forecaster: counts are looked up on the device, once per time."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig
from geopol_tkg.data.counts import CountSizes, CountTables
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.paths import PathIndex, Paths
from geopol_tkg.models.base import Block, ScoreFunction, visible
from geopol_tkg.models.counts import CountModel
from geopol_tkg.models.past import CountShape, Past, count_shape, past_of

_SMALLEST = CountShape(relations=64, answers=1024, meetings=1024, tiles=1024, triples=1024)


@dataclass
class CountContext:
    """What a counting model looks at: the facts of a dataset, counted once and copied to the device.

    Attributes:
        tables: on the device.
        sizes: what blocks of queries find in them.
        paths: where the model looks at them.
        shape: room for every block expected or asked so far; it only grows, so that few shapes are compiled.
    """

    tables: CountTables
    sizes: CountSizes
    paths: PathIndex | None = None
    shape: CountShape = _SMALLEST

    @classmethod
    def build(cls, dataset: Dataset, config: ModelConfig) -> "CountContext":
        """Count the facts of a dataset whose ids are the model's."""
        tables = CountTables.build(
            dataset.facts,
            num_entities=dataset.num_entities,
            num_relations=dataset.num_relations,
            half_lives=config.half_lives,
        )
        paths = PathIndex.of_model(dataset.facts, config)
        return cls(jax.device_put(tables), CountSizes(tables, num_relations=dataset.num_relations), paths)

    def room_for(self, block: Block) -> CountShape:
        """A shape that a block fits into."""
        self.shape = CountShape(*map(_grown, self.shape, self._needed(block)))
        return self.shape

    def expect(self, blocks: Iterable[Block]) -> None:
        """Make room for all of these blocks."""
        for block in blocks:
            self.shape = CountShape(*map(max, self.shape, map(_rounded, self._needed(block))))

    def _needed(self, block: Block) -> CountShape:
        sizes = self.sizes.of(block.subjects, block.relations, block.time)
        return count_shape(block.subjects, block.relations, sizes)


class CountForecaster:
    """Scores are log-probabilities over all entities.

    Args:
        graphdef, state: a model split by ``nnx.split(model)``.
        horizon: hides facts from this time index on (multi-step protocol).
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[CountModel],
        state: Any,
        *,
        config: ModelConfig,
        context: CountContext,
        name: str,
        horizon: int | None = None,
    ) -> None:
        self.name = name
        self.horizon = horizon
        self._graphdef = graphdef
        self._state = state
        self._config = config
        self._context = context

    def at(self, time: int) -> ScoreFunction:
        """Count the facts before ``min(time, horizon)``; the result scores queries of ``time``."""
        return partial(self._score, past_at(self._context, time, self._config, self.horizon), time)

    def expect(self, blocks: Iterable[Block]) -> None:
        """Make room for all of these blocks."""
        self._context.expect(seen_by(blocks, self.horizon))

    def _score(self, past: Past, time: int, subjects: np.ndarray, relations: np.ndarray) -> Array:
        shape = self._context.room_for(Block(visible(time, self.horizon), subjects, relations))
        queries = np.stack([subjects, relations]).astype(np.int32)
        paths = None if self._context.paths is None else self._context.paths.of(time, subjects, horizon=self.horizon)
        return _log_probabilities(self._graphdef, self._state, past, queries, paths, shape=shape)


def seen_by(blocks: Iterable[Block], horizon: int | None) -> Iterable[Block]:
    """Blocks as of the time whose past they see."""
    return (block._replace(time=visible(block.time, horizon)) for block in blocks)


def _rounded(size: int) -> int:
    """Up to a quarter more, so that a few more facts ask for the same program."""
    step = max(1 << size.bit_length() >> 3, 8)
    return -(-size // step) * step


def _grown(size: int, needed: int) -> int:
    while size < needed:
        size *= 2
    return size


def past_at(context: CountContext, time: int, config: ModelConfig, horizon: int | None) -> Past:
    """The past of a time, on the device."""
    latest = None if horizon is None else np.int32(max(horizon, -np.iinfo(np.int32).max))
    return _past_of(context.tables, np.int32(time), half_lives=config.half_lives, horizon=latest)


_past_of = jax.jit(past_of, static_argnames="half_lives")


@partial(jax.jit, static_argnames=("graphdef", "shape"))
def _log_probabilities(
    graphdef: nnx.GraphDef[CountModel],
    state: Any,
    past: Past,
    queries: Array,
    paths: Paths | None,
    *,
    shape: CountShape,
) -> Array:
    """Log-probabilities [b, n] of queries int32 [2, b] of subjects and relations."""
    with jax.default_matmul_precision("highest"):
        scores = nnx.merge(graphdef, state).scores(past, queries[0], queries[1], shape, paths)
        return jax.nn.log_softmax(scores)
