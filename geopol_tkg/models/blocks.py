"""Working through queries block by block, so that memory is a block's, whatever their number."""

from collections.abc import Callable
from typing import Any

import jax


def over_blocks(function: Callable[[Any], Any], rows: Any, count: int) -> Any:
    """Results of a function for each of ``count`` equal blocks of rows, stacked: [count, ...].

    Args:
        function: of the block's rows.
        rows: a pytree of arrays [b, ...], with ``count`` a divisor of b.

    Several blocks are computed again in the backward pass instead of being kept; one is not.
    """
    if count == 1:
        return jax.tree.map(lambda result: result[None], function(rows))
    blocks = jax.tree.map(lambda array: array.reshape(count, -1, *array.shape[1:]), rows)
    return jax.lax.map(jax.checkpoint(function, prevent_cse=False), blocks)


def map_rows(function: Callable[[Any], Any], rows: Any, count: int) -> Any:
    """Results of a row-wise function, computed in ``count`` blocks: [b, ...]."""
    return jax.tree.map(lambda stacked: stacked.reshape(-1, *stacked.shape[2:]), over_blocks(function, rows, count))
