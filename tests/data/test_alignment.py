"""A dataset through another one's labels and clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopol_tkg.data.alignment import Alignment, align
from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import DataError

HOUR = 3600


def make_dataset(entities="ABC", relations="pq", facts=((0, 0, 1, 0), (2, 1, 0, 3), (1, 0, 2, 5)), **changes):
    values = {
        "split": Split(3, 5),
        "time_axis": TimeAxis(0, HOUR, "1h"),
        "entity_kind": "name",
        "relation_kind": "event-code",
    }
    return Dataset(tuple(entities), tuple(relations), np.array(facts, np.int32), **values | changes)


def align_to(dataset, reference):
    return align(
        dataset,
        entity_to_id=reference.entity_to_id,
        relation_to_id=reference.relation_to_id,
        time_axis=reference.time_axis,
        entity_kind=reference.entity_kind,
        relation_kind=reference.relation_kind,
    )


def labelled(dataset):
    names, axis = (dataset.entities, dataset.relations), dataset.time_axis
    return [(names[0][s], names[1][r], names[0][o], axis.label(int(t))) for s, r, o, t in dataset.facts]


def test_golden():
    newer = make_dataset(
        "CXA", "qp", [(0, 0, 2, 0), (0, 1, 1, 1), (2, 1, 0, 4)], time_axis=TimeAxis(7 * HOUR, HOUR, "1h")
    )
    found = align_to(newer, make_dataset())
    assert found.entity_ids.tolist() == [2, -1, 0]
    assert found.relation_ids.tolist() == [1, 0]
    assert (found.time_offset, found.num_unknown_entities, found.num_unknown_relations) == (7, 1, 0)
    assert found.known.facts.tolist() == [[2, 1, 0, 7], [0, 0, 2, 11]]
    assert found.known.entities == ("A", "B", "C")
    assert found.known.split == Split(10, 12)
    assert found.known.path is None
    assert found.dataset is newer
    assert not found.is_identity


def test_identity():
    dataset = make_dataset()
    assert Alignment.identity(dataset).is_identity
    found = align_to(dataset, dataset)
    np.testing.assert_array_equal(found.known.facts, dataset.facts)
    np.testing.assert_array_equal(found.entity_ids, Alignment.identity(dataset).entity_ids)


facts = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 4), st.integers(0, 9)), min_size=1, unique=True
)


@given(facts, st.permutations("ABCDE"), st.permutations("pqr"), st.integers(-5, 50))
def test_known_facts_say_the_same_whatever_the_order_of_labels(rows, entities, relations, hours):
    rows = sorted(rows, key=lambda row: (row[3], *row))
    dataset = make_dataset(entities, relations, rows, time_axis=TimeAxis(hours * HOUR, HOUR, "1h"))
    wanted = {row for row in labelled(dataset) if {row[0], row[2]} <= set("ABC") and row[1] in "pq"}
    if not wanted:
        with pytest.raises(DataError, match="no fact among labels that the model knows"):
            align_to(dataset, make_dataset())
        return
    known = align_to(dataset, make_dataset()).known
    assert set(labelled(known)) == wanted
    order = known.facts[:, [3, 0, 1, 2]].tolist()
    assert order == sorted(order)
    assert known.facts.dtype == np.int32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entity_kind": "code"}, "entity labels are of kind code, the checkpoint's name: ingest with --entity name"),
        ({"relation_kind": "given"}, "relation labels are of kind given, the checkpoint's event-code"),
        ({"time_axis": TimeAxis(0, 2 * HOUR, "2h")}, "granularity 2h differs from the checkpoint's 1h"),
        ({"time_axis": TimeAxis(0, HOUR, None)}, "granularity 3600 differs from the checkpoint's 1h"),
        ({"time_axis": TimeAxis(60, HOUR, "1h")}, "they do not align"),
    ],
)
def test_other_kinds_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        align_to(make_dataset(**changes), make_dataset())
    if "entity_kind" in changes:
        with pytest.raises(DataError, match="give a dataset of the same source"):
            align_to(make_dataset(), make_dataset(entity_kind="given"))
