"""Calibration against plain loops, and the temperature against SciPy's minimiser."""

from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from test_evaluator import N, R, make_dataset, strata_dataset

from geopol_tkg.errors import DataError
from geopol_tkg.evaluation.calibration import BINS, Probabilities, calibration_error, reliability_bins
from geopol_tkg.evaluation.evaluator import Interrupted, evaluate
from geopol_tkg.evaluation.temperature import HIGHEST, fit_temperature, minimise_nll

T = 1.7


def distributions(seed=0, *, wrap=np.asarray, unknown=()):
    """Log-probabilities looked up by time and query; subjects that are ``unknown`` score zero everywhere."""
    table = log_softmax(np.random.default_rng(seed).normal(0, 2, (8, N, 2 * R, N)), axis=-1).astype(np.float32)
    table[:, list(unknown)] = 0
    return SimpleNamespace(
        name="table",
        horizon=None,
        table=table,
        at=lambda time: lambda subjects, relations: wrap(table[time % 8, subjects, relations]),
    )


def random_dataset(seed=3, size=120):
    rows = np.random.default_rng(seed).integers(0, [N, R, N, 7], (size, 4))
    return make_dataset(map(tuple, rows.tolist()))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60))
def test_bins_and_error_are_those_of_a_loop(answers):
    confidence, is_hit = (np.array(column) for column in zip(*answers, strict=True)) if answers else np.empty((2, 0))
    bins = reliability_bins(confidence, is_hit)
    assert len(bins) == BINS
    distance = 0
    for i, part in enumerate(bins):
        own = [(p, hit) for p, hit in answers if i == min(int(p * BINS), BINS - 1)]
        assert (part["low"], part["high"], part["count"]) == (i / BINS, (i + 1) / BINS, len(own))
        means = [float(np.mean(column)) for column in zip(*own, strict=True)] if own else [None, None]
        assert [part["confidence"], part["accuracy"]] == pytest.approx(means)
        distance += abs(sum(p - hit for p, hit in own))
    assert calibration_error(bins) == (pytest.approx(distance / len(answers)) if answers else None)


def test_calibration_error_golden():
    """Two bins: 0.75 against 1/2 for two queries, 0.2 against 0 for the third."""
    bins = reliability_bins(np.array([0.74, 0.76, 0.2]), np.array([1, 0, 0]))
    assert calibration_error(bins) == pytest.approx(((0.75 - 0.5) * 2 + 0.2) / 3)
    assert calibration_error(reliability_bins(np.ones(2), np.ones(2))) == 0


def test_what_comes_true_as_foretold_is_calibrated():
    """Answers drawn from the forecast itself: the curve lies on the diagonal."""
    rng = np.random.default_rng(1)
    confidence = rng.uniform(size=40_000)
    bins = reliability_bins(confidence, rng.uniform(size=len(confidence)) < confidence)
    assert calibration_error(bins) < 0.02
    for part in bins:
        assert part["accuracy"] == pytest.approx(part["confidence"], abs=0.05)


@pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("filter", ["time", "static", "raw"])
def test_what_the_evaluator_finds_is_what_a_loop_finds(wrap, filter):
    dataset, forecaster = random_dataset(), distributions(wrap=wrap)
    ranks = evaluate(forecaster, dataset, temperature=T, filter=filter, block_size=8)
    confidence, is_hit, target = [], [], []
    for s, r, o, t in zip(ranks.subject, ranks.relation, ranks.object, ranks.time, strict=True):
        log_probability = log_softmax(forecaster.table[t % 8, s, r].astype(float) / T)
        first = int(log_probability.argmax())
        confidence.append(np.exp(log_probability[first]))
        is_hit.append(first == o)
        target.append(log_probability[o])
    found = ranks.probabilities.calibration()
    wanted = reliability_bins(np.array(confidence), np.array(is_hit))
    assert [part["count"] for part in found["bins"]] == [part["count"] for part in wanted]
    assert found["ece"] == pytest.approx(calibration_error(wanted), abs=1e-5)
    assert found["nll"] == pytest.approx(-np.mean(target), rel=1e-5)
    assert (found["temperature"], found["num_queries"], found["num_impossible"]) == (T, len(target), 0)
    np.testing.assert_allclose(ranks.to_table()["probability"], np.exp(target), rtol=1e-5)
    plain = evaluate(forecaster, dataset, temperature=1.0, filter=filter).probabilities.calibration()
    assert found["uncalibrated"] == pytest.approx({name: plain[name] for name in ("ece", "nll")})


def test_a_perfect_model_of_queries_with_several_answers_is_calibrated():
    """Two objects at each time: either has probability one half, and is the target of one query in two."""
    dataset = make_dataset([(0, 0, o, t) for t in range(7) for o in (2, 4)])
    table = np.full((2 * R, N), -np.inf, np.float32)
    table[0, [2, 4]], table[R, 0] = np.log(0.5), 0
    forecaster = SimpleNamespace(name="perfect", horizon=None, at=lambda _: lambda s, r: table[r])
    ranks = evaluate(forecaster, dataset, temperature=1.0)
    found = ranks.probabilities.calibration()
    assert (found["ece"], found["nll"]) == pytest.approx((0, np.log(2) / 2), abs=1e-6)


def test_a_temperature_changes_no_rank():
    dataset, forecaster = random_dataset(), distributions()
    without, found = evaluate(forecaster, dataset), evaluate(forecaster, dataset, temperature=T)
    assert without.probabilities is None
    np.testing.assert_array_equal(without.rank, found.rank)
    np.testing.assert_array_equal(without.score, found.score)
    assert without.to_table()["probability"].null_count == len(without.rank)


def test_queries_that_the_model_does_not_know_are_left_out():
    ranks = evaluate(distributions(unknown=(0,)), strata_dataset(), temperature=T)
    found = ranks.probabilities.calibration()
    assert found["num_queries"] == (ranks.subject != 0).sum() > 0
    assert ranks.to_table()["probability"].null_count == (ranks.subject == 0).sum() > 0


def test_answers_that_cannot_be_are_counted_apart():
    said = Probabilities(
        temperature=1.0,
        first=np.log([0.5, 0.5]),
        target=np.array([-np.inf, np.log(0.25)]),
        log_sum=np.zeros(2),
        scaled_log_sum=np.zeros(2),
        is_hit=np.array([False, True]),
    ).calibration()
    assert (said["num_impossible"], said["num_queries"]) == (1, 2)
    assert said["nll"] == pytest.approx(np.log(4))
    assert said["ece"] == 0


def logits(temperature, *, seed=0, size=20_000, candidates=7):
    """Logits that are too large by a factor, and targets drawn from the distribution that they stand for."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (size, candidates))
    targets = (true + rng.gumbel(size=true.shape)).argmax(axis=1)
    return (true * temperature).astype(np.float32), targets


@pytest.mark.parametrize("temperature", [0.2, 0.9, 1.0, 1.4, 8.0])
def test_a_known_temperature_is_found(temperature):
    scores, targets = logits(temperature)
    value, before, after = minimise_nll(scores, targets)
    assert value == pytest.approx(temperature, rel=0.05)

    def nll(candidate):
        return -log_softmax(scores.astype(float) / candidate, axis=1)[np.arange(len(targets)), targets].mean()

    reference = minimize_scalar(nll, bounds=(0.05, 30), method="bounded", options={"xatol": 1e-8})
    assert value == pytest.approx(reference.x, rel=1e-4)
    assert (before, after) == pytest.approx((nll(1.0), nll(value)))
    assert after <= before


def test_impossible_candidates_have_no_part_in_the_fit():
    scores, targets = logits(2.0, size=500)
    more = np.full((500, 3), -1e9, np.float32)
    assert minimise_nll(np.hstack([scores, more]), targets) == pytest.approx(minimise_nll(scores, targets))


def test_a_temperature_without_optimum_stays_within_its_bounds():
    scores = np.tile(np.array([1.0, 0.0], np.float32), (9, 1))
    assert minimise_nll(scores, np.ones(9, int))[0] == pytest.approx(HIGHEST)
    assert 0.01 <= minimise_nll(scores, np.zeros(9, int))[0] < 0.1
    assert minimise_nll(np.zeros_like(scores), np.zeros(9, int))[0] == 1


def test_the_fit_is_over_all_entities():
    dataset, forecaster = random_dataset(), distributions()
    ranks = evaluate(forecaster, dataset, split="valid")
    found = fit_temperature(forecaster, dataset)
    expected = minimise_nll(forecaster.table[ranks.time % 8, ranks.subject, ranks.relation], ranks.object)
    assert (found.value, found.nll_before, found.nll_after) == pytest.approx(expected)
    assert (found.split, found.num_queries) == ("valid", len(ranks.rank))


def test_the_test_split_is_never_read():
    dataset, forecaster = random_dataset(), distributions()
    changed = dataset.facts.copy()
    late = changed[:, 3] >= dataset.split.test_start
    changed[late] = changed[late][:, [2, 1, 0, 3]]
    assert fit_temperature(forecaster, replace(dataset, facts=changed)) == fit_temperature(forecaster, dataset)


def test_a_sample_is_seeded(monkeypatch):
    monkeypatch.setattr("geopol_tkg.evaluation.temperature._MOST_QUERIES", 7)
    dataset, forecaster, steps = random_dataset(), distributions(), []
    found = fit_temperature(forecaster, dataset, seed=1, progress=lambda *step: steps.append(step))
    assert found.num_queries == 7
    assert steps[-1] == (7, 7)
    assert fit_temperature(forecaster, dataset, seed=1) == found
    assert fit_temperature(forecaster, dataset, seed=2) != found


def test_refusals_of_the_fit():
    dataset = random_dataset()
    with pytest.raises(Interrupted):
        fit_temperature(distributions(), dataset, should_stop=lambda: True)
    never = SimpleNamespace(
        name="never", horizon=None, at=lambda _: lambda s, _: np.full((len(s), N), -np.inf, np.float32)
    )
    with pytest.raises(DataError, match="no answer of the valid split has a probability above 0"):
        fit_temperature(never, dataset)
