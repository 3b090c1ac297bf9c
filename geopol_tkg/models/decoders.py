"""ConvTransE (Shang et al., AAAI 2019) and Time-ConvTransE (Li, Sun and Zhao, IJCAI 2022)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig
from geopol_tkg.models.blocks import map_rows, over_blocks
from geopol_tkg.models.layers import (
    BatchNorm,
    DTypeLike,
    Moments,
    add_bias,
    dot,
    dropout,
    merged,
    split_key,
    uniform,
    weighted_moments,
    widened,
)


class Queries(NamedTuple):
    """Padded queries of one time; in training each is there once, however many answers it has.

    For the entity task ``first`` is the subject and ``second`` the relation, with ``(s, r, ?)`` asked;
    for the relation task ``first`` is the subject and ``second`` the object, with ``(s, ?, o)`` asked.
    """

    first: Array  # int32 [b]
    second: Array  # int32 [b]
    seen: Array  # int32 [b, 2], slices of the history vocabulary's targets
    weight: Array  # int32 [b], facts that ask it; 0 for padding
    row: Array  # int32 [b], number of the query in its step

    @property
    def mask(self) -> Array:
        """Which are real: bool [b]."""
        return self.weight > 0


Inputs = Callable[[Queries], list[Array]]


class ConvTransE(nnx.Module):
    """Turn stacked embeddings into the vector that candidates are multiplied with.

    BN -> dropout -> conv -> BN -> ReLU -> dropout -> linear -> dropout -> BN -> ReLU. Arrays keep
    channels last, so the convolution is one matrix product of [b * d, channels * width] rows, into which
    the norm after it is folded: the [b, d, channels] array is written once.
    """

    def __init__(self, config: ModelConfig, *, num_inputs: int, key: Array) -> None:
        keys = jax.random.split(key, 4)
        dim, channels, width = config.embedding_dim, config.num_channels, config.kernel_width
        conv_bound, linear_bound = (num_inputs * width) ** -0.5, (channels * dim) ** -0.5
        self.rate = config.dropout
        self.input_norm = BatchNorm(num_inputs)
        self.conv_weight = nnx.Param(uniform(keys[0], (width, num_inputs, channels), conv_bound))
        self.conv_bias = nnx.Param(uniform(keys[1], (channels,), conv_bound))
        self.conv_norm = BatchNorm(channels)
        self.linear_weight = nnx.Param(uniform(keys[2], (dim, channels, dim), linear_bound))
        self.linear_bias = nnx.Param(uniform(keys[3], (dim,), linear_bound))
        self.output_norm = BatchNorm(dim)

    def __call__(
        self, queries: Queries, inputs: Inputs, *, key: Array | None, dtype: DTypeLike, num_blocks: int = 1
    ) -> Array:
        """Vectors [b, d] of queries; a key means training, on the statistics of all facts' queries.

        Args:
            inputs: the embeddings [x, d] of x queries that are stacked as channels.
            num_blocks: the [b, d, channels] array never exists for more than a block of queries.
        """
        input_key, feature_key, hidden_key = split_key(key, 3)
        width, num_inputs, channels = self.conv_weight.shape
        kernel, bias = self.conv_weight[...].reshape(width * num_inputs, channels), self.conv_bias[...]

        def moments(function: Callable[[Queries], Moments]) -> Moments | None:
            return None if key is None else merged(over_blocks(function, queries, num_blocks, mask=queries.mask))

        def stacked(part: Queries) -> Array:
            return jnp.stack(inputs(part), axis=-1)

        input_factor, input_offset = self.input_norm.fit(
            moments(lambda part: weighted_moments(stacked(part), part.weight))
        )

        def patches(part: Queries) -> Array:
            x = stacked(part) * input_factor + input_offset
            return _patches(dropout(x, self.rate, input_key, part.row), width)

        factor, offset = self.conv_norm.fit(
            moments(lambda part: _convolved_moments(patches(part), kernel, bias, part.weight))
        )

        def hidden(part: Queries) -> Array:
            x = add_bias(dot(patches(part), kernel * factor, dtype, dtype), bias * factor + offset)
            x = dropout(jax.nn.relu(x), self.rate, feature_key, part.row)
            weight = self.linear_weight[...].reshape(-1, self.linear_weight.shape[-1])
            x = dot(x.reshape(len(x), -1), weight, dtype) + self.linear_bias[...]
            return dropout(x, self.rate, hidden_key, part.row)

        x = map_rows(hidden, queries, num_blocks, mask=queries.mask)
        factor, offset = self.output_norm.fit(None if key is None else weighted_moments(x, queries.weight))
        return jax.nn.relu(x * factor + offset)


def _patches(x: Array, width: int) -> Array:
    """What each output position of a same-padded convolution sees: [b, d, c] to [b, d, width * c]."""
    before = (width - 1) // 2
    padded = jnp.pad(x, ((0, 0), (before, width - 1 - before), (0, 0)))
    return jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(width)], axis=-1)


def _convolved_moments(patches: Array, kernel: Array, bias: Array, weight: Array) -> Moments:
    """Moments of ``patches @ kernel + bias`` per channel, from the small covariance of the patches.

    ``mean = k . E[p] + b`` and ``var = k' Cov(p) k``: no pass over the [b, d, channels] output.
    """
    count = jnp.sum(weight).astype(widened(patches.dtype)) * patches.shape[1]
    divisor = jnp.maximum(count, 1)
    rows = patches.reshape(-1, patches.shape[-1])
    weighted = (patches * weight[:, None, None].astype(patches.dtype)).reshape(rows.shape)
    mean = jnp.sum(weighted, axis=0) / divisor
    with jax.default_matmul_precision("highest"):
        covariance = weighted.T @ rows / divisor - jnp.outer(mean, mean)
        var = jnp.sum(kernel * (covariance @ kernel), axis=0)
        return Moments(mean @ kernel + bias, jnp.maximum(var, 0), count)


class TimeEncoding(nnx.Module):
    """Linear and periodic time vectors: ``w1 i + b1`` and ``sin(w2 i + b2)`` of the time index i."""

    def __init__(self, dim: int, *, key: Array) -> None:
        keys = jax.random.split(key, 4)
        self.linear_weight = nnx.Param(jax.random.normal(keys[0], (dim,)))
        self.linear_bias = nnx.Param(jax.random.normal(keys[1], (dim,)))
        self.periodic_weight = nnx.Param(jax.random.normal(keys[2], (dim,)))
        self.periodic_bias = nnx.Param(jax.random.normal(keys[3], (dim,)))

    def __call__(self, time: Array, rows: int) -> list[Array]:
        """Both vectors, repeated for each query: 2 x [b, d]."""
        index = time.astype(jnp.float32)
        linear = self.linear_weight[...] * index + self.linear_bias[...]
        periodic = jnp.sin(self.periodic_weight[...] * index + self.periodic_bias[...])
        return [jnp.broadcast_to(vector, (rows, len(vector))) for vector in (linear, periodic)]
