"""The static embedding of entities from the words of their labels, and what holds the evolution near it."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from geopol_tkg.config import ModelConfig
from geopol_tkg.data.static_graph import NUM_KINDS
from geopol_tkg.models.layers import l2_normalise, leaky_relu, xavier_relu

_BLOCK = 2  # rows and columns of a diagonal block


class StaticEdges(nnx.Variable):
    """Edges of the static graph: part of a network's state, never trained."""


class StaticGraphLayer(nnx.Module):
    """One relational graph convolution with block-diagonal weights (Schlichtkrull et al., ESWC 2018).

    An entity is the mean of its words, each times the weight of its edge's kind. As published there is no
    loop, so that an entity's own embedding does not enter, and the weights of the other direction, from
    entities to words, exist but move nothing: words are not read afterwards.
    """

    def __init__(self, config: ModelConfig, *, key: Array) -> None:
        dim, words = config.embedding_dim, config.num_words
        if dim % _BLOCK:
            raise ValueError(f"the static graph needs an even embedding dimension, not {dim}")
        word_key, weight_key = jax.random.split(key)
        xavier_normal = (2 / (words + dim)) ** 0.5
        self.word_embedding = nnx.Param(xavier_normal * jax.random.normal(word_key, (words, dim)))
        self.block_weight = nnx.Param(xavier_relu(weight_key, (2 * NUM_KINDS, dim * _BLOCK)))
        self.edges = StaticEdges(jnp.zeros((config.num_static_edges, 3), jnp.int32))

    def __call__(self, num_entities: int) -> Array:
        """Static embeddings of unit length: [n, d]."""
        entity, kind, word = self.edges[...].T
        sums = jax.ops.segment_sum(self._messages()[kind, word], entity, num_entities, indices_are_sorted=True)
        degree = jax.ops.segment_sum(jnp.ones(len(entity)), entity, num_entities, indices_are_sorted=True)
        return l2_normalise(leaky_relu(sums / jnp.maximum(degree, 1)[:, None]))

    def _messages(self) -> Array:
        """Every word times the inverse weight of every kind: [kinds, words, d]."""
        words = self.word_embedding[...]
        weight = self.block_weight[...][NUM_KINDS:].reshape(NUM_KINDS, 1, -1, _BLOCK, _BLOCK)
        parts = words.reshape(1, len(words), -1, _BLOCK)
        messages = sum(parts[..., i : i + 1] * weight[..., i, :] for i in range(_BLOCK))
        return jnp.asarray(messages).reshape(NUM_KINDS, *words.shape)


def static_drift(static: Array, entities: Array, step: Array, angle: float) -> Array:
    """Sum over entities of how far they turned beyond ``angle * (step + 1)`` degrees, in cosines."""
    allowed = jnp.cos(math.radians(angle) * (step + 1))
    return jnp.sum(jax.nn.relu(allowed - jnp.sum(static * l2_normalise(entities), axis=1)))


def set_static_graph(network: nnx.Module, edges: ArrayLike) -> None:
    """Put a static graph's edges, int32 [e, 3], where a freshly built network has room for them."""
    for _, module in nnx.iter_modules(network):
        if isinstance(module, StaticGraphLayer):
            module.edges[...] = jnp.asarray(edges)
