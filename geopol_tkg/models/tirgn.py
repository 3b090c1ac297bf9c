"""TiRGN: Li, Sun and Zhao, Time-Guided Recurrent Graph Network with Local-Global Historical Patterns.

IJCAI 2022.
"""

import jax
import jax.numpy as jnp
from jax import Array

from geopol_tkg.config import MaskMode, ModelConfig
from geopol_tkg.models.decoders import ConvTransE, Queries, TimeEncoding
from geopol_tkg.models.evolution import EvolutionEncoder, Evolved
from geopol_tkg.models.graph import NormalisedGraphConvolution
from geopol_tkg.models.layers import DTypeLike, GRUCell, l2_normalise
from geopol_tkg.models.network import Component, Network, Task
from geopol_tkg.models.sampling import EXCLUDED, Entries, history_log_probability, sampled_log_probability


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

    def entity_task(self, evolved: Evolved, time: Array) -> Task:
        candidates, relations = jnp.tanh(evolved.entities), evolved.relations

        def inputs(queries: Queries) -> list[Array]:
            pair = [candidates[queries.first], relations[queries.second]]
            return pair + self.time_encoding(time, len(queries.first))

        return Task((self.raw_entity_decoder, self.history_entity_decoder), inputs, candidates)

    def relation_task(self, evolved: Evolved, time: Array) -> Task:
        entities = jnp.tanh(evolved.entities)

        def inputs(queries: Queries) -> list[Array]:
            pair = [entities[queries.first], entities[queries.second]]
            return pair + self.time_encoding(time, len(queries.first))

        return Task((self.raw_relation_decoder, self.history_relation_decoder), inputs, evolved.relations)

    def mixture(self, logits: list[Array], seen: Array | None) -> list[Component]:
        assert seen is not None, "TiRGN needs the history mask"
        raw, history = logits
        masked = mask_history(history, raw, seen, self.config.history_mask_mode)
        parts = zip(self._weights(), (raw, masked), strict=True)
        return [Component(weight, part) for weight, part in parts if weight > 0]

    def sampled_parts(
        self, logits: list[Array], vectors: list[Array], task: Task, targets: Array, entries: Entries | None
    ) -> list[tuple[float, Array]]:
        assert entries is not None, "TiRGN needs the history"
        raw = sampled_log_probability(logits[0])
        exclude = self.config.history_mask_mode == "exclude"
        history, is_empty = history_log_probability(
            vectors[1], task.candidates, targets, entries, num_unseen_of=0 if exclude else self.config.num_entities
        )
        if exclude:
            history = jnp.where(is_empty, raw, history)
        parts = zip(self._weights(), (raw, history), strict=True)
        return [(weight, part) for weight, part in parts if weight > 0]

    def _weights(self) -> tuple[float, float]:
        """Of the raw and the history distribution."""
        return 1 - self.config.history_rate, self.config.history_rate


def mask_history(history: Array, raw: Array, seen: Array, mode: MaskMode) -> Array:
    """History logits [b, candidates] under the mask ``seen``.

    ``multiply`` leaves unseen candidates at logit 0, as published; ``exclude`` takes them out, and a
    query that has seen nothing gets the raw logits.
    """
    if mode == "multiply":
        return jnp.where(seen, history, 0)
    excluded = jnp.where(seen, history, EXCLUDED)
    return jnp.where(jnp.any(seen, axis=1, keepdims=True), excluded, raw)
