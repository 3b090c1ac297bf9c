"""Rank arithmetic: golden ties, a naive reference, and the same numbers under jax.jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geopol_tkg.evaluation.ranking import metrics, rank_counts, ranks, target_scores


@st.composite
def scored_queries(draw):
    b, n = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    values = st.sampled_from([-np.inf, -1.5, 0.0, 0.25, 2.0, np.inf])
    scores = draw(hnp.arrays(np.float64, (b, n), elements=values))
    targets = draw(hnp.arrays(np.int32, b, elements=st.integers(0, n - 1)))
    excluded = draw(hnp.arrays(bool, (b, n)))
    excluded[np.arange(b), targets] = False
    return scores, targets, excluded


def naive_counts(scores, target, excluded):
    others = [i for i in range(len(scores)) if i != target and not excluded[i]]
    return sum(scores[i] > scores[target] for i in others), sum(scores[i] == scores[target] for i in others)


@given(scored_queries())
def test_counts_are_those_of_a_naive_loop(case):
    scores, targets, excluded = case
    wanted = [naive_counts(*row) for row in zip(scores, targets, excluded, strict=True)]
    assert list(zip(*rank_counts(scores, targets, excluded), strict=True)) == wanted


def test_counts_are_the_same_under_jit():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (6, 9)).astype(np.float32)
    targets = rng.integers(0, 9, 6)
    excluded = rng.random((6, 9)) < 0.3
    excluded[np.arange(6), targets] = False
    traced = jax.jit(rank_counts)(jnp.asarray(scores), jnp.asarray(targets), jnp.asarray(excluded))
    np.testing.assert_array_equal(traced, rank_counts(scores, targets, excluded))
    np.testing.assert_array_equal(jax.jit(target_scores)(scores, targets), target_scores(scores, targets))


def test_a_target_ranks_in_the_middle_of_its_equals():
    scores = np.array([[0.5, 0.9, 0.5, 0.1, 0.5]])
    greater, equal = rank_counts(scores, np.array([2]), np.zeros((1, 5), bool))
    assert ranks(greater, equal).tolist() == [3]


def test_all_tied_is_the_middle():
    greater, equal = rank_counts(np.zeros((1, 101)), np.array([7]), np.zeros((1, 101), bool))
    assert ranks(greater, equal).tolist() == [51.0]


def test_metrics_golden():
    found = metrics(np.array([1.0, 1.5, 3.0, 10.0, 20.0]))
    assert found == pytest.approx(
        {
            "mrr": (1 + 2 / 3 + 1 / 3 + 0.1 + 0.05) / 5,
            "hits_at_1": 0.2,
            "hits_at_3": 0.6,
            "hits_at_10": 0.8,
            "mean_rank": 7.1,
        }
    )


def test_metrics_of_nothing_are_none():
    assert set(metrics(np.empty(0)).values()) == {None}
