"""The baselines against loops over their formulas; the fit's sparse ranks against the evaluator's."""

import dataclasses
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import DataError, UsageError
from geopol_tkg.evaluation.evaluator import evaluate
from geopol_tkg.models.recurrency import Frequency, Recurrency, baseline, before_split, is_baseline
from geopol_tkg.models.recurrency_fit import ALPHAS, LAMBDAS, fit_recurrency, valid_ranks

N, R = 6, 2
LAST = 9


def make_dataset(rows, *, valid_start=6, test_start=8, n=N, r=R):
    facts = np.unique(np.array([(t, s, r_, o) for s, r_, o, t in rows], np.int32), axis=0)[:, [1, 2, 3, 0]]
    names = [tuple(map(str, range(size))) for size in (n, r)]
    return Dataset(*names, facts, Split(valid_start, test_start), TimeAxis(0, 1, None))


def random_dataset(seed=0, *, size=150, n=N, r=R):
    rows = np.random.default_rng(seed).integers(0, [n, r, n, LAST + 1], (size, 4))
    return make_dataset([*rows.tolist(), [0, 0, 1, 0]], n=n, r=r)


def all_scores(forecaster, time, *, n=N, r=R):
    """Scores of every query at a time: [n, 2r, n]."""
    subjects, relations = (grid.ravel() for grid in np.meshgrid(range(n), range(2 * r), indexing="ij"))
    return np.asarray(forecaster.at(time)(subjects, relations)).reshape(n, 2 * r, n)


def past_facts(dataset, time):
    both = [tuple(fact) for fact in dataset.facts.tolist() if fact[3] < time]
    return both + [(o, r + R, s, t) for s, r, o, t in both]


def naive_parts(dataset, time, lambda_):
    """Strict and relaxed recurrency of every query, by the formulas, in loops."""
    past = past_facts(dataset, time)
    strict, relaxed, counts = np.zeros((3, N, 2 * R, N))
    total = sum(2.0 ** (lambda_ * (k - time)) for k in range(time))
    for s, r, o, k in past:
        strict[s, r, o] += 2.0 ** (lambda_ * (k - time)) / total
        counts[s, r, o] += 1
        relaxed[:, r, o] += 1 / sum(fact[1] == r for fact in past)
    return strict, relaxed, counts


rows_strategy = st.lists(
    st.tuples(*(st.integers(0, top) for top in (N - 1, R - 1, N - 1, LAST))), min_size=1, max_size=60
).map(lambda rows: [*rows, (0, 0, 1, 0)])


@settings(deadline=None, max_examples=30)
@given(rows_strategy, st.integers(1, LAST + 3), st.sampled_from(LAMBDAS), st.sampled_from(ALPHAS))
def test_recurrency_follows_its_formulas(rows, time, lambda_, alpha):
    dataset = make_dataset(rows)
    strict, relaxed, _ = naive_parts(dataset, time, lambda_)
    found = all_scores(Recurrency(dataset, lambdas=lambda_, alphas=alpha), time)
    np.testing.assert_allclose(found, alpha * strict + (1 - alpha) * relaxed, rtol=1e-10, atol=1e-15)


@settings(deadline=None, max_examples=15)
@given(rows_strategy, st.integers(1, LAST + 3))
def test_frequency_counts_and_breaks_ties_by_share(rows, time):
    dataset = make_dataset(rows)
    _, relaxed, counts = naive_parts(dataset, time, 0.0)
    np.testing.assert_allclose(all_scores(Frequency(dataset), time), counts + relaxed / 2, rtol=1e-12)


def test_values_per_relation_are_those_of_each_relation_alone():
    dataset = random_dataset()
    lambdas, alphas = np.array([0.0, 0.1, 0.5, 1.0001]), np.array([0.0, 0.9, 0.99, 1.0])
    mixed = all_scores(Recurrency(dataset, lambdas=lambdas, alphas=alphas), 7)
    for relation in range(2 * R):
        alone = Recurrency(dataset, lambdas=lambdas[relation], alphas=alphas[relation])
        np.testing.assert_array_equal(mixed[:, relation], all_scores(alone, 7)[:, relation])


def forecasters(dataset, horizon=None):
    return [
        Recurrency(dataset, lambdas=0.02, alphas=0.999, horizon=horizon),
        Frequency(dataset, horizon=horizon),
    ]


def rewrite_from(dataset, time, seed=1):
    """Other facts at and after a time."""
    other = random_dataset(seed, size=200).facts
    kept = np.concatenate([dataset.facts[dataset.facts[:, 3] < time], other[other[:, 3] >= time]])
    return dataclasses.replace(dataset, facts=kept)


@pytest.mark.parametrize("time", [1, 4, 8, LAST])
def test_the_future_changes_nothing(time):
    dataset = random_dataset()
    for now, then in zip(forecasters(dataset), forecasters(rewrite_from(dataset, time)), strict=True):
        np.testing.assert_array_equal(all_scores(now, time), all_scores(then, time))


def test_fitted_baseline_never_reads_the_test_split():
    dataset = random_dataset()
    changed = rewrite_from(dataset, dataset.split.test_start)
    np.testing.assert_array_equal(fit_recurrency(dataset), fit_recurrency(changed))
    first, second = (all_scores(baseline("recurrency", d), 8) for d in (dataset, changed))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_fit_for_a_split_reads_nothing_of_it(split):
    dataset = random_dataset()
    start = dataset.split.bounds(split)[0]
    later = dataset.facts[:, 3] >= start
    rewritten = dataset.facts.copy()
    rewritten[later, :3] = rewritten[later, 2::-1]
    order = np.lexsort(rewritten.T[[2, 1, 0, 3]])
    other = dataclasses.replace(dataset, facts=rewritten[order])
    fits = [fit_recurrency(before_split(d, split)) for d in (dataset, other)]
    np.testing.assert_array_equal(*fits)
    assert len(before_split(dataset, split).facts_of("valid"))


def test_there_is_nothing_to_fit_on_before_train():
    with pytest.raises(UsageError, match="before the train split"):
        before_split(random_dataset(), "train")


def test_nothing_from_the_horizon_on_is_visible():
    dataset = random_dataset()
    for now, then in zip(forecasters(dataset, 6), forecasters(rewrite_from(dataset, 6), 6), strict=True):
        np.testing.assert_array_equal(all_scores(now, 9), all_scores(then, 9))
        np.testing.assert_array_equal(all_scores(now, 9), all_scores(now, 6))


def test_earlier_times_and_old_score_functions_stay_right():
    dataset = random_dataset()
    queries = np.array([0, 1, 2]), np.array([0, 1, 3])
    for forecaster, fresh in zip(forecasters(dataset), forecasters(dataset), strict=True):
        at_four, at_eight = forecaster.at(4), forecaster.at(8)
        wanted = fresh.at(4)(*queries)
        at_eight(*queries)
        np.testing.assert_array_equal(at_four(*queries), wanted)


def test_queries_do_not_see_each_other():
    score = Recurrency(random_dataset(), lambdas=0.1, alphas=0.9).at(8)
    subjects, relations = np.arange(24) % N, np.arange(24) % (2 * R)
    together = score(subjects, relations)
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_array_equal(score(subjects[order], relations[order]), together[order])
    alone = [score(subjects[i : i + 1], relations[i : i + 1])[0] for i in range(24)]
    np.testing.assert_array_equal(alone, together)


def test_equal_histories_tie_exactly():
    times = [0, 1, 4, 7]
    dataset = make_dataset([(0, 0, o, t) for o in range(1, 5) for t in times], n=N)
    scores = Recurrency(dataset, lambdas=0.04, alphas=0.999).at(9)(np.array([0]), np.array([0]))[0]
    assert len(set(scores[1:5].tolist())) == 1


def test_shifting_all_times_changes_nothing():
    dataset = random_dataset()
    shifted = dataclasses.replace(dataset, facts=dataset.facts + np.array([0, 0, 0, -4], np.int32))
    for now, then in zip(forecasters(dataset), forecasters(shifted), strict=True):
        np.testing.assert_array_equal(all_scores(now, 8), all_scores(then, 4))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(20, 250))
def test_sparse_ranks_of_the_fit_are_the_evaluators(seed, size):
    dataset = random_dataset(seed, size=size, n=12)
    if not len(dataset.facts_of("valid")):
        return
    rng = np.random.default_rng(seed)
    lambdas, alphas = rng.choice(LAMBDAS, (3, 2 * R)), rng.choice(ALPHAS, (4, 2 * R))
    relations, ranks = valid_ranks(dataset, lambdas=lambdas, alphas=alphas)
    for i, row in enumerate(ranks):
        forecaster = Recurrency(dataset, lambdas=lambdas[i // 4], alphas=alphas[i % 4])
        found = evaluate(forecaster, dataset, split="valid")
        np.testing.assert_array_equal(row, found.rank)
        np.testing.assert_array_equal(relations, found.relation)


def test_fit_takes_the_best_of_the_grid():
    dataset, lambdas, alphas = random_dataset(5, size=400), (0.0, 0.5, 1.0001), (0.1, 0.5, 1.0)
    found = fit_recurrency(dataset, lambdas=lambdas, alphas=alphas)

    def mrr(relation, **values):
        ranks = evaluate(Recurrency(dataset, **values), dataset, split="valid")
        return (1 / ranks.rank[ranks.relation == relation]).mean().round(8)

    for relation in range(2 * R):
        best = max(lambdas, key=lambda value: mrr(relation, lambdas=value, alphas=0.99))
        assert found[0][relation] == best
        assert found[1][relation] == max(alphas, key=lambda value: mrr(relation, lambdas=best, alphas=value))


def test_relations_without_valid_queries_get_the_best_values_of_all():
    rows = [(0, 0, 1, t) for t in range(9)] + [(0, 0, 2, 1), (3, 1, 4, 0)]
    lambdas, alphas = fit_recurrency(make_dataset(rows))
    assert lambdas[1] in LAMBDAS
    assert (lambdas[1], alphas[1]) == (lambdas[3], alphas[3])


def test_fit_needs_valid_facts():
    with pytest.raises(DataError, match="valid split is empty"):
        fit_recurrency(make_dataset([(0, 0, 1, 0), (0, 0, 1, 9)]))


def test_baselines_by_name():
    dataset = random_dataset()
    fixed = baseline("recurrency:0.02,0.999", dataset, horizon=6)
    assert (fixed.name, fixed.horizon) == ("recurrency:0.02,0.999", 6)
    assert baseline("recurrency", dataset).name == "recurrency"
    assert baseline("frequency", dataset, horizon=6).horizon == 6
    assert is_baseline("recurrency:x")
    assert not is_baseline("models/recurrency.npz")


@pytest.mark.parametrize(
    "name", ["copy", "recurrency:", "recurrency:1", "recurrency:-1,0.5", "recurrency:1,2", "frequency:1,0.5"]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(UsageError, match="known: recurrency, recurrency:LAMBDA,ALPHA, frequency"):
        baseline(name, random_dataset())


def read_benchmark(path):
    """A quadruple folder from its archive."""
    with tarfile.open(path) as archive:
        parts = [np.loadtxt(archive.extractfile(f"{path.name[:-7]}/{name}.txt"), np.int64) for name in SPLITS]
    rows = np.concatenate([part[:, :4] for part in parts])
    sizes = rows[:, [0, 2]].max() + 1, rows[:, 1].max() + 1
    starts = [int(part[:, 3].min()) for part in parts]
    return make_dataset(rows.tolist(), valid_start=starts[1], test_start=starts[2], n=sizes[0], r=sizes[1])


SPLITS = ("train", "valid", "test")


def test_published_figures_on_icews14s(shared_data):
    """Gastinger et al. report MRR 37.4 and Hits@10 51.5 for the fitted baseline."""
    dataset = read_benchmark(shared_data / "benchmarks" / "ICEWS14s.tar.xz")
    fixed = evaluate(baseline("recurrency:0.02,0.999", dataset), dataset).metrics()
    fitted = evaluate(baseline("recurrency", dataset), dataset).metrics()
    assert fixed["num_queries"] == 2 * 7371
    assert 0.365 < fixed["mrr"] < 0.376
    assert fitted["mrr"] == pytest.approx(0.374, abs=0.003)
