"""Paired statistics: golden values by hand, and the cases without any spread."""

import dataclasses

import numpy as np
import pytest

from geopol_tkg.errors import DataError
from geopol_tkg.evaluation.compare import gate, paired_difference
from geopol_tkg.evaluation.results import Ranks


def make_ranks(rank, time):
    size = len(rank)
    ids = np.arange(size, dtype=np.int32)
    return Ranks(
        *(ids, ids % 4, ids, np.array(time, np.int32), np.array(rank, float), np.zeros(size)),
        num_candidates=np.full(size, 9, np.int32),
        seen_before=np.ones(size, bool),
        unseen_entity=np.zeros(size, bool),
        num_relations=2,
    )


def test_golden():
    """Every timestamp gains 0.5 per query: no spread, and 2 of 2^4 sign flips are as extreme."""
    time = [0, 1, 1, 2, 3]
    found = paired_difference(make_ranks([1] * 5, time), make_ranks([2] * 5, time))
    assert found == pytest.approx(
        {
            "delta": 0.5,
            "delta_pct": 100.0,
            "ci_low": 0.5,
            "ci_high": 0.5,
            "p_value": 2 / 16,
            "num_queries": 5,
            "num_timestamps": 4,
        }
    )


def test_identical_models_differ_in_nothing():
    ranks = make_ranks([1, 2.5, 3, 4], [0, 1, 2, 3])
    found = paired_difference(ranks, ranks)
    assert found["p_value"] == 1.0
    assert (found["delta"], found["delta_pct"], found["ci_low"], found["ci_high"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("other", [[1, 1], [3, 7]])
def test_a_single_timestamp_has_no_interval(other):
    found = paired_difference(make_ranks([1, 1], [5, 5]), make_ranks(other, [5, 5]))
    assert (found["ci_low"], found["ci_high"], found["p_value"]) == (None, None, 1.0)


def noisy_pair(gain, seed=0, size=3000, timestamps=40):
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, timestamps, size))
    base = rng.integers(1, 30, size).astype(float)
    better = np.maximum(1, base - rng.binomial(1, gain, size) + rng.binomial(1, 0.3, size))
    return make_ranks(better, time), make_ranks(base, time)


def test_interval_is_that_of_a_plain_bootstrap_over_timestamps():
    first, last = noisy_pair(0.5)
    found = paired_difference(first, last)
    gains = 1 / first.rank - 1 / last.rank
    groups = [gains[first.time == time] for time in np.unique(first.time)]
    rng = np.random.default_rng(1)
    draws = [np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]).mean() for _ in range(2000)]
    width = found["ci_high"] - found["ci_low"]
    assert [found["ci_low"], found["ci_high"]] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=width / 10)
    assert found["ci_low"] < found["delta"] < found["ci_high"]


def test_a_real_gain_is_found_and_its_sign_follows_the_order():
    first, last = noisy_pair(0.9)
    forth, back = paired_difference(first, last), paired_difference(last, first)
    assert forth["ci_low"] > 0
    assert forth["p_value"] < 0.01
    assert back["delta"] == pytest.approx(-forth["delta"])


def test_same_seed_same_numbers():
    first, last = noisy_pair(0.4)
    assert paired_difference(first, last, seed=3) == paired_difference(first, last, seed=3)
    assert paired_difference(first, last, seed=3) != paired_difference(first, last, seed=4)


@pytest.mark.parametrize("name", ["subject", "relation", "object", "time"])
def test_other_queries_are_refused(name):
    ranks = make_ranks([1, 2, 3], [0, 1, 2])
    other = dataclasses.replace(ranks, **{name: getattr(ranks, name)[::-1].copy()})
    with pytest.raises(DataError, match=name):
        paired_difference(ranks, other)


def test_gate():
    assert gate(-5.0, -5.0)
    assert gate(3.0, -5.0)
    assert not gate(-5.1, -5.0)
