"""TiRGN: Li, Sun and Zhao, Time-Guided Recurrent Graph Network with Local-Global Historical Patterns.

IJCAI 2022.
"""

import jax
import jax.numpy as jnp
from jax import Array

from geopol_tkg.config import MaskMode, ModelConfig
from geopol_tkg.models.decoders import ConvTransE, TimeEncoding
from geopol_tkg.models.evolution import EvolutionEncoder, Evolved
from geopol_tkg.models.graph import NormalisedGraphConvolution
from geopol_tkg.models.layers import DTypeLike, GRUCell, dot, l2_normalise, split_key
from geopol_tkg.models.network import Component, Network, Queries

_EXCLUDED = -1e30  # a logit whose probability is exactly zero


class TiRGNEncoder(EvolutionEncoder):
    """Evolution with a GRU between a snapshot's graph output and the entities before it."""

    layer_type = NormalisedGraphConvolution

    def __init__(self, config: ModelConfig, *, key: Array) -> None:
        key, gru_key = jax.random.split(key)
        super().__init__(config, key=key)
        self.entity_gru = GRUCell(config.embedding_dim, config.embedding_dim, key=gru_key)

    def update(self, convolved: Array, entities: Array, dtype: DTypeLike) -> Array:
        return l2_normalise(self.entity_gru(convolved, entities, dtype))

    def finish(self, entities: Array) -> Array:
        return entities


class TiRGN(Network):
    """TiRGN: per task a raw (generation) and a history (copy) decoder, mixed by the history rate."""

    uses_history = True

    def __init__(self, config: ModelConfig, *, key: Array) -> None:
        keys = jax.random.split(key, 6)
        self.config = config
        self.encoder = TiRGNEncoder(config, key=keys[0])
        self.time_encoding = TimeEncoding(config.embedding_dim, key=keys[1])
        self.raw_entity_decoder = ConvTransE(config, num_inputs=4, key=keys[2])
        self.history_entity_decoder = ConvTransE(config, num_inputs=4, key=keys[3])
        self.raw_relation_decoder = ConvTransE(config, num_inputs=4, key=keys[4])
        self.history_relation_decoder = ConvTransE(config, num_inputs=4, key=keys[5])

    def entity_mixture(
        self, evolved: Evolved, queries: Queries, *, key: Array | None, dtype: DTypeLike
    ) -> list[Component]:
        candidates = jnp.tanh(evolved.entities)
        inputs = [candidates[queries.first], evolved.relations[queries.second]]
        decoders = (self.raw_entity_decoder, self.history_entity_decoder)
        return self._mixture(decoders, inputs, candidates, queries, key=key, dtype=dtype)

    def relation_mixture(
        self, evolved: Evolved, queries: Queries, *, key: Array | None, dtype: DTypeLike
    ) -> list[Component]:
        entities = jnp.tanh(evolved.entities)
        inputs = [entities[queries.first], entities[queries.second]]
        decoders = (self.raw_relation_decoder, self.history_relation_decoder)
        return self._mixture(decoders, inputs, evolved.relations, queries, key=key, dtype=dtype)

    def _mixture(
        self,
        decoders: tuple[ConvTransE, ConvTransE],
        inputs: list[Array],
        candidates: Array,
        queries: Queries,
        *,
        key: Array | None,
        dtype: DTypeLike,
    ) -> list[Component]:
        assert queries.seen is not None, "TiRGN needs the history mask"
        inputs = inputs + self.time_encoding(queries.time, len(queries.first))
        raw, history = (
            dot(decoder(inputs, mask=queries.mask, key=decoder_key, dtype=dtype), candidates.T, dtype)
            for decoder, decoder_key in zip(decoders, split_key(key, 2), strict=True)
        )
        rate = self.config.history_rate
        masked = mask_history(history, raw, queries.seen, self.config.history_mask_mode)
        parts = [Component(1 - rate, raw), Component(rate, masked)]
        return [part for part in parts if part.weight > 0]


def mask_history(history: Array, raw: Array, seen: Array, mode: MaskMode) -> Array:
    """History logits [b, candidates] under the mask ``seen``.

    ``multiply`` leaves unseen candidates at logit 0, as published; ``exclude`` takes them out, and a
    query that has seen nothing gets the raw logits.
    """
    if mode == "multiply":
        return jnp.where(seen, history, 0)
    excluded = jnp.where(seen, history, _EXCLUDED)
    return jnp.where(jnp.any(seen, axis=1, keepdims=True), excluded, raw)
