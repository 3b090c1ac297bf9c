"""The past of a time, looked up on a device: what :mod:`geopol_tkg.models.counts` scores from.

Axis letters: n entities, b queries, f features, x distinct relations, a answers (pairs of a relation and an object),
m meetings, c triples, t tiles of :data:`TILE` entries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from geopol_tkg.config import ModelConfig
from geopol_tkg.data.counts import SCALE, CountTables, Occurrences, Sorted

TILE = 16  # a query's entries are padded to a multiple of it, so that its own values are read once per tile
_NEVER = -(2**31)


class CountShape(NamedTuple):
    """How much a block of queries looks at, at most.

    Attributes:
        relations: distinct ones.
        answers: pairs ``(r, o)`` seen of its relations.
        meetings: entities met by its distinct subjects, each counted once per subject.
        tiles: of entries, one for each query and entity that its subject met.
        triples: objects seen of its queries' ``(s, r)``.
    """

    relations: int
    answers: int
    meetings: int
    tiles: int
    triples: int


def count_shape(subjects: np.ndarray, relations: np.ndarray, sizes: np.ndarray) -> CountShape:
    """What a block of queries looks at, by :meth:`CountSizes.of`, int32 [3, b]."""
    met, repeated, answers = sizes
    _, first_of_subject = np.unique(subjects, return_index=True)
    distinct, first_of_relation = np.unique(relations, return_index=True)
    return CountShape(
        relations=len(distinct) + 1,  # one for padded queries
        answers=int(answers[first_of_relation].sum()),
        meetings=int(met[first_of_subject].sum()),
        tiles=int((-(-met // TILE)).sum()),
        triples=int(repeated.sum()),
    )


class Past(NamedTuple):
    """What is counted, as of a time.

    Attributes:
        time: int32, facts before it count.
        now: int32, the time that is asked of, to which counts fade and ages reach.
        rates: [k + 1], by which counts halve per step.
        entities: [2, n, 2f], features of each entity as object of relations, and of their inverses.
    """

    tables: CountTables
    time: Array
    now: Array
    rates: Array
    entities: Array


class Popularity(NamedTuple):
    """Counts behind what is common, whoever asks.

    Attributes:
        entities: [2, n, 2f], of the past.
        relations: int32 [x], the distinct ones; r2 = padding.
        relation_of: int32 [b].
        answer_slices: int32 [x, 2], pairs seen of each relation.
        offsets: int32 [x], where a relation's answers begin.
        owners: int32 [a], which of the relations; x = padding.
        objects: int32 [a].
        answers: [a, f].
    """

    entities: Array
    relations: Array
    relation_of: Array
    answer_slices: Array
    offsets: Array
    owners: Array
    objects: Array
    answers: Array


class Entries(NamedTuple):
    """Counts between each query's subject and the entities that it met.

    Attributes:
        query: int32 [t]; b = padding.
        valid: bool [t, TILE].
        objects: int32 [t, TILE].
        answer: int32 [t, TILE], place among the answers; -1 = never seen with this relation.
        last_relation: int32 [t, TILE], of the last fact between the two.
        features: [t, TILE, 3f], of ``(s, r, o)``, and of the two in this direction and in the other.
        rows: [b, f], of ``(s, r)``.
        lengths, first_tiles: int32 [b], each query's entries and where they begin.
    """

    query: Array
    valid: Array
    objects: Array
    answer: Array
    last_relation: Array
    features: Array
    rows: Array
    lengths: Array
    first_tiles: Array


def past_of(tables: CountTables, time: Array, half_lives: tuple[float, ...], *, horizon: Array | None = None) -> Past:
    """The past of a time, ready for all of its queries; with a horizon, no later than that."""
    now, time = time, time if horizon is None else jnp.minimum(time, horizon)
    rates = jnp.asarray([1 / life for life in half_lives] + [0.0], jnp.float32)
    num_entities = len(tables.objects.starts) - 1
    past = Past(tables, time, now, rates, jnp.zeros(0))
    entities = _counts(past, tables.entities, jnp.arange(2 * num_entities))[0].reshape(2, num_entities, -1)
    return past._replace(entities=jnp.concatenate([entities, entities[::-1]], axis=-1))


def look_up(
    past: Past, subjects: Array, relations: Array, shape: CountShape, config: ModelConfig
) -> tuple[Popularity, Entries]:
    relations = jnp.where(subjects < config.num_entities, relations, 2 * config.num_relations)
    common = _popularity(past, relations, shape)
    size = len(subjects)
    distinct, subject_of = jnp.unique(subjects, size=size, fill_value=config.num_entities, return_inverse=True)
    slices = _seen(past.tables.objects, distinct, past.time)
    objects, last_relations, directions, offsets = _meetings(past, slices, shape)
    lengths = (slices[:, 1] - slices[:, 0])[subject_of]
    tiles = -(-lengths // TILE)
    query, tile, first_tiles = spread(jnp.stack([jnp.zeros_like(tiles), tiles], axis=1), shape.tiles)
    own = jnp.minimum(query, size - 1)
    rank = tile[:, None] * TILE + jnp.arange(TILE)
    valid = (query < size)[:, None] & (rank < lengths[own][:, None])
    place = jnp.where(valid, offsets[subject_of[own]][:, None] + rank, 0)
    is_inverse = (relations[own] >= config.num_relations)[:, None]
    row = _row_of(past.tables, subjects, relations)
    repeats = _repeats(past, row, first_tiles * TILE, shape).reshape(*place.shape, -1)
    return common, Entries(
        query=query,
        valid=valid,
        objects=objects[place],
        answer=answer_of(past.tables, common, common.relation_of[own][:, None], objects[place]),
        last_relation=last_relations[place],
        features=jnp.concatenate([repeats, directions[place + jnp.where(is_inverse, len(objects), 0)]], axis=-1),
        rows=_counts(past, past.tables.rows, row)[0],
        lengths=lengths,
        first_tiles=first_tiles,
    )


def _popularity(past: Past, relations: Array, shape: CountShape) -> Popularity:
    tables = past.tables
    padding = len(tables.answers.starts) - 1
    distinct, relation_of = jnp.unique(relations, size=shape.relations, fill_value=padding, return_inverse=True)
    slices = _seen(tables.answers, distinct, past.time)
    owners, pairs, offsets = spread(slices, shape.answers)
    known = jnp.where(owners < len(distinct), pairs, -1)
    return Popularity(
        entities=past.entities,
        relations=distinct,
        relation_of=relation_of,
        answer_slices=slices,
        offsets=offsets,
        owners=owners,
        objects=tables.answers.members.at[pairs].get(mode="clip"),
        answers=_counts(past, tables.answer_counts, known)[0],
    )


def _meetings(past: Past, slices: Array, shape: CountShape) -> tuple[Array, Array, Array, Array]:
    """Of all that was met: entity and last relation, int32 [m]; counts in both directions; where each slice begins.

    Counts are [2m, 2f]: those of facts from the subject come first, then the other way round.
    """
    tables = past.tables
    owners, meetings, offsets = spread(slices, shape.meetings)
    known = jnp.where(owners < len(slices), meetings, -1)
    outgoing, sent = _counts(past, tables.outgoing, known)
    incoming, received = _counts(past, tables.incoming, known)
    sent_at, received_at = (
        jnp.where(place >= 0, table.times.at[place].get(mode="clip"), _NEVER)
        for table, place in ((tables.outgoing, sent), (tables.incoming, received))
    )
    last_relations = jnp.where(
        received_at >= sent_at,
        tables.incoming_relations.at[received].get(mode="clip"),
        tables.outgoing_relations.at[sent].get(mode="clip"),
    )
    objects = tables.objects.members.at[meetings].get(mode="clip")
    both = jnp.concatenate([jnp.stack([outgoing, incoming]), jnp.stack([incoming, outgoing])], axis=-1)
    return objects, last_relations, both.reshape(2 * len(objects), -1), offsets


def _row_of(tables: CountTables, subjects: Array, relations: Array) -> Array:
    """Which row each ``(s, r)`` is: int32 [b]; -1 = none."""
    low, high = _bounds(tables.row_starts, subjects)
    found = _search(tables.row_relations, low, high, relations)
    is_there = (found < high) & (tables.row_relations.at[found].get(mode="clip") == relations)
    return jnp.where(is_there, found, -1)


def _repeats(past: Past, row: Array, first_entries: Array, shape: CountShape) -> Array:
    """Counts of ``(s, r, o)`` where its entry stands: [t * TILE, f]."""
    tables = past.tables
    slices = jnp.where(row[:, None] >= 0, _seen(tables.triples, row, past.time), 0)
    owners, triples, _ = spread(slices, shape.triples)
    is_real = owners < len(row)
    counts, _ = _counts(past, tables.triple_counts, jnp.where(is_real, triples, -1))
    entry = first_entries.at[owners].get(mode="clip") + tables.triple_ranks.at[triples].get(mode="clip")
    size = shape.tiles * TILE
    return jnp.zeros((size, counts.shape[1])).at[jnp.where(is_real, entry, size)].set(counts, mode="drop")


def answer_of(tables: CountTables, common: Popularity, slot: Array, objects: Array) -> Array:
    """Place of ``(r, o)`` among the answers, r the relation in a slot: int32, as objects; -1 = never seen."""
    ordered, numbers = tables.answers_by_object
    low, high = (part[slot] for part in _bounds(tables.answers.starts, common.relations))
    found = _search(ordered, low, high, objects)
    is_there = (found < high) & (ordered.at[found].get(mode="clip") == objects)
    number = numbers.at[found].get(mode="clip")
    first, end = common.answer_slices[slot, 0], common.answer_slices[slot, 1]
    return jnp.where(is_there & (number < end), common.offsets[slot] + number - first, -1)


def _seen(groups: Sorted, which: Array, time: Array) -> Array:
    """From and to of each group's members first seen before a time: int32 [g, 2]."""
    low, high = _bounds(groups.starts, which)
    return jnp.stack([low, _search(groups.first, low, high, time)], axis=1)


def _counts(past: Past, table: Occurrences, keys: Array) -> tuple[Array, Array]:
    """Features [x, f] of keys, zeros with nothing before the time; and the last occurrence, int32 [x], -1 = none."""
    low, high = _bounds(table.starts, keys)
    last = _search(table.times, low, high, past.time) - 1
    is_seen = (last >= low) & (keys >= 0)
    age = (past.now - table.times.at[last].get(mode="clip")).astype(jnp.float32)[:, None]
    counts = table.counts.at[last].get(mode="clip") * jnp.exp2(-age * past.rates)
    features = jnp.concatenate([jnp.log1p(SCALE * counts), jnp.log1p(age)], axis=1)
    return jnp.where(is_seen[:, None], features, 0), jnp.where(is_seen, last, -1)


def _bounds(starts: Array, which: Array) -> tuple[Array, Array]:
    """Where groups begin and end; nothing is in a group that does not exist."""
    return starts.at[which].get(mode="clip"), starts.at[which + 1].get(mode="clip")


def spread(slices: Array, capacity: int) -> tuple[Array, Array, Array]:
    """Owner (number of slices = padding) and position of everything in slices [g, 2], and where each begins."""
    lengths = slices[:, 1] - slices[:, 0]
    ends = jnp.cumsum(lengths)
    number = jnp.arange(capacity, dtype=jnp.int32)
    owner = jnp.searchsorted(ends, number, side="right").astype(jnp.int32)
    position = slices[:, 0].at[owner].get(mode="clip") + number - (ends - lengths).at[owner].get(mode="clip")
    return owner, position, ends - lengths


def _search(values: Array, low: Array, high: Array, wanted: Array) -> Array:
    """First position in each ``low .. high`` of ascending values that is not below the wanted one, else high."""
    return jax.lax.platform_dependent(
        values, *jnp.broadcast_arrays(low, high, wanted), cpu=_search_until_found, default=_search_all
    )


def _search_until_found(values: Array, low: Array, high: Array, wanted: Array) -> Array:
    """In as many halvings as the largest range needs."""

    def go_on(bounds: tuple[Array, Array]) -> Array:
        return jnp.any(bounds[0] < bounds[1])

    return jax.lax.while_loop(go_on, lambda bounds: _halved(values, wanted, *bounds), (low, high))[0]


def _search_all(values: Array, low: Array, high: Array, wanted: Array) -> Array:
    """In as many halvings as all values would need: a GPU would ask the host whether to go on after each."""
    halvings = len(values).bit_length()
    return jax.lax.fori_loop(0, halvings, lambda _, bounds: _halved(values, wanted, *bounds), (low, high))[0]


def _halved(values: Array, wanted: Array, low: Array, high: Array) -> tuple[Array, Array]:
    middle = (low + high) // 2
    below = (low < high) & (values.at[middle].get(mode="clip") < wanted)
    return jnp.where(below, middle + 1, low), jnp.where(below, high, jnp.minimum(middle, high))
