"""A trained network as a forecaster: evolves once per time, scores blocks of queries on the device."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.history import HistoryVocabulary
from geopol_tkg.data.snapshots import Snapshots
from geopol_tkg.models.base import Block, ScoreFunction, visible
from geopol_tkg.models.count_forecaster import CountContext, past_at, seen_by
from geopol_tkg.models.decoders import Queries
from geopol_tkg.models.evolution import Evolved, Window
from geopol_tkg.models.graph import GraphArrays, WindowShape, window_shape
from geopol_tkg.models.network import History, Network, Prior
from geopol_tkg.models.past import CountShape, Past

_SMALLEST_CAPACITY = 16384


@dataclass(frozen=True)
class ForecastContext:
    """What a network looks at: the facts of a dataset, arranged once and copied to the device."""

    snapshots: Snapshots
    history: HistoryVocabulary
    graph: GraphArrays
    object_history: Array
    shape: WindowShape
    counts: CountContext | None = None

    @classmethod
    def build(cls, dataset: Dataset, history: HistoryVocabulary, config: ModelConfig) -> "ForecastContext":
        """Arrange a dataset whose ids are the network's.

        Raises:
            ValueError: the vocabulary has another window than the network was trained with.
        """
        if history.window != config.history_window:
            raise ValueError(f"history window {history.window}, network trained with {config.history_window}")
        snapshots = Snapshots.build(dataset.facts, num_relations=dataset.num_relations, model_type=config.model_type)
        return cls(
            snapshots=snapshots,
            history=history,
            graph=GraphArrays.put(snapshots),
            object_history=jax.device_put(history.objects.targets),
            shape=window_shape(snapshots, np.arange(len(snapshots.times))),
            counts=CountContext.build(dataset, config) if config.count_prior else None,
        )


class NetworkForecaster:
    """Scores are log-probabilities over all entities, in float32 whatever training used.

    Args:
        graphdef, state: a network split by ``nnx.split(network, ...)``, parameters and statistics merged.
        horizon: hides facts from this time index on (multi-step protocol).
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[Network],
        state: Any,
        *,
        config: ModelConfig,
        context: ForecastContext,
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
        """Evolve the snapshots before ``min(time, horizon)``; the result scores queries of ``time``."""
        ordinals = self._context.snapshots.before(visible(time, self.horizon), self._config.history_length)
        window = Window(self._context.graph, jax.device_put(ordinals))
        evolved = _evolve(self._graphdef, self._state, window, shape=self._context.shape)
        counts = self._context.counts
        past = None if counts is None else past_at(counts, time, self._config, self.horizon)
        return partial(self._score, evolved, past, time)

    def expect(self, blocks: Iterable[Block]) -> None:
        """Make room for what the counting model beside the network reads of these blocks."""
        if self._context.counts is not None:
            self._context.counts.expect(seen_by(blocks, self.horizon))

    def _score(
        self,
        evolved: Evolved,
        past: Past | None,
        time: int,
        subjects: np.ndarray,
        relations: np.ndarray,
    ) -> Array:
        slices = self._context.history.object_slices(subjects, relations, time, horizon=self.horizon)
        needed = int((slices[:, 1] - slices[:, 0]).sum()) if self._config.model_type == "tirgn" else 0
        counts, block = self._context.counts, Block(visible(time, self.horizon), subjects, relations)
        return _log_probabilities(
            self._graphdef,
            self._state,
            evolved,
            np.stack([subjects, relations]).astype(np.int32),
            np.int32(time),
            self._context.object_history,
            slices,
            past,
            capacity=_capacity(needed),
            count_shape=None if counts is None else counts.room_for(block),
        )


def _capacity(needed: int) -> int:
    """Few sizes, so that few are compiled."""
    capacity = _SMALLEST_CAPACITY
    while capacity < needed:
        capacity *= 4
    return capacity


@partial(jax.jit, static_argnames=("graphdef", "shape"))
def _evolve(graphdef: nnx.GraphDef[Network], state: Any, window: Window, *, shape: WindowShape) -> Evolved:
    with jax.default_matmul_precision("highest"):
        encoder = nnx.merge(graphdef, state).encoder
        return encoder(window, shape, key=None, dtype=jnp.float32, remat=False)


@partial(jax.jit, static_argnames=("graphdef", "capacity", "count_shape"))
def _log_probabilities(
    graphdef: nnx.GraphDef[Network],
    state: Any,
    evolved: Evolved,
    queries: Array,
    time: Array,
    object_history: Array,
    slices: Array,
    past: Past | None,
    *,
    capacity: int,
    count_shape: CountShape | None,
) -> Array:
    """Log-probabilities [b, n] of queries int32 [2, b] of subjects and relations."""
    with jax.default_matmul_precision("highest"):
        network = nnx.merge(graphdef, state)
        rows = jnp.arange(queries.shape[1])
        block = Queries(queries[0], queries[1], slices, jnp.ones_like(rows), rows)
        task = network.entity_task(evolved, time)
        prior = None if past is None or count_shape is None else Prior(past, count_shape)
        history = History(object_history, capacity, prior=prior)
        return network.log_probabilities(task, block, history, dtype=jnp.float32)
