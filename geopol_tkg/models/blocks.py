"""Working through queries block by block, so that memory is a block's, whatever their number."""

from collections.abc import Callable
from functools import partial
from itertools import compress
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
    """What a loop over blocks reads, all that the function closes over among it; of gradients, what they are of."""

    num_used: Array | None  # int32, blocks up to the last one with a real row
    floats: list[Array]  # [count, ...], rows
    others: list[Array] | None  # [count, ...], rows without a gradient
    constants: list[Array]  # the same for all blocks
    fixed: list[Array] | None  # the same for all blocks, without a gradient


_Function = Callable[..., Any]  # of a block's floats and others, constants, and what is fixed


def _divided(function: Callable[[Any], Any], rows: Any, count: int, mask: Array) -> tuple[_Function, _Work]:
    blocks = jax.tree.map(lambda array: array.reshape(count, -1, *array.shape[1:]), rows)
    is_used = jnp.any(mask.reshape(count, -1), axis=1)
    num_used = jnp.max(jnp.where(is_used, jnp.arange(1, count + 1), 0))
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(_block(blocks, 0))
    program, leaves, closed_over = traced.jaxpr, jax.tree.leaves(blocks), traced.consts
    own_kinds, kinds = ([jnp.issubdtype(x.dtype, jnp.floating) for x in arrays] for arrays in (leaves, closed_over))

    def of_block(floats: list[Array], others: list[Array], constants: list[Array], fixed: list[Array]) -> Any:
        results = jax.core.eval_jaxpr(program, _joined(kinds, constants, fixed), *_joined(own_kinds, floats, others))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return of_block, _Work(num_used, *_parted(own_kinds, leaves), *_parted(kinds, closed_over))


def _parted(kinds: list[bool], arrays: list[Array]) -> tuple[list[Array], list[Array]]:
    """Those with a gradient, and the others."""
    wanted, others = (list(compress(arrays, [kind == own for own in kinds])) for kind in (True, False))
    return wanted, others


def _joined(kinds: list[bool], floats: list[Array], others: list[Array]) -> list[Array]:
    """What was parted, in its order."""
    parts = {True: iter(floats), False: iter(others)}
    return [next(parts[kind]) for kind in kinds]


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
    def body(i: Array, sums: _Work) -> _Work:
        floats, others, constants, fixed = _arguments(work, i)
        pull = jax.vjp(lambda floats, constants: function(floats, others, constants, fixed), floats, constants)[1]
        return _added(sums, i, pull(_block(gradients, i)))

    return (jax.lax.fori_loop(0, work.num_used, body, _no_gradients(work)),)


_loop.defvjp(_loop_forward, _loop_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(function: _Function, work: _Work) -> Array:
    shape = jax.eval_shape(lambda: function(*_arguments(work, 0)))
    zero = jnp.zeros(shape.shape, shape.dtype)
    return jax.lax.fori_loop(0, work.num_used, lambda i, total: total + function(*_arguments(work, i)), zero)


def _total_forward(function: _Function, work: _Work) -> tuple[Array, _Work]:
    shape = jax.eval_shape(lambda: function(*_arguments(work, 0)))

    def body(i: Array, sums: tuple[Array, _Work]) -> tuple[Array, _Work]:
        total, gradients = sums
        value, found = jax.value_and_grad(function, argnums=(0, 2))(*_arguments(work, i))
        return total + value, _added(gradients, i, found)

    return jax.lax.fori_loop(0, work.num_used, body, (jnp.zeros(shape.shape, shape.dtype), _no_gradients(work)))


def _total_backward(function: _Function, gradients: _Work, gradient: Array) -> tuple[_Work]:
    del function
    return (jax.tree.map(lambda array: (gradient * array).astype(array.dtype), gradients),)


_total.defvjp(_total_forward, _total_backward)


def _arguments(work: _Work, i: Array | int) -> tuple[Any, ...]:
    """Of the function, for block ``i``."""
    return _block(work.floats, i), _block(work.others, i), work.constants, work.fixed


def _no_gradients(work: _Work) -> _Work:
    floats, constants = jax.tree.map(jnp.zeros_like, (work.floats, work.constants))
    return _Work(None, floats, None, constants, None)


def _added(sums: _Work, i: Array, found: tuple[list[Array], list[Array]]) -> _Work:
    """Gradients with those of block ``i``."""
    floats, constants = found
    constants = jax.tree.map(jnp.add, sums.constants, constants)
    return sums._replace(floats=_with_block(sums.floats, i, floats), constants=constants)


def _block(blocks: Any, i: Array | int) -> Any:
    return jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, i, keepdims=False), blocks)


def _with_block(blocks: Any, i: Array, block: Any) -> Any:
    return jax.tree.map(lambda array, part: jax.lax.dynamic_update_index_in_dim(array, part, i, 0), blocks, block)
