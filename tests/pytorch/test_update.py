"""New facts without a new file: an updated predictor is one that was converted later."""

import threading
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import LAST, N, R, make_checkpoint, make_config, random_arrays

pytest.importorskip("torch")
import torch

from geopol_tkg.convert import file_contents
from geopol_tkg.errors import DataError
from geopol_tkg.torch import TKGPredictor
from geopol_tkg.torch.facts import KnownFacts

CUT = 5
CONFIG = make_config(num_layers=1)
ALL = np.stack(np.meshgrid(np.arange(N), np.arange(2 * R)), axis=-1).reshape(-1, 2).T


@pytest.fixture
def early(pt_file):
    """The file's network with the facts before ``CUT`` only."""

    def make(dataset):
        predictor = TKGPredictor(pt_file, device="cpu")
        predictor.facts = known(dataset.facts[dataset.facts[:, 3] < CUT], predictor.config.history_length)
        return predictor

    return make


def known(facts, length):
    return KnownFacts.build(facts, num_entities=N, num_relations=R, history_length=length)


def labelled(dataset, facts):
    names = dataset.entities, dataset.relations, dataset.entities
    return [(*(n[i] for n, i in zip(names, f, strict=False)), dataset.time_axis.label(f[3])) for f in facts.tolist()]


def same(first, second):
    assert first.snapshot_times == second.snapshot_times
    assert first.time_index == second.time_index
    for name in ("triples", "counts", "last_seen"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for mine, theirs in zip(first.snapshots, second.snapshots, strict=True):
        assert sorted(mine.tolist()) == sorted(theirs.tolist())


@pytest.mark.parametrize("by_label", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_an_updated_predictor_is_one_that_was_converted_later(pt_file, early, dataset, by_label, at_once):
    predictor, later = early(dataset), TKGPredictor(pt_file, device="cpu")
    assert predictor.time_index == CUT
    new = dataset.facts[dataset.facts[:, 3] >= CUT]
    before = predictor.log_probabilities(*ALL)
    for part in [new] if at_once else np.array_split(new, 7):  # parts end within a timestamp
        found = predictor.update(labelled(dataset, part) if by_label else part)
        assert found == (len(part), 0, 0)
    same(predictor.facts, later.facts)
    assert predictor.time == later.time
    assert not np.allclose(before, predictor.log_probabilities(*ALL))
    np.testing.assert_allclose(predictor.log_probabilities(*ALL), later.log_probabilities(*ALL), atol=1e-5)


def test_an_update_moves_context_and_history(early, dataset):
    predictor = early(dataset)
    fact = ("COUNTRY L", "190", "COUNTRY K", datetime(1970, 1, 9, 13))
    assert predictor.update([fact]) == (1, 0, 0)
    assert predictor.time == "1970-01-10T00:00:00Z"
    assert predictor.facts.snapshots[-1].tolist() == [[11, 3, 10]]
    row = next(row for row in predictor.predict("COUNTRY L", "190", top=N) if row["object"] == "COUNTRY K")
    assert (row["seen_before"], row["last_seen"]) == (True, "1970-01-09T00:00:00Z")
    assert predictor.update([fact, fact]) == (0, 2, 0)
    assert predictor.time == "1970-01-10T00:00:00Z"


def test_unknown_labels_are_skipped_on_demand_but_time_goes_on(early, dataset):
    predictor = early(dataset)
    facts = [("ATLANTIS", "042", "COUNTRY A", "1970-01-11"), ("COUNTRY A", "042", "COUNTRY B", "1970-01-08")]
    with pytest.raises(DataError, match="entity 'ATLANTIS' is unknown"):
        predictor.update(facts)
    assert predictor.time_index == CUT
    assert predictor.update(facts, unknown="skip") == (1, 0, 1)
    assert (predictor.time_index, predictor.facts.snapshot_times[-1]) == (11, 7)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            [("COUNTRY A", "042", "COUNTRY B", "1970-01-04")],
            "a fact of 1970-01-04T00:00:00Z lies before the last known",
        ),
        ([("COUNTRY A", "042", "COUNTRY B")], r"is not \(subject, relation, object, time\)"),
        ([("COUNTRY A", "042", "COUNTRY B", "later")], "time 'later' is not an ISO time"),
        ([("COUNTRY A", "04", "COUNTRY B", "1970-01-08")], "relation '04' is unknown to the model; did you mean 042"),
        (np.array([[0, R, 1, 8]]), "relation id 4 is unknown"),
        (np.array([[0, 0, 1, 2**31]]), "too far ahead"),
    ],
)
def test_a_refused_update_changes_nothing(early, dataset, facts, message):
    predictor = early(dataset)
    before = predictor.facts
    with pytest.raises(DataError, match=message):
        predictor.update(facts)
    assert predictor.facts is before


def test_snapshots_are_evolved_once_until_an_update(early, dataset, monkeypatch):
    predictor, calls = early(dataset), []
    predictor.network.encoder.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        predictor.predict("COUNTRY A", "042")
        predictor.predict_relations("COUNTRY A", "COUNTRY B", at="1970-02-01")
    assert len(calls) == 1
    predictor.update([("COUNTRY A", "042", "COUNTRY B", "1970-01-08")])
    predictor.predict("COUNTRY A", "042")
    assert len(calls) == 2


def test_forecasts_in_threads_see_the_facts_before_or_after_an_update(early, dataset):
    predictor, wrong = early(dataset), []
    new = [dataset.facts[dataset.facts[:, 3] == time] for time in range(CUT, LAST + 1)]
    expected = {predictor.time_index: predictor.log_probabilities(*ALL)}
    for facts in new:
        predictor.update(facts)
        expected[predictor.time_index] = predictor.log_probabilities(*ALL)
    predictor, done = early(dataset), threading.Event()

    def ask():
        while not done.is_set():
            found = predictor.log_probabilities(*ALL)
            wrong.append(not any(np.allclose(found, scores, atol=1e-5) for scores in expected.values()))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for facts in new:
        predictor.update(facts)
    while len(wrong) < 10:
        pass
    done.set()
    for thread in threads:
        thread.join()
    assert not any(wrong)


facts_strategy = st.lists(st.tuples(*(st.integers(0, top) for top in (N - 1, R - 1, N - 1, 6))), max_size=25)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(facts_strategy, st.integers(0, 7), st.integers(0, 4))
def test_facts_extended_are_facts_built_at_once(rows, cut, length):
    facts = np.array(rows, np.int32).reshape(-1, 4)
    old, new = facts[facts[:, 3] < cut], facts[facts[:, 3] >= cut]
    whole = known(facts, length)
    same(known(old, length).extended(new), whole)
    for time in np.unique(new[:, 3]).tolist():
        assert not len(whole.new_among(new[new[:, 3] == time])) or time not in whole.snapshot_times[-1:]
    expected = {}
    for s, r, o, t in set(rows):
        expected.setdefault((s, r, o), []).append(t)
    found = zip(whole.triples.tolist(), whole.counts.tolist(), whole.last_seen.tolist(), strict=True)
    assert {tuple(t): (c, last) for t, c, last in found} == {k: (len(v), max(v)) for k, v in expected.items()}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(facts_strategy, st.none() | st.integers(0, 7))
def test_masks_are_those_of_a_loop(rows, since):
    facts = known(np.array(rows, np.int32).reshape(-1, 4), 2)
    subjects, second = ALL
    objects = np.zeros((ALL.shape[1], N), bool)
    relations = np.zeros((N * N, 2 * R), bool)
    for s, r, o, t in rows:
        if since is None or t >= since:
            objects[(subjects == s) & (second == r), o] = True
            objects[(subjects == o) & (second == r + R), s] = True
            relations[s * N + o, r] = relations[o * N + s, r + R] = True
    np.testing.assert_array_equal(facts.objects(subjects, second).mask(objects.shape, since=since), objects)
    pairs = np.divmod(np.arange(N * N), N)
    np.testing.assert_array_equal(facts.relations(*pairs).mask(relations.shape, since=since), relations)


def test_an_update_keeps_what_the_file_says_of_a_later_step(dataset, tmp_path):
    """A conversion for a later step than the next, and facts that arrive before it."""
    from geopol_tkg.convert import _tensors

    contents = file_contents(make_checkpoint(CONFIG, dataset, random_arrays(CONFIG)), dataset, time=LAST + 4)
    torch.save(_tensors(contents), tmp_path / "x.pt")
    predictor = TKGPredictor(tmp_path / "x.pt", device="cpu")
    assert predictor.time_index == LAST + 4
    predictor.update(np.array([[0, 1, 2, LAST + 1]]))
    assert predictor.time_index == LAST + 4
    predictor.facts = replace(predictor.facts, time_index=0)
    predictor.update(np.array([[0, 1, 2, LAST + 5]]))
    assert predictor.time_index == LAST + 6


def test_time_goes_on_before_the_first_index_too(early, dataset):
    """A file converted on older facts than the network was trained on has times below 0."""
    predictor = early(dataset)
    shifted = dataset.facts - np.array([0, 0, 0, 100], np.int32)
    predictor.facts = known(shifted, 3)
    assert predictor.time_index == LAST - 99
    for none in (np.zeros((0, 4), np.int64), []):
        predictor.update(none)
        assert predictor.time_index == LAST - 99
    predictor.update(np.array([[0, 1, 2, LAST - 95]]))
    assert predictor.time_index == LAST - 94
    assert predictor.facts.extended(shifted[-1:] + np.array([0, 0, 0, 20])).time_index == LAST - 79
