"""RE-GCN: Li et al., Temporal Knowledge Graph Reasoning Based on Evolutional Representation Learning.

SIGIR 2021, arXiv 2104.10353.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig
from geopol_tkg.models.decoders import ConvTransE, Queries
from geopol_tkg.models.evolution import EvolutionEncoder, Evolved
from geopol_tkg.models.graph import GraphConvolution
from geopol_tkg.models.layers import DTypeLike, dot, l2_normalise, xavier_relu
from geopol_tkg.models.network import Component, Network, Task
from geopol_tkg.models.sampling import Entries, sampled_log_probability


class REGCNEncoder(EvolutionEncoder):
    """Evolution with a time gate between a snapshot's graph output and the entities before it."""

    layer_type = GraphConvolution

    def __init__(self, config: ModelConfig, *, key: Array) -> None:
        key, gate_key = jax.random.split(key)
        super().__init__(config, key=key)
        self.gate_weight = nnx.Param(xavier_relu(gate_key, (config.embedding_dim,) * 2))
        self.gate_bias = nnx.Param(jnp.zeros(config.embedding_dim))

    def update(self, convolved: Array, entities: Array, dtype: DTypeLike) -> Array:
        gate = jax.nn.sigmoid(dot(entities, self.gate_weight[...], dtype) + self.gate_bias[...])
        return gate * convolved + (1 - gate) * entities

    def finish(self, entities: Array) -> Array:
        return l2_normalise(entities)


class REGCN(Network):
    """RE-GCN with ConvTransE decoders for entities and relations."""

    uses_history = False

    def __init__(self, config: ModelConfig, *, key: Array) -> None:
        encoder_key, entity_key, relation_key = jax.random.split(key, 3)
        self.encoder = REGCNEncoder(config, key=encoder_key)
        self.entity_decoder = ConvTransE(config, num_inputs=2, key=entity_key)
        self.relation_decoder = ConvTransE(config, num_inputs=2, key=relation_key)

    def entity_task(self, evolved: Evolved, time: Array) -> Task:
        candidates, relations = jnp.tanh(evolved.entities), evolved.relations

        def inputs(queries: Queries) -> list[Array]:
            return [candidates[queries.first], relations[queries.second]]

        return Task((self.entity_decoder,), inputs, candidates)

    def relation_task(self, evolved: Evolved, time: Array) -> Task:
        entities = jnp.tanh(evolved.entities)

        def inputs(queries: Queries) -> list[Array]:
            return [entities[queries.first], entities[queries.second]]

        return Task((self.relation_decoder,), inputs, evolved.relations)

    def mixture(self, logits: list[Array], seen: Array | None) -> list[Component]:
        return [Component(1.0, logits[0])]

    def sampled_parts(
        self, logits: list[Array], vectors: list[Array], task: Task, targets: Array, entries: Entries | None
    ) -> list[tuple[float, Array]]:
        return [(1.0, sampled_log_probability(logits[0]))]
