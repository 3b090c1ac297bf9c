"""Facts of each timestamp as the sums that graph layers take."""

from collections import Counter

import numpy as np
import pytest

from geopol_tkg.data.snapshots import Snapshots

NUM_RELATIONS = 3
FACTS = np.array(
    [
        (4, 0, 1, 2),
        (1, 0, 4, 2),  # and the other way round
        (4, 2, 1, 2),  # the same two under another relation
        (4, 1, 4, 2),  # a loop counts twice, as every fact does
        (0, 2, 1, 9),  # the only one of its time
    ],
    np.int32,
)


def rows(part, row):
    """The columns of one snapshot, as tuples."""
    start, end = part.starts[row : row + 2]
    return list(zip(*(column[start:end].tolist() for column in part.columns), strict=True))


def counted(facts, column):
    """How often each entity is reached from each value of a column, over both directions: a plain reading."""
    both = [(s, r, o) for s, r, o, _ in facts] + [(o, r + NUM_RELATIONS, s) for s, r, o, _ in facts]
    return Counter((edge[2], edge[column]) for edge in both)


def assert_sums(snapshots, row, facts):
    connected = rows(snapshots.connected, row)
    degrees = Counter([o for *_, o, _ in facts] + [s for s, *_ in facts])
    assert connected == sorted(degrees.items())
    for part, column in ((snapshots.neighbours, 0), (snapshots.incoming, 1)):
        found = rows(part, row)
        slots = [slot for _, slot, _ in found]
        assert slots == sorted(slots)
        assert len(found) == len({found_row[:2] for found_row in found})
        assert {(connected[slot][0], value): count for value, slot, count in found} == counted(facts, column)


@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_repeated_pairs_are_one_row_with_their_count(model_type):
    snapshots = Snapshots.build(FACTS, num_relations=NUM_RELATIONS, model_type=model_type)
    assert snapshots.times.tolist() == [2, 9]
    assert rows(snapshots.neighbours, 0) == [(4, 0, 3), (1, 1, 3), (4, 1, 2)]
    assert rows(snapshots.neighbours, 1) == [(1, 0, 1), (0, 1, 1)]
    for row, time in enumerate((2, 9)):
        assert_sums(snapshots, row, FACTS[FACTS[:, 3] == time].tolist())


@pytest.mark.parametrize(("model_type", "members"), [("regcn", [(0, 0), (0, 1)]), ("tirgn", [(0, 0)])])
def test_members_of_a_relation(model_type, members):
    facts = np.array([(0, 0, 1, 5), (0, 0, 1, 5)], np.int32)
    snapshots = Snapshots.build(facts, num_relations=NUM_RELATIONS, model_type=model_type)
    assert rows(snapshots.members, 0) == members


def test_any_facts_sum_as_a_plain_reading():
    random = np.random.default_rng(7)
    facts = np.stack([random.integers(0, size, 400) for size in (9, NUM_RELATIONS, 9, 6)], 1).astype(np.int32)
    snapshots = Snapshots.build(facts, num_relations=NUM_RELATIONS, model_type="regcn")
    for row, time in enumerate(snapshots.times):
        assert_sums(snapshots, row, facts[facts[:, 3] == time].tolist())


def test_no_facts_are_no_snapshots():
    snapshots = Snapshots.build(np.zeros((0, 4), np.int32), num_relations=NUM_RELATIONS, model_type="regcn")
    assert len(snapshots.times) == 0
    assert snapshots.before(3, 2).tolist() == [-1, -1]
