"""Working through queries block by block, so that memory is a block's, whatever their number."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


def map_rows(function: Callable[[Any], Any], rows: Any, count: int, *, mask: Array) -> Any:
    """Results of a row-wise function, computed in ``count`` blocks: [b, ...]; see :func:`over_blocks`."""
    results = over_blocks(function, rows, count, mask=mask)
    return jax.tree.map(lambda stacked: stacked.reshape(-1, *stacked.shape[2:]), results)


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
    return _loop(*_divided(function, rows, count, mask))


def sum_over_blocks(function: Callable[[Any], Array], rows: Any, count: int, *, mask: Array) -> Array:
    """Sum of a scalar function over blocks, as in :func:`over_blocks`.

    The gradient of several blocks is found together with the value: nothing is computed again, and of a
    block nothing is kept.
    """
    if count == 1:
        return function(rows)
    return _total(*_divided(function, rows, count, mask))


class _Work(NamedTuple):
    """What a loop over blocks reads; of gradients, what they are of."""

    num_used: Array | None  # int32, blocks up to the last one with a real row
    floats: list[Array]  # [count, ...], rows
    others: list[Array] | None  # [count, ...], rows without a gradient
    constants: list[Array]  # the same for all blocks


_Function = Callable[[list[Array], list[Array], list[Array]], Any]  # of a block's floats and others, and constants


def _divided(function: Callable[[Any], Any], rows: Any, count: int, mask: Array) -> tuple[_Function, _Work]:
    blocks = jax.tree.map(lambda array: array.reshape(count, -1, *array.shape[1:]), rows)
    is_used = jnp.any(mask.reshape(count, -1), axis=1)
    num_used = jnp.max(jnp.where(is_used, jnp.arange(1, count + 1), 0))
    converted, constants = jax.closure_convert(function, _block(blocks, 0))
    leaves, structure = jax.tree.flatten(blocks)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def of_block(floats: list[Array], others: list[Array], constants: list[Array]) -> Any:
        parts = {True: iter(floats), False: iter(others)}
        return converted(jax.tree.unflatten(structure, [next(parts[kind]) for kind in is_float]), *constants)

    floats, others = (
        [leaf for leaf, kind in zip(leaves, is_float, strict=True) if kind == wanted] for wanted in (True, False)
    )
    return of_block, _Work(num_used, floats, others, constants)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(function: _Function, work: _Work) -> Any:
    """Results [count, ...]; the length of the loop is known only when it runs."""
    count = len(jax.tree.leaves((work.floats, work.others))[0])
    shapes = jax.eval_shape(lambda: function(*_arguments(work, 0)))
    empty = jax.tree.map(lambda shape: jnp.zeros((count, *shape.shape), shape.dtype), shapes)
    return jax.lax.fori_loop(
        0, work.num_used, lambda i, results: _with_block(results, i, function(*_arguments(work, i))), empty
    )


def _loop_forward(function: _Function, work: _Work) -> tuple[Any, _Work]:
    return _loop(function, work), work


def _loop_backward(function: _Function, work: _Work, gradients: Any) -> tuple[_Work]:
    def turn(i: Array, sums: _Work) -> _Work:
        floats, others, constants = _arguments(work, i)
        pull = jax.vjp(lambda floats, constants: function(floats, others, constants), floats, constants)[1]
        return _added(sums, i, pull(_block(gradients, i)))

    return (jax.lax.fori_loop(0, work.num_used, turn, _no_gradients(work)),)


_loop.defvjp(_loop_forward, _loop_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(function: _Function, work: _Work) -> Array:
    shape = jax.eval_shape(lambda: function(*_arguments(work, 0)))
    zero = jnp.zeros(shape.shape, shape.dtype)
    return jax.lax.fori_loop(0, work.num_used, lambda i, total: total + function(*_arguments(work, i)), zero)


def _total_forward(function: _Function, work: _Work) -> tuple[Array, _Work]:
    shape = jax.eval_shape(lambda: function(*_arguments(work, 0)))

    def turn(i: Array, sums: tuple[Array, _Work]) -> tuple[Array, _Work]:
        total, gradients = sums
        value, found = jax.value_and_grad(function, argnums=(0, 2))(*_arguments(work, i))
        return total + value, _added(gradients, i, found)

    return jax.lax.fori_loop(0, work.num_used, turn, (jnp.zeros(shape.shape, shape.dtype), _no_gradients(work)))


def _total_backward(function: _Function, gradients: _Work, gradient: Array) -> tuple[_Work]:
    del function
    return (jax.tree.map(lambda array: gradient * array, gradients),)


_total.defvjp(_total_forward, _total_backward)


def _arguments(work: _Work, i: Array | int) -> tuple[list[Array], list[Array], list[Array]]:
    """Of the function, for block ``i``."""
    return _block(work.floats, i), _block(work.others, i), work.constants


def _no_gradients(work: _Work) -> _Work:
    return _Work(None, *(jax.tree.map(jnp.zeros_like, part) for part in (work.floats, None, work.constants)))


def _added(sums: _Work, i: Array, found: tuple[list[Array], list[Array]]) -> _Work:
    """Gradients with those of block ``i``."""
    floats, constants = found
    return _Work(None, _with_block(sums.floats, i, floats), None, jax.tree.map(jnp.add, sums.constants, constants))


def _block(blocks: Any, i: Array | int) -> Any:
    return jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, i, keepdims=False), blocks)


def _with_block(blocks: Any, i: Array, block: Any) -> Any:
    return jax.tree.map(lambda array, part: jax.lax.dynamic_update_index_in_dim(array, part, i, 0), blocks, block)
