"""Tables of counts against loops over the facts."""

from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from geopol_tkg.data.counts import CountSizes, CountTables

N, R = 5, 2  # entity 4 never occurs
HALF_LIVES = (0.5, 3.0)

facts_strategy = st.sets(
    st.tuples(st.integers(0, N - 2), st.integers(0, R - 1), st.integers(0, N - 2), st.sampled_from([-7, -6, -2, 0, 9])),
    min_size=1,
    max_size=40,
)


def build(facts):
    rows = np.array(sorted(facts, key=lambda fact: fact[3]), np.int32)
    return CountTables.build(rows, num_entities=N, num_relations=R, half_lives=HALF_LIVES)


def both_directions(facts):
    return [*facts, *((o, r + R, s, t) for s, r, o, t in facts)]


def times_of(facts, key):
    """The times of all facts in both directions by a key of ``(s, r, o)``, None keys left out."""
    found = defaultdict(list)
    for s, r, o, t in both_directions(facts):
        if (name := key(s, r, o)) is not None:
            found[name].append(t)
    return found


def first_seen(facts, group, member):
    """Members of each group by the time they were first seen, then by number."""
    first = defaultdict(dict)
    for s, r, o, t in both_directions(facts):
        times = first[group(s, r, o)]
        times[member(s, r, o)] = min(t, times.get(member(s, r, o), t))
    return {name: sorted((t, number) for number, t in times.items()) for name, times in first.items()}


def groups_of(part):
    """What a ``Sorted`` holds: lists of (first time, member)."""
    return [
        list(zip(part.first[low:high].tolist(), part.members[low:high].tolist(), strict=True))
        for low, high in zip(part.starts[:-1], part.starts[1:], strict=True)
    ]


def rows_of(tables):
    """The ``(s, r)`` of each row."""
    return [
        (s, int(r))
        for s in range(N)
        for r in tables.row_relations[tables.row_starts[s] : tables.row_starts[s + 1]].tolist()
    ]


def assert_counts(table, names, times_of_names):
    """Each key's times, and just after each of them the decayed counts and the plain one, by the definition."""
    assert len(table.starts) == len(names) + 1
    assert times_of_names.keys() <= set(names)
    assert table.starts[-1] == len(table.times) == len(table.counts)
    for key, name in enumerate(names):
        own = slice(table.starts[key], table.starts[key + 1])
        times = times_of_names.get(name, [])
        assert table.times[own].tolist() == sorted(set(times)), name
        for now, counts in zip(table.times[own].tolist(), table.counts[own], strict=True):
            ages = [now - t for t in times if t <= now]
            wanted = [sum(2 ** (-age / life) for age in ages) for life in HALF_LIVES]
            np.testing.assert_allclose(counts, [*wanted, len(ages)], rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(facts_strategy)
def test_members_stand_in_the_order_in_which_they_were_first_seen(facts):
    tables = build(facts)
    rows = rows_of(tables)
    assert rows == sorted({(s, r) for s, r, _, _ in both_directions(facts)})
    for part, names, group in (
        (tables.objects, range(N), lambda s, r, o: s),
        (tables.triples, rows, lambda s, r, o: (s, r)),
        (tables.answers, range(2 * R), lambda s, r, o: r),
    ):
        wanted = first_seen(facts, group, lambda s, r, o: o)
        assert groups_of(part) == [wanted.get(name, []) for name in names]


@settings(deadline=None, max_examples=60)
@given(facts_strategy)
def test_counts_just_after_each_occurrence(facts):
    tables = build(facts)
    meetings, triples, answers = (
        [(owner, member) for owner, members in zip(owners, groups_of(part), strict=True) for _, member in members]
        for part, owners in (
            (tables.objects, range(N)),
            (tables.triples, rows_of(tables)),
            (tables.answers, range(2 * R)),
        )
    )
    forward = lambda s, r, o: (s, o) if r < R else None  # noqa: E731
    inverse = lambda s, r, o: (s, o) if r >= R else None  # noqa: E731
    assert_counts(tables.outgoing, meetings, times_of(facts, forward))
    assert_counts(tables.incoming, meetings, times_of(facts, inverse))
    assert_counts(tables.rows, rows_of(tables), times_of(facts, lambda s, r, o: (s, r)))
    assert_counts(tables.triple_counts, triples, times_of(facts, lambda s, r, o: ((s, r), o)))
    assert_counts(tables.answer_counts, answers, times_of(facts, lambda s, r, o: (r, o)))
    assert_counts(
        tables.entities,
        [(is_inverse, o) for is_inverse in (False, True) for o in range(N)],
        times_of(facts, lambda s, r, o: (r >= R, o)),
    )


@settings(deadline=None, max_examples=60)
@given(facts_strategy)
def test_triples_know_their_meeting_and_answers_their_object(facts):
    tables = build(facts)
    for row, (s, _) in enumerate(rows_of(tables)):
        met = [member for _, member in groups_of(tables.objects)[s]]
        for i in range(tables.triples.starts[row], tables.triples.starts[row + 1]):
            assert met[tables.triple_ranks[i]] == tables.triples.members[i]
    objects, numbers = tables.answers_by_object
    assert sorted(numbers.tolist()) == list(range(len(tables.answers.members)))
    np.testing.assert_array_equal(tables.answers.members[numbers], objects)
    for low, high in zip(tables.answers.starts[:-1], tables.answers.starts[1:], strict=True):
        assert sorted(numbers[low:high].tolist()) == list(range(low, high))
        assert (np.diff(objects[low:high]) > 0).all()


@settings(deadline=None, max_examples=60)
@given(facts_strategy)
def test_the_last_relation_is_the_largest_of_its_time(facts):
    tables = build(facts)
    met = [(s, o) for s, members in enumerate(groups_of(tables.objects)) for _, o in members]
    for table, relations, is_inverse in (
        (tables.outgoing, tables.outgoing_relations, False),
        (tables.incoming, tables.incoming_relations, True),
    ):
        assert len(relations) == len(table.times)
        for meeting, pair in enumerate(met):
            for i in range(table.starts[meeting], table.starts[meeting + 1]):
                there = [
                    r
                    for s, r, o, t in both_directions(facts)
                    if (s, o) == pair and t == table.times[i] and (r >= R) == is_inverse
                ]
                assert relations[i] == max(there)


@settings(deadline=None, max_examples=60)
@given(facts_strategy, st.integers(-9, 12))
def test_sizes_are_what_is_found_before_a_time(facts, time):
    sizes = CountSizes(build(facts), num_relations=R)
    queries = np.array([(s, r) for s in range(N) for r in range(2 * R)])
    seen = {(s, r, o) for s, r, o, t in both_directions(facts) if t < time}
    wanted = [
        (
            len({o for a, _, o in seen if a == s}),
            len({o for a, b, o in seen if (a, b) == (s, r)}),
            len({o for _, b, o in seen if b == r}),
        )
        for s, r in queries.tolist()
    ]
    assert sizes.of(*queries.T, time).T.tolist() == [list(row) for row in wanted]


def test_each_query_may_have_its_own_time():
    rng = np.random.default_rng(0)
    facts = set(map(tuple, rng.integers([0, 0, 0, -4], [N - 1, R, N - 1, 6], (60, 4)).tolist()))
    sizes = CountSizes(build(facts), num_relations=R)
    subjects, relations, times = rng.integers([0, 0, -6], [N, 2 * R, 9], (50, 3)).T
    together = sizes.of(subjects, relations, times)
    alone = [sizes.of(subjects[i : i + 1], relations[i : i + 1], times[i]) for i in range(50)]
    np.testing.assert_array_equal(together, np.concatenate(alone, axis=1))
    assert sizes.of(subjects[:0], relations[:0], 3).shape == (3, 0)


def test_many_facts_of_one_time_are_one_occurrence():
    tables = build({(0, 0, 1, 3), (0, 1, 1, 3), (1, 0, 0, 3)})
    assert tables.outgoing.times.tolist() == [3, 3]
    assert tables.outgoing.counts[:, -1].tolist() == [2, 1]
    assert tables.incoming.counts[:, -1].tolist() == [1, 2]
    assert tables.outgoing_relations.tolist() == [1, 0]
    assert tables.incoming_relations.tolist() == [R, R + 1]


def test_old_counts_fade_and_plain_ones_stay():
    tables = build({(0, 0, 1, t) for t in (-1000, 0, 3)})
    np.testing.assert_allclose(tables.triple_counts.counts[:3], [[1, 1, 1], [1, 1, 2], [1 + 2**-6, 1.5, 3]], rtol=1e-6)
