"""Working through queries block by block, so that memory is a block's, whatever their number."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def over_blocks(function: Callable[[Any], Any], rows: Any, count: int, *, mask: Array) -> Any:
    """Results of a function for each of ``count`` equal blocks of rows, stacked: [count, ...].

    Args:
        function: of the block's rows.
        rows: a pytree of arrays [b, ...], with ``count`` a divisor of b.
        mask: bool [b], which rows are real. Zeros stand for blocks without any, at no cost.

    Several blocks are computed again in the backward pass instead of being kept; one is not.
    """
    if count == 1:
        return jax.tree.map(lambda result: result[None], function(rows))
    blocks = jax.tree.map(lambda array: array.reshape(count, -1, *array.shape[1:]), rows)
    shapes = jax.eval_shape(function, jax.tree.map(lambda array: array[0], blocks))

    def block(inputs: tuple[Array, Any]) -> Any:
        is_used, part = inputs
        return jax.lax.cond(is_used, function, lambda _: jax.tree.map(_zeros, shapes), part)

    is_used = jnp.any(mask.reshape(count, -1), axis=1)
    return jax.lax.map(jax.checkpoint(block, prevent_cse=False), (is_used, blocks))


def map_rows(function: Callable[[Any], Any], rows: Any, count: int, *, mask: Array) -> Any:
    """Results of a row-wise function, computed in ``count`` blocks: [b, ...]; see :func:`over_blocks`."""
    results = over_blocks(function, rows, count, mask=mask)
    return jax.tree.map(lambda stacked: stacked.reshape(-1, *stacked.shape[2:]), results)


def _zeros(shape: jax.ShapeDtypeStruct) -> Array:
    return jnp.zeros(shape.shape, shape.dtype)
