"""History lookups against sets built in loops; the file against damage."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.history import HistoryVocabulary, build_for, load_or_build
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import DataError

N, R = 4, 2

rows_strategy = st.lists(
    st.tuples(st.integers(0, N - 1), st.integers(0, R - 1), st.integers(0, N - 1), st.integers(-5, 9)),
    min_size=1,
    max_size=40,
)


def make_dataset(rows):
    facts = np.unique(np.array([(t, s, r, o) for s, r, o, t in rows], np.int32), axis=0)[:, [1, 2, 3, 0]]
    names = [tuple(map(str, range(size))) for size in (N, R)]
    return Dataset(*names, facts, Split(5, 7), TimeAxis(0, 1, None))


def naive_history(dataset, time, window):
    """Triples of both directions that are visible at a time."""
    start = time - window if window else -(10**6)
    seen = [(s, r, o) for s, r, o, t in dataset.facts.tolist() if start <= t < time]
    return set(seen) | {(o, r + R, s) for s, r, o in seen}


def found_pairs(index, slices):
    rows, targets = index.sparse(slices)
    return set(zip(rows.tolist(), targets.tolist(), strict=True))


@settings(deadline=None)
@given(rows_strategy, st.integers(-7, 12), st.sampled_from([0, 1, 2, 50]))
def test_objects_are_those_seen_in_the_window(rows, time, window):
    dataset = make_dataset(rows)
    history = build_for(dataset, window=window)
    queries = [(s, r) for s in range(N) for r in range(2 * R)]
    subjects, relations = np.array(queries).T
    seen = naive_history(dataset, time, window)
    wanted = {(queries.index((s, r)), o) for s, r, o in seen}
    assert found_pairs(history.objects, history.object_slices(subjects, relations, time)) == wanted


@settings(deadline=None)
@given(rows_strategy, st.integers(-7, 12), st.sampled_from([0, 1, 2, 50]))
def test_relations_are_those_seen_in_the_window(rows, time, window):
    dataset = make_dataset(rows)
    history = build_for(dataset, window=window)
    queries = [(s, o) for s in range(N) for o in range(N)]
    subjects, objects = np.array(queries).T
    seen = naive_history(dataset, time, window)
    wanted = {(queries.index((s, o)), r) for s, r, o in seen}
    assert found_pairs(history.relations, history.relation_slices(subjects, objects, time)) == wanted


@settings(deadline=None, max_examples=30)
@given(rows_strategy, st.integers(-7, 12), st.integers(-7, 12), st.sampled_from([0, 1, 3]))
def test_a_horizon_hides_facts_and_does_not_stop_the_window(rows, time, horizon, window):
    dataset = make_dataset(rows)
    earlier = dataclasses.replace(dataset, facts=dataset.facts[dataset.facts[:, 3] < horizon])
    subjects, relations = np.array([(s, r) for s in range(N) for r in range(2 * R)]).T
    history = build_for(dataset, window=window)
    wanted = {(s * 2 * R + r, o) for s, r, o in naive_history(earlier, time, window)}
    found = history.object_slices(subjects, relations, time, horizon=horizon)
    assert found_pairs(history.objects, found) == wanted


def test_times_that_have_no_numbers_are_refused():
    entities = 200_000
    facts = np.array([(0, 0, 1, 0), (entities - 1, 0, entities - 2, 320_000_000)], np.int32)  # seconds of ten years
    with pytest.raises(DataError, match=r"320,000,002 time steps are too many .* coarser --granularity"):
        HistoryVocabulary.build(facts, num_entities=entities, num_relations=1, window=0)


@settings(deadline=None, max_examples=30)
@given(rows_strategy, st.lists(st.integers(-7, 12), min_size=1, max_size=6), st.sampled_from([0, 3]))
def test_each_query_may_have_its_own_time(rows, times, window):
    history = build_for(make_dataset(rows), window=window)
    zeros = np.zeros(len(times), np.int64)
    together = history.object_slices(zeros, zeros, np.array(times))
    alone = [history.object_slices(zeros[:1], zeros[:1], time)[0] for time in times]
    assert together.tolist() == np.array(alone).tolist()


def some_dataset(seed=0):
    rng = np.random.default_rng(seed)
    return make_dataset(rng.integers([0, 0, 0, -3], [N, R, N, 9], (60, 4)).tolist())


def test_without_a_window_each_triple_is_kept_once():
    dataset = some_dataset()
    history = build_for(dataset, window=0)
    assert len(history.objects.targets) == len(naive_history(dataset, 100, 0))
    assert len(build_for(dataset, window=3).objects.targets) == 2 * len(dataset.facts)


def test_rows_count_subject_relation_pairs():
    dataset = make_dataset([(0, 0, 1, 0), (0, 0, 2, 1), (0, 0, 1, 5)])
    assert {build_for(dataset, window=window).num_rows for window in (0, 2)} == {3}


@pytest.mark.parametrize("window", [0, 4])
def test_what_is_saved_is_loaded(tmp_path, window):
    dataset = some_dataset()
    history = build_for(dataset, window=window)
    history.save(tmp_path / "history.npz", dataset_hash=dataset.content_hash)
    loaded = HistoryVocabulary.load(tmp_path / "history.npz", dataset)
    assert loaded.window == window
    for name in ("objects", "relations"):
        for one, other in zip(vars(getattr(history, name)).values(), vars(getattr(loaded, name)).values(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_missing_stale_and_damaged_files_are_refused(tmp_path):
    dataset, path = some_dataset(), tmp_path / "history.npz"
    with pytest.raises(DataError, match="no history vocabulary"):
        HistoryVocabulary.load(path, dataset)
    build_for(dataset, window=0).save(path, dataset_hash=dataset.content_hash)
    with pytest.raises(DataError, match="made from another dataset"):
        HistoryVocabulary.load(path, some_dataset(1))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a zip file"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            HistoryVocabulary.load(path, dataset)


def test_other_versions_and_missing_arrays_are_refused(tmp_path):
    dataset, path = some_dataset(), tmp_path / "history.npz"
    np.savez(path, format_version=np.int32(99))
    with pytest.raises(DataError, match="another format version"):
        HistoryVocabulary.load(path, dataset)
    np.savez(path, format_version=np.int32(1))
    with pytest.raises(DataError, match="damaged"):
        HistoryVocabulary.load(path, dataset)


def test_load_or_build_says_why_it_built(tmp_path):
    dataset = some_dataset()
    assert load_or_build(dataset, window=3)[1] == "the dataset has no directory"
    dataset.save(tmp_path)
    dataset = dataclasses.replace(dataset, path=tmp_path)
    assert "no history vocabulary" in load_or_build(dataset, window=3)[1]
    build_for(dataset, window=3).save(tmp_path / "history.npz", dataset_hash=dataset.content_hash)
    history, reason = load_or_build(dataset, window=3)
    assert (history.window, reason) == (3, None)
    history, reason = load_or_build(dataset, window=0)
    assert history.window == 0
    assert "window 3, wanted 0" in reason
