"""Queries that differ in their answer alone are scored at once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geopol_tkg.evaluation.queries import MOST_ANSWERS, query_blocks

queries_strategy = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 9), st.just(5)), min_size=1, max_size=60
).map(lambda rows: np.array(rows, np.int32))


@given(queries_strategy, st.sampled_from([1, 2, 7, 64]))
def test_each_query_is_asked_once_of_its_subject_and_relation(queries, block_size):
    places = []
    for block in query_blocks(queries, block_size):
        assert block.subjects.dtype == block.relations.dtype == np.int32
        assert len(block.subjects) == len(block.relations) == block_size
        assert 0 < len(block.row) == len(block.place) <= MOST_ANSWERS * block_size
        asked = np.stack([block.subjects, block.relations], axis=1)[block.row]
        np.testing.assert_array_equal(asked, queries[block.place, :2])
        assert np.unique(asked, axis=0).shape[0] == np.unique(block.row).size == block.row.max() + 1
        places += block.place.tolist()
    assert sorted(places) == list(range(len(queries)))


def test_blocks_are_full_of_distinct_subjects_and_relations():
    queries = np.array([(s, r, o, 0) for s in range(5) for r in range(4) for o in range(3)], np.int32)
    assert [len(np.unique(block.row)) for block in query_blocks(queries, 8)] == [8, 8, 4]
    of_relations = [sorted(set(block.relations.tolist())) for block in query_blocks(queries, 10)]
    assert of_relations == [[0, 1], [2, 3]]


def test_many_answers_go_on_in_another_block():
    queries = np.array([(0, 0, o, 0) for o in range(11)] + [(1, 0, 0, 0)], np.int32)
    assert [block.row.tolist() for block in query_blocks(queries, 1)] == [[0] * 4, [0] * 4, [0] * 3, [0]]
    assert [block.row.tolist() for block in query_blocks(queries, 2)] == [[0] * 8, [0] * 3 + [1]]
