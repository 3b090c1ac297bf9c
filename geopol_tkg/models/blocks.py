"""Working through queries block by block, so that memory is a block's, whatever their number."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def over_blocks(function: Callable[[Any], Any], rows: Any, count: int, *, mask: Array) -> Any:
    """Results of a function for each of ``count`` equal blocks of rows, stacked: [count, ...].

    Args:
        function: of the block's rows.
        rows: a pytree of arrays [b, ...], with ``count`` a divisor of b.
        mask: bool [b], which rows are real. Behind the last block with one, results are zeros, at no cost.

    Several blocks are computed again in the backward pass instead of being kept; one is not.
    """
    if count == 1:
        return jax.tree.map(lambda result: result[None], function(rows))
    blocks = jax.tree.map(lambda array: array.reshape(count, -1, *array.shape[1:]), rows)
    is_used = jnp.any(mask.reshape(count, -1), axis=1)
    num_used = jnp.max(jnp.where(is_used, jnp.arange(1, count + 1), 0))
    function, constants = jax.closure_convert(function, _block(blocks, 0))
    return _loop(function, num_used, blocks, constants)


def map_rows(function: Callable[[Any], Any], rows: Any, count: int, *, mask: Array) -> Any:
    """Results of a row-wise function, computed in ``count`` blocks: [b, ...]; see :func:`over_blocks`."""
    results = over_blocks(function, rows, count, mask=mask)
    return jax.tree.map(lambda stacked: stacked.reshape(-1, *stacked.shape[2:]), results)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(function: Callable[..., Any], num_used: Array, blocks: Any, constants: list[Array]) -> Any:
    """Results [count, ...] of the first blocks [count, ...]; a loop whose length is known only when it runs."""
    count = len(jax.tree.leaves(blocks)[0])
    shapes = jax.eval_shape(function, _block(blocks, 0), *constants)
    empty = jax.tree.map(lambda shape: jnp.zeros((count, *shape.shape), shape.dtype), shapes)

    def turn(i: Array, results: Any) -> Any:
        return _with_block(results, i, function(_block(blocks, i), *constants))

    return jax.lax.fori_loop(0, num_used, turn, empty)


def _loop_forward(
    function: Callable[..., Any], num_used: Array, blocks: Any, constants: list[Array]
) -> tuple[Any, tuple[Array, Any, list[Array]]]:
    return _loop(function, num_used, blocks, constants), (num_used, blocks, constants)


def _loop_backward(
    function: Callable[..., Any], saved: tuple[Array, Any, list[Array]], gradients: Any
) -> tuple[None, Any, list[Array]]:
    num_used, blocks, constants = saved
    leaves, structure = jax.tree.flatten(blocks)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def turn(i: Array, sums: tuple[list[Array], list[Array]]) -> tuple[list[Array], list[Array]]:
        to_blocks, to_constants = sums
        own = _block(leaves, i)

        def of_floats(floats: list[Array], constants: list[Array]) -> Any:
            rest = iter(floats)
            part = [next(rest) if use else leaf for leaf, use in zip(own, is_float, strict=True)]
            return function(jax.tree.unflatten(structure, part), *constants)

        floats = [leaf for leaf, use in zip(own, is_float, strict=True) if use]
        to_floats, more = jax.vjp(of_floats, floats, constants)[1](_block(gradients, i))
        return _with_block(to_blocks, i, to_floats), jax.tree.map(jnp.add, to_constants, more)

    start = [jnp.zeros_like(leaf) for leaf, use in zip(leaves, is_float, strict=True) if use]
    to_floats, to_constants = jax.lax.fori_loop(0, num_used, turn, (start, jax.tree.map(jnp.zeros_like, constants)))
    rest = iter(to_floats)
    to_leaves = [next(rest) if use else None for use in is_float]
    return None, jax.tree.unflatten(structure, to_leaves), to_constants


_loop.defvjp(_loop_forward, _loop_backward)


def _block(blocks: Any, i: Array | int) -> Any:
    return jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, i, keepdims=False), blocks)


def _with_block(blocks: Any, i: Array, block: Any) -> Any:
    return jax.tree.map(
        lambda array, part: jax.lax.dynamic_update_index_in_dim(array, part.astype(array.dtype), i, 0), blocks, block
    )
