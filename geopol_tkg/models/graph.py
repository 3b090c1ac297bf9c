"""Snapshots on the device, windows cut from them, and relational graph convolutions over a window.

Both networks pass messages that are linear in (entity, relation), so a layer sums neighbours first
and multiplies once: ``sum_e msg(e) = (sum_e (a h_s + b r + c)) W``, one product of connected rows
instead of one of all edges. The two sums go by distinct neighbours, and by distinct relations, of each entity,
weighted by the number of edges, so that no array has a row for each edge.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from geopol_tkg.data.snapshots import Ragged, Snapshots
from geopol_tkg.models.layers import BatchNorm, DTypeLike, Moments, dot, leaky_relu, widened, xavier_relu


class WindowShape(NamedTuple):
    """Padded sizes of one snapshot; each distinct shape is compiled once."""

    neighbours: int
    incoming: int
    connected: int
    members: int


class GraphArrays(NamedTuple):
    """Device copy of :class:`~geopol_tkg.data.snapshots.Snapshots`: flat columns and row starts."""

    neighbour_entity: Array
    neighbour_slot: Array
    neighbour_count: Array
    neighbour_starts: Array
    incoming_relation: Array
    incoming_slot: Array
    incoming_count: Array
    incoming_starts: Array
    connected_entity: Array
    connected_degree: Array
    connected_starts: Array
    member_relation: Array
    member_entity: Array
    member_starts: Array

    @classmethod
    def put(cls, snapshots: Snapshots) -> "GraphArrays":
        """Copy to the default device."""
        parts = (snapshots.neighbours, snapshots.incoming, snapshots.connected, snapshots.members)
        arrays = [array for part in parts for array in (*part.columns, part.starts)]
        return cls(*jax.device_put(arrays))


class Sums(NamedTuple):
    """Which rows of a table are summed, and how often, for each connected entity."""

    row: Array  # int32 [p]
    slot: Array  # int32 [p], ascending; a = padding
    count: Array  # float32 [p], edges; 0 for padding


class Snapshot(NamedTuple):
    """One padded snapshot. Padding points past the end of what it indexes, and is dropped."""

    neighbours: Sums  # of entities
    incoming: Sums  # of relations
    entity: Array  # int32 [a], ascending; n = padding
    degree: Array  # float32 [a], 1 for padding
    member_relation: Array  # int32 [m], ascending; r = padding
    member_entity: Array  # int32 [m]


def window_shape(snapshots: Snapshots, ordinals: np.ndarray) -> WindowShape:
    """Smallest shape that holds the snapshots with these ordinals (-1 is padding)."""
    used = ordinals[ordinals >= 0]

    def largest(part: Ragged) -> int:
        return int(part.lengths[used].max(initial=1))

    parts = (snapshots.neighbours, snapshots.incoming, snapshots.connected, snapshots.members)
    return WindowShape(*map(largest, parts))


def cut_snapshot(
    graph: GraphArrays, ordinal: Array, shape: WindowShape, *, num_entities: int, num_relations: int
) -> Snapshot:
    """Snapshot number ``ordinal`` in the given shape; -1 gives one without any edge."""

    def cut(column: Array, starts: Array, size: int, padding: int | float) -> Array:
        row = jnp.maximum(ordinal, 0)
        values = jax.lax.dynamic_slice(column, (starts[row],), (size,))
        length = jnp.where(ordinal >= 0, starts[row + 1] - starts[row], 0)
        return jnp.where(jnp.arange(size) < length, values, jnp.asarray(padding, column.dtype))

    neighbour = (graph.neighbour_starts, shape.neighbours)
    incoming = (graph.incoming_starts, shape.incoming)
    connected = (graph.connected_starts, shape.connected)
    member = (graph.member_starts, shape.members)
    return Snapshot(
        neighbours=Sums(
            cut(graph.neighbour_entity, *neighbour, 0),
            cut(graph.neighbour_slot, *neighbour, shape.connected),
            cut(graph.neighbour_count, *neighbour, 0),
        ),
        incoming=Sums(
            cut(graph.incoming_relation, *incoming, 0),
            cut(graph.incoming_slot, *incoming, shape.connected),
            cut(graph.incoming_count, *incoming, 0),
        ),
        entity=cut(graph.connected_entity, *connected, num_entities),
        degree=cut(graph.connected_degree, *connected, 1),
        member_relation=cut(graph.member_relation, *member, num_relations),
        member_entity=cut(graph.member_entity, *member, 0),
    )


def connected_entities(graph: GraphArrays, ordinals: Array, shape: WindowShape, *, num_entities: int) -> Array:
    """Entities with an edge in any of the snapshots, with repeats: int32 [k, a]; n = padding."""
    sizes = {"num_entities": num_entities, "num_relations": 0}
    return jax.vmap(lambda ordinal: cut_snapshot(graph, ordinal, shape, **sizes).entity)(ordinals)


def renumbered(snapshot: Snapshot, rows: Array, *, num_entities: int) -> Snapshot:
    """A snapshot whose entities are numbered by where they stand in ``rows``, ascending int32 [x]."""

    def number(entities: Array) -> Array:
        return jnp.searchsorted(rows, entities).astype(jnp.int32)

    return snapshot._replace(
        neighbours=snapshot.neighbours._replace(row=number(snapshot.neighbours.row)),
        entity=jnp.where(snapshot.entity < num_entities, number(snapshot.entity), len(rows)),
        member_entity=number(snapshot.member_entity),
    )


def relation_context(snapshot: Snapshot, entities: Array, num_relations: int, dtype: DTypeLike) -> Array:
    """Mean of the entities [n, d] that are members of each relation: [r, d], zero where there are none.

    An inverse relation has the same members, so the same context.
    """
    rows = _rounded_rows(entities, snapshot.member_entity, dtype)
    rows = jnp.concatenate([rows, jnp.ones((len(rows), 1), rows.dtype)], axis=1)
    sums = jax.ops.segment_sum(rows, snapshot.member_relation, num_relations, indices_are_sorted=True)
    return sums[:, :-1] / jnp.maximum(sums[:, -1:], 1)


class GraphConvolution(nnx.Module):
    """Relational graph convolution of RE-GCN: the message is ``(h_s + r) W`` (CompGCN addition).

    ``x'_o = lrelu(mean_e msg_e + loop(x_o))``, with one loop weight for connected entities and one
    for isolated ones.
    """

    def __init__(self, dim: int, *, key: Array) -> None:
        message_key, loop_key, isolated_key = jax.random.split(key, 3)
        self.message_weight = nnx.Param(xavier_relu(message_key, (dim, dim)))
        self.loop_weight = nnx.Param(xavier_relu(loop_key, (dim, dim)))
        self.isolated_weight = nnx.Param(xavier_relu(isolated_key, (dim, dim)))

    def _mean_message(
        self, snapshot: Snapshot, x: Array, relations: Array, *, training: bool, dtype: DTypeLike
    ) -> tuple[Array, Moments | None]:
        """Mean over incoming edges of what the message weight multiplies: [a, d]."""
        del training
        return _mean_over_edges(snapshot, x, relations, dtype), None

    def __call__(
        self, snapshot: Snapshot, x: Array, relations: Array, *, training: bool, dtype: DTypeLike
    ) -> tuple[Array, Moments | None]:
        """Entities [n, d] after one layer, and the moments of the messages where they are normalised."""
        mean, moments = self._mean_message(snapshot, x, relations, training=training, dtype=dtype)
        own = x.at[snapshot.entity].get(mode="fill", fill_value=0)
        connected = dot(mean, self.message_weight[...], dtype) + dot(own, self.loop_weight[...], dtype)
        isolated = dot(x, self.isolated_weight[...], dtype)
        merged = isolated.at[snapshot.entity].set(connected, mode="drop", indices_are_sorted=True)
        return leaky_relu(merged), moments


class NormalisedGraphConvolution(GraphConvolution):
    """Relational graph convolution of TiRGN: the message is ``(a BN(h_s) + b BN(r) + c) W``.

    The two batch-norm channels take their statistics over all edges and dimensions of a snapshot;
    a, b, c are the 1x1 convolution.
    """

    def __init__(self, dim: int, *, key: Array) -> None:
        key, mix_key, bias_key = jax.random.split(key, 3)
        super().__init__(dim, key=key)
        self.norm = BatchNorm(2)
        self.mix_weight = nnx.Param(jax.random.uniform(mix_key, (2,), minval=-1, maxval=1) * 2**-0.5)
        self.mix_bias = nnx.Param(jax.random.uniform(bias_key, (1,), minval=-1, maxval=1) * 2**-0.5)

    def _mean_message(
        self, snapshot: Snapshot, x: Array, relations: Array, *, training: bool, dtype: DTypeLike
    ) -> tuple[Array, Moments | None]:
        moments = _edge_moments(snapshot, x, relations) if training else None
        factor, offset = self.norm.affine(moments)
        weight = self.mix_weight[...] * factor
        constant = jnp.sum(self.mix_weight[...] * offset) + self.mix_bias[0]
        sums = _mean_over_edges(snapshot, x * weight[0], relations * weight[1], dtype)
        return sums + constant, moments


def _rounded_rows(table: Array, index: Array, dtype: DTypeLike) -> Array:
    """Rows [e, d] rounded to a dtype and widened. Taken before they are rounded, so that gradients sum in float32."""
    return table[index].astype(dtype).astype(widened(dtype))


def _mean_over_edges(snapshot: Snapshot, x: Array, relations: Array, dtype: DTypeLike) -> Array:
    """Mean of ``x_s + r`` over the edges into each connected entity, widened: [a, d]."""

    def summed(table: Array, of: Sums) -> Array:
        rows = _rounded_rows(table, of.row, dtype) * of.count[:, None]
        return jax.ops.segment_sum(rows, of.slot, len(snapshot.entity), indices_are_sorted=True)

    return (summed(x, snapshot.neighbours) + summed(relations, snapshot.incoming)) / snapshot.degree[:, None]


def _edge_moments(snapshot: Snapshot, x: Array, relations: Array) -> Moments:
    """Moments of the channels (h_s, r) over edges and dimensions, without an [e, d] array."""
    num_edges = jnp.sum(snapshot.neighbours.count)
    divisor = jnp.maximum(num_edges, 1)

    def per_channel(table: Array, of: Sums) -> tuple[Array, Array]:
        mean = jnp.sum(jnp.mean(table, axis=-1)[of.row] * of.count) / divisor
        square = jnp.sum(jnp.mean(table * table, axis=-1)[of.row] * of.count) / divisor
        return mean, jnp.maximum(square - mean * mean, 0)

    entity_mean, entity_var = per_channel(x, snapshot.neighbours)
    relation_mean, relation_var = per_channel(relations, snapshot.incoming)
    return Moments(
        jnp.stack([entity_mean, relation_mean]),
        jnp.stack([entity_var, relation_var]),
        num_edges * x.shape[-1],
    )
