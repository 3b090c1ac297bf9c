"""Softmax over more candidates than can be scored: a sample stands for them, and history is summed exactly."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

EXCLUDED = -1e30  # a logit whose probability is exactly zero


class Sample(NamedTuple):
    """Candidates drawn to stand for all, one from each of m strata.

    Attributes:
        rows: int32 [m], where they stand among the candidates at hand.
        log_size: [m], log of each one's stratum: minus the log-probability that it was drawn.
        number: where an entity stands among the candidates at hand.
    """

    rows: Array
    log_size: Array
    number: Callable[[Array], Array]

    def corrected(self, logits: Array, targets: Array) -> Array:
        """Logits [b, m] plus the correction; a query's own target [b] does not stand for others."""
        return jnp.where(self.rows == targets[:, None], EXCLUDED, logits + self.log_size)


def draw(num_candidates: int, count: int, *, key: Array) -> tuple[Array, Array]:
    """One candidate from each of ``count`` strata of neighbouring ids: int32 [m], log of stratum sizes [m].

    The sum of ``size * exp(logit)`` over the sample has the full sum as its mean, and is the full sum
    where every candidate is a stratum of its own.
    """
    bounds = np.arange(count + 1, dtype=np.int64) * num_candidates // count
    sizes = np.diff(bounds).astype(np.int32)
    drawn = bounds[:-1].astype(np.int32) + jax.random.randint(key, (count,), 0, sizes)
    return drawn, jnp.log(jnp.asarray(sizes, jnp.float32))


def sampled_log_probability(logits: Array) -> Array:
    """Log-probability [b] of the targets, whose logits come first in [b, 1 + m]."""
    return logits[:, 0] - jax.nn.logsumexp(logits, axis=1)


class Entries(NamedTuple):
    """What a block's queries have seen, one entry each.

    Attributes:
        query: int32 [e], ascending; b = padding.
        target: int32 [e].
        first: bool [e], whether it is the first entry of its query and target, and no padding.
        num_queries: b.
    """

    query: Array
    target: Array
    first: Array
    num_queries: int


def entries_of(targets: Array, slices: Array, *, capacity: int, previous: Array | None = None) -> Entries:
    """Entries of the slices int32 [b, 2] of ``targets``; without ``previous`` all but padding count as first."""
    lengths = slices[:, 1] - slices[:, 0]
    ends = jnp.cumsum(lengths)
    number = jnp.arange(capacity)
    query = jnp.searchsorted(ends, number, side="right")
    start = slices[:, 0].at[query].get(mode="clip")
    position = start + number - (ends - lengths).at[query].get(mode="clip")
    first = query < len(slices)
    if previous is not None:
        first &= previous.at[position].get(mode="clip") < start
    return Entries(query, targets.at[position].get(mode="clip"), first, len(slices))


def history_log_probability(
    vectors: Array, candidates: Array, targets: Array, entries: Entries, *, num_unseen_of: int
) -> tuple[Array, Array]:
    """Log-probability [b] of the targets in the history distribution, and which queries have seen nothing.

    Seen candidates have their logits; of ``num_unseen_of`` candidates in all, the others have logit 0
    (``multiply``). With 0, the others have no probability (``exclude``). No [b, candidates] array exists.
    """
    query, target, first, size = entries
    clipped = jnp.minimum(query, size - 1)
    logits = jnp.sum(vectors[clipped] * candidates[target], axis=1)
    logits = jnp.where(first, logits, EXCLUDED)
    largest = jax.ops.segment_max(jax.lax.stop_gradient(logits), query, size, indices_are_sorted=True)
    largest = jnp.maximum(largest, 0 if num_unseen_of else EXCLUDED)
    terms = jnp.where(first, jnp.exp(logits - largest[clipped]), 0)
    counted = jax.ops.segment_sum(jnp.stack([terms, first], axis=1), query, size, indices_are_sorted=True)
    total, seen = counted.T
    if num_unseen_of:
        total += (num_unseen_of - seen) * jnp.exp(-largest)
    is_target = first & (target == targets[clipped])
    is_seen = jax.ops.segment_max(is_target.astype(jnp.int32), query, size, indices_are_sorted=True) > 0
    own = jnp.sum(vectors * candidates[targets], axis=1)
    logit = jnp.where(is_seen, own, 0 if num_unseen_of else EXCLUDED)
    empty = seen == 0
    return logit - largest - jnp.log(jnp.where(total > 0, total, 1)), empty
