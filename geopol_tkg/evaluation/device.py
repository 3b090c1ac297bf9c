"""What :mod:`geopol_tkg.evaluation.ranking` counts, of JAX scores on their device."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from geopol_tkg.evaluation.calibration import first_candidates

_CHUNK = 64  # queries compared at once


@jax.jit
def count(
    scores: Array, row: Array, targets: Array, excluded: Array, candidates: Array, size: Array, temperature: Any
) -> tuple[Array, ...]:
    """Candidates above and equal to the target, and its score: [q]; whether a row has a NaN: [b].

    With a temperature also what :func:`first_candidates` finds, of rows.

    Args:
        scores: [b, n].
        row, targets: int [q], of each query; padded behind ``size`` queries.
        excluded, candidates: int [e], query and entity of pairs that are filtered out; query q is padding.
    """
    wanted = scores[row, targets]
    chunk = min(_CHUNK, len(row))

    def compare(step: Array, counts: Array) -> Array:
        start = jnp.minimum(step * chunk, len(row) - chunk)
        part = scores[jax.lax.dynamic_slice(row, (start,), (chunk,))]
        limit = jax.lax.dynamic_slice(wanted, (start,), (chunk,))[:, None]
        found = jnp.stack([(part > limit).sum(axis=1), (part == limit).sum(axis=1)])
        return jax.lax.dynamic_update_slice(counts, found, (0, start))

    counts = jax.lax.fori_loop(0, -(-size // chunk), compare, jnp.zeros((2, len(row)), int))
    query = jnp.minimum(excluded, len(row) - 1)
    filtered, limit = scores[row[query], candidates], wanted[query]
    others = jnp.stack([filtered > limit, filtered == limit], axis=1).astype(int)
    greater, equal = counts - jax.ops.segment_sum(others, excluded, len(row)).T
    counted = greater, equal - 1, wanted, jnp.isnan(scores).any(axis=1)
    return counted if temperature is None else (*counted, *first_candidates(scores, temperature))
