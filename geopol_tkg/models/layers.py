"""Building blocks of both networks, on Flax NNX.

Axis letters: n entities, r relations, d hidden, e edges, a connected entities, m relation members,
b queries, c channels.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

LEAKY_SLOPE = 11 / 48  # mean of rrelu(1/8, 1/3)
NORM_MOMENTUM = 0.1
NORM_EPSILON = 1e-5
DTypeLike = Any


def l2_normalise(x: Array, epsilon: float = 1e-12) -> Array:
    """Rows of unit length; a zero row stays zero."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, epsilon**2))


def leaky_relu(x: Array) -> Array:
    return jnp.where(x >= 0, x, LEAKY_SLOPE * x)


def widened(dtype: DTypeLike) -> DTypeLike:
    """The type that sums are kept in: float32, or float64 where the operands are."""
    return jnp.promote_types(dtype, jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dot(x: Array, weight: Array, dtype: DTypeLike, result_dtype: DTypeLike = None) -> Array:
    """Product of [..., i] and [i, o] computed in ``dtype``, accumulated in float32 where the device can.

    The result is widened unless ``result_dtype`` says otherwise. The backward pass computes its two
    products in ``dtype`` as well, and keeps operands in ``dtype``.
    """
    return _product(x.astype(dtype), weight.astype(dtype), widened(dtype) if result_dtype is None else result_dtype)


def _dot_forward(x: Array, weight: Array, dtype: DTypeLike, result_dtype: DTypeLike) -> tuple[Array, tuple[Array, ...]]:
    return dot(x, weight, dtype, result_dtype), _saved(x, weight, dtype)


def _dot_backward(
    dtype: DTypeLike, result_dtype: DTypeLike, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array]:
    del result_dtype
    x, weight, x_type, weight_type = saved
    gradient = gradient.astype(dtype)
    to_x = _product(gradient, weight.T, x_type.dtype)
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return to_x, _product(rows.T, gradients, weight_type.dtype)


dot.defvjp(_dot_forward, _dot_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def inner(x: Array, rows: Array, dtype: DTypeLike) -> Array:
    """Inner products [b, c] of [b, i] and [c, i], as :func:`dot` computes them.

    Not ``dot(x, rows.T)``, whose gradient of the rows is a transposed product: XLA folds the transposition into it,
    and its CPU backend then has no bfloat16 product to run.
    """
    return _product(x.astype(dtype), rows.astype(dtype).T, widened(dtype))


def _inner_forward(x: Array, rows: Array, dtype: DTypeLike) -> tuple[Array, tuple[Array, ...]]:
    return inner(x, rows, dtype), _saved(x, rows, dtype)


def _inner_backward(dtype: DTypeLike, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array]:
    x, rows, x_type, rows_type = saved
    gradient = gradient.astype(dtype)
    return _product(gradient, rows, x_type.dtype), _product(gradient.T, x, rows_type.dtype)


inner.defvjp(_inner_forward, _inner_backward)


def _saved(x: Array, y: Array, dtype: DTypeLike) -> tuple[Array, ...]:
    """Both operands in ``dtype``, and an empty array of each one's own type."""
    return x.astype(dtype), y.astype(dtype), jnp.zeros(0, x.dtype), jnp.zeros(0, y.dtype)


def _product(x: Array, y: Array, result_dtype: DTypeLike) -> Array:
    """``x @ y`` of [..., i] and [i, o].

    XLA multiplies bfloat16 by a CPU's own instructions only where neither operand is read transposed
    and the result is float32; everywhere else it widens the operands first.
    """
    plain = partial(jnp.matmul, preferred_element_type=result_dtype)
    if x.dtype != jnp.bfloat16:
        return plain(x, y)

    def row_major(x: Array, y: Array) -> Array:
        rows, y = (with_layout_constraint(array, Layout((0, 1))) for array in (x.reshape(-1, x.shape[-1]), y))
        result = jnp.matmul(rows, y, preferred_element_type=jnp.float32)
        return result.reshape(*x.shape[:-1], y.shape[-1]).astype(result_dtype)

    return jax.lax.platform_dependent(x, y, cpu=row_major, default=plain)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """``x + bias`` [..., c] in the type of ``x``; the gradient of a float32 bias [c] is summed in float32."""
    return x + bias.astype(x.dtype)


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, None]:
    return add_bias(x, bias), None


def _add_bias_backward(saved: None, gradient: Array) -> tuple[Array, Array]:
    del saved
    axes = tuple(range(gradient.ndim - 1))
    return gradient, jnp.sum(gradient, axes, dtype=widened(gradient.dtype))


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def dropout(x: Array, rate: float, key: Array | None, rows: Array | None = None) -> Array:
    """Zero a share of ``x`` and scale the rest; without a key nothing happens.

    The mask is a hash of each element's position under the key: a tenth of threefry's work, and cheap
    enough to be computed again in the backward pass instead of being stored.

    Args:
        rows: int32 [b], which rows of a larger array ``x`` [b, ...] has; by default the first b.
    """
    if key is None or rate == 0:
        return x
    seeds = jax.random.bits(key, (2,), jnp.uint32)
    rows = jnp.arange(len(x)) if rows is None else rows
    width = x.size // len(x)
    position = (rows.astype(jnp.uint32)[:, None] * width + jnp.arange(width, dtype=jnp.uint32)).reshape(x.shape)
    keep = _hash(position ^ seeds[0], seeds[1]) >= jnp.uint32(rate * 2**32)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def _hash(x: Array, seed: Array) -> Array:
    """32-bit finaliser of MurmurHash3 (Appleby, public domain), with a seed between its two products."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B) + seed
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def split_key(key: Array | None, count: int) -> list[Array | None]:
    """As many keys; all None when there is none (evaluation)."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def uniform(key: Array, shape: tuple[int, ...], bound: float) -> Array:
    """U(-bound, bound) in float32."""
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def xavier_relu(key: Array, shape: tuple[int, int]) -> Array:
    """Xavier uniform with gain sqrt(2)."""
    return uniform(key, shape, (2 * 6 / sum(shape)) ** 0.5)


@jax.custom_vjp
def _gated(input_gates: Array, hidden_gates: Array, hidden: Array) -> Array:
    """Next hidden state [x, d] of a GRU from both [x, 3d] parts of its gates.

    The backward pass keeps five arrays [x, d]; derived operation by operation it would keep nine.
    """
    return _gated_forward(input_gates, hidden_gates, hidden)[0]


def _gated_forward(input_gates: Array, hidden_gates: Array, hidden: Array) -> tuple[Array, tuple[Array, ...]]:
    reset_in, update_in, new_in = jnp.split(input_gates, 3, axis=-1)
    reset_hidden, update_hidden, new_hidden = jnp.split(hidden_gates, 3, axis=-1)
    reset = jax.nn.sigmoid(reset_in + reset_hidden)
    update = jax.nn.sigmoid(update_in + update_hidden)
    new = jnp.tanh(new_in + reset * new_hidden)
    return (1 - update) * new + update * hidden, (reset, update, new, new_hidden, hidden)


def _gated_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    reset, update, new, new_hidden, hidden = saved
    to_new = gradient * (1 - update) * (1 - new * new)
    to_reset = to_new * new_hidden * reset * (1 - reset)
    to_update = gradient * (hidden - new) * update * (1 - update)
    to_input = jnp.concatenate([to_reset, to_update, to_new], axis=-1)
    to_hidden_gates = jnp.concatenate([to_reset, to_update, to_new * reset], axis=-1)
    return to_input, to_hidden_gates, gradient * update


_gated.defvjp(_gated_forward, _gated_backward)


class GRUCell(nnx.Module):
    """Gated recurrent unit (Cho et al., 2014), in the form of torch.nn.GRUCell."""

    def __init__(self, input_dim: int, hidden_dim: int, *, key: Array) -> None:
        keys = jax.random.split(key, 4)
        bound = hidden_dim**-0.5
        self.input_weight = nnx.Param(uniform(keys[0], (input_dim, 3 * hidden_dim), bound))
        self.hidden_weight = nnx.Param(uniform(keys[1], (hidden_dim, 3 * hidden_dim), bound))
        self.input_bias = nnx.Param(uniform(keys[2], (3 * hidden_dim,), bound))
        self.hidden_bias = nnx.Param(uniform(keys[3], (3 * hidden_dim,), bound))

    def update(self, input_gates: Array, hidden: Array, dtype: DTypeLike) -> Array:
        """Next hidden state [x, d] from ``input @ input_weight + input_bias`` [x, 3d]."""
        return _gated(input_gates, dot(hidden, self.hidden_weight[...], dtype) + self.hidden_bias[...], hidden)

    def __call__(self, x: Array, hidden: Array, dtype: DTypeLike) -> Array:
        """Next hidden state [x, d] from an input [x, i]."""
        return self.update(dot(x, self.input_weight[...], dtype) + self.input_bias[...], hidden, dtype)


class Moments(NamedTuple):
    """Mean and biased variance per channel [c], and how many samples are behind them: too many for int32."""

    mean: Array
    var: Array
    count: Array


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015) over the last axis, with weighted statistics.

    Training uses the batch's own moments and moves the running ones (unbiased variance, momentum
    0.1); evaluation uses the running ones, so that every query stands alone.
    """

    def __init__(self, num_channels: int) -> None:
        self.scale = nnx.Param(jnp.ones(num_channels))
        self.bias = nnx.Param(jnp.zeros(num_channels))
        self.mean = nnx.BatchStat(jnp.zeros(num_channels))
        self.var = nnx.BatchStat(jnp.ones(num_channels))

    def affine(self, moments: Moments | None) -> tuple[Array, Array]:
        """Factor and offset [c] of the normalisation; None takes the running statistics."""
        mean = self.mean[...] if moments is None else moments.mean
        var = self.var[...] if moments is None else moments.var
        factor = self.scale[...] * jax.lax.rsqrt(var + NORM_EPSILON)
        return factor, self.bias[...] - mean * factor

    def fit(self, moments: Moments | None) -> tuple[Array, Array]:
        """:meth:`affine`, after moving the running statistics by the moments that it uses."""
        if moments is not None:
            self.remember(moments)
        return self.affine(moments)

    def remember(self, moments: Moments) -> None:
        """Move the running statistics; moments of no samples change nothing."""
        rate = jnp.where(moments.count > 0, NORM_MOMENTUM, 0.0)
        unbiased = moments.var * moments.count / jnp.maximum(moments.count - 1, 1)
        self.mean[...] = (1 - rate) * self.mean[...] + rate * jax.lax.stop_gradient(moments.mean)
        self.var[...] = (1 - rate) * self.var[...] + rate * jax.lax.stop_gradient(unbiased)


def weighted_moments(x: Array, weight: Array) -> Moments:
    """Moments of [b, ..., c] per channel over rows that count as often as the weight int32 [b] says."""
    axes = tuple(range(x.ndim - 1))
    values = x.astype(widened(x.dtype))
    times = weight.reshape(-1, *[1] * (x.ndim - 1)).astype(values.dtype)
    width = 1
    for size in x.shape[1:-1]:
        width *= size
    count = jnp.sum(weight).astype(values.dtype) * width
    divisor = jnp.maximum(count, 1)
    mean = jnp.sum(values * times, axis=axes) / divisor
    var = jnp.sum(jnp.square(values - mean) * times, axis=axes) / divisor
    return Moments(mean, var, count)


def merged(parts: Moments) -> Moments:
    """Moments of all samples from those of their parts [p, c] and counts [p] (Chan, Golub and LeVeque, 1983)."""
    count = jnp.sum(parts.count)
    share = (parts.count / jnp.maximum(count, 1))[:, None]
    mean = jnp.sum(share * parts.mean, axis=0)
    return Moments(mean, jnp.sum(share * (parts.var + jnp.square(parts.mean - mean)), axis=0), count)
