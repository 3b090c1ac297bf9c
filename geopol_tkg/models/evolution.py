"""Evolution of entity and relation embeddings over a window of snapshots, shared by both networks."""

from abc import abstractmethod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig
from geopol_tkg.models.graph import (
    GraphArrays,
    GraphConvolution,
    NormalisedGraphConvolution,
    Snapshot,
    WindowShape,
    cut_snapshot,
    relation_context,
    renumbered,
)
from geopol_tkg.models.layers import DTypeLike, GRUCell, Moments, dot, dropout, l2_normalise, split_key
from geopol_tkg.models.static_graph import StaticGraphLayer, static_drift

_MOST_ROWS = 1 << 16  # entities updated at once
# A loop over few snapshots of large embeddings is written out: it saves copies for the backward pass, and
# more of them would take too long to compile.
_UNROLLED, _LARGE = 3, 1 << 18


class Window(NamedTuple):
    """The snapshots that a query may look at.

    Attributes:
        ordinals: int32 [k], oldest first, -1 in front is padding.
        rows: int32 [a], ascending: the only entities evolved, all connected ones among them; n = padding.
            None evolves all, as a static graph needs.
    """

    graph: GraphArrays
    ordinals: Array
    rows: Array | None = None


class Evolved(NamedTuple):
    """Embeddings after the last snapshot.

    Attributes:
        entities: [n, d], or [a, d] of a window's rows.
        relations: [r2, d], with inverses.
        drift: how far entities left their static embeddings, summed over snapshots; 0 without a static graph.
    """

    entities: Array
    relations: Array
    drift: Array


class EvolutionEncoder(nnx.Module):
    """Recurrent evolution (Li et al., SIGIR 2021): per snapshot a relation GRU, graph layers, an update."""

    layer_type: type[GraphConvolution]

    def __init__(self, config: ModelConfig, *, key: Array) -> None:
        entity_key, relation_key, gru_key, *layer_keys = jax.random.split(key, 3 + config.num_layers)
        static_key = jax.random.fold_in(key, 0)
        dim, rows = config.embedding_dim, 2 * config.num_relations
        xavier_normal = (2 / (rows + dim)) ** 0.5
        self.config = config
        self.entity_embedding = nnx.Param(jax.random.normal(entity_key, (config.num_entities, dim)))
        self.relation_embedding = nnx.Param(xavier_normal * jax.random.normal(relation_key, (rows, dim)))
        self.relation_gru = GRUCell(2 * dim, dim, key=gru_key)
        self.layers = nnx.List([self.layer_type(dim, key=layer_key) for layer_key in layer_keys])
        self.static = StaticGraphLayer(config, key=static_key) if config.num_words else None

    @abstractmethod
    def update(self, convolved: Array, entities: Array, dtype: DTypeLike) -> Array:
        """Entities [n, d] after a snapshot, from the normalised graph output and the entities before."""

    @abstractmethod
    def finish(self, entities: Array) -> Array:
        """Entities [n, d] as the decoders see them."""

    def __call__(
        self, window: Window, shape: WindowShape, *, key: Array | None, dtype: DTypeLike, remat: bool
    ) -> Evolved:
        """Evolve over the window; a key means training (dropout, batch statistics that are remembered)."""
        dim = self.config.embedding_dim
        initial = self.relation_embedding[...]
        input_weight = self.relation_gru.input_weight[...]
        fixed_gates = dot(initial, input_weight[:dim], dtype) + self.relation_gru.input_bias[...]
        embedding = self.entity_embedding[...]
        if window.rows is not None:
            embedding = embedding.at[window.rows].get(mode="fill", fill_value=0, indices_are_sorted=True)
        origin = l2_normalise(embedding) if self.static is None else self.static(len(embedding))

        def step(state: Evolved, inputs: tuple[Array, Array, Array | None]) -> tuple[Evolved, list[Moments | None]]:
            ordinal, number, step_key = inputs
            snapshot = self._cut(window, ordinal, shape)
            context = relation_context(snapshot, state.entities, self.config.num_relations, dtype)
            gates = fixed_gates + jnp.tile(dot(context, input_weight[dim:], dtype), (2, 1))
            relations = l2_normalise(self.relation_gru.update(gates, state.relations, dtype))
            convolved, moments = self._convolve(snapshot, state.entities, relations, step_key, dtype)
            entities = self._updated(convolved, state.entities, dtype)
            drift = state.drift
            if self.static is not None and key is not None:
                drift += static_drift(origin, entities, number, self.config.static_angle)
            new = Evolved(entities, relations, drift)
            return jax.tree.map(lambda new, old: jnp.where(ordinal >= 0, new, old), new, state), moments

        keys = None if key is None else jax.random.split(key, len(window.ordinals))
        body = jax.checkpoint(step, prevent_cse=False) if remat else step
        start = Evolved(origin, initial, jnp.zeros((), origin.dtype))
        numbers = jnp.cumsum(window.ordinals >= 0) - 1
        # written out, XLA would find that the recomputation repeats the forward pass, and keep that instead
        unroll = not remat and len(window.ordinals) <= _UNROLLED and origin.size >= _LARGE
        evolved, moments = jax.lax.scan(body, start, (window.ordinals, numbers, keys), unroll=unroll)
        self._remember(moments)
        return evolved._replace(entities=self.finish(evolved.entities))

    def _updated(self, convolved: Array, entities: Array, dtype: DTypeLike) -> Array:
        """The update of all rows; of very many in blocks, recomputed in the backward pass."""

        def update(rows: tuple[Array, Array]) -> Array:
            return self.update(l2_normalise(rows[0]), rows[1], dtype)

        if len(entities) <= _MOST_ROWS:
            return update((convolved, entities))
        return jax.lax.map(jax.checkpoint(update, prevent_cse=False), (convolved, entities), batch_size=_MOST_ROWS)

    def _cut(self, window: Window, ordinal: Array, shape: WindowShape) -> Snapshot:
        num_entities = self.config.num_entities
        sizes = {"num_entities": num_entities, "num_relations": self.config.num_relations}
        snapshot = cut_snapshot(window.graph, ordinal, shape, **sizes)
        return snapshot if window.rows is None else renumbered(snapshot, window.rows, num_entities=num_entities)

    def _convolve(
        self, snapshot: Snapshot, x: Array, relations: Array, key: Array | None, dtype: DTypeLike
    ) -> tuple[Array, list[Moments | None]]:
        moments = []
        for layer, layer_key in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x, layer_moments = layer(snapshot, x, relations, training=key is not None, dtype=dtype)
            x = dropout(x, self.config.dropout, layer_key)
            moments.append(layer_moments)
        return x, moments

    def _remember(self, moments: list[Moments | None]) -> None:
        """Move the layers' running statistics, snapshot by snapshot (moments are stacked [k, ...])."""
        for layer, stacked in zip(self.layers, moments, strict=True):
            if stacked is None or not isinstance(layer, NormalisedGraphConvolution):
                continue
            for i in range(self.config.history_length):
                layer.norm.remember(jax.tree.map(lambda value, i=i: value[i], stacked))
