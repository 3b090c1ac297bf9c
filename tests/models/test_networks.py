"""What must hold for both networks, whatever their weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_world import LAST, N, R, make_config, make_dataset, random_arrays

from geopol_tkg.checkpoint import fill
from geopol_tkg.data.dataset import Dataset, with_inverses
from geopol_tkg.data.history import build_for
from geopol_tkg.evaluation.evaluator import evaluate
from geopol_tkg.models.forecaster import ForecastContext, NetworkForecaster, _evolve
from geopol_tkg.models.network import (
    Component,
    build_network,
    history_mask,
    mixture_log_probabilities,
    mixture_nll,
)
from geopol_tkg.models.tirgn import mask_history

MODELS = ("regcn", "tirgn")
EVERY_QUERY = np.array([(s, r) for s in range(N) for r in range(2 * R)], np.int32).T


def forecaster(dataset, config, arrays, **arguments):
    skeleton = nnx.eval_shape(lambda: build_network(config, key=jax.random.key(0)))
    graphdef, state = nnx.split(skeleton)
    context = ForecastContext.build(dataset, build_for(dataset, window=config.history_window), config)
    return NetworkForecaster(graphdef, fill(state, arrays), config=config, context=context, name="test", **arguments)


def scores(dataset, config, arrays, time, queries=EVERY_QUERY):
    return np.asarray(forecaster(dataset, config, arrays).at(time)(*queries))


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("window", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_scores_depend_on_the_past_only(model_type, window, dataset):
    config = make_config(model_type, history_window=window)
    arrays = random_arrays(config)
    time = 7
    future = dataset.facts[:, 3] >= time
    rewritten = dataset.facts.copy()
    rewritten[future, :3] = rewritten[future, :3][::-1] * [1, 0, 1] + [0, 1, 0]
    rewritten = np.unique(rewritten[:, [3, 0, 1, 2]], axis=0)[:, [1, 2, 3, 0]]
    other = replace(dataset, facts=rewritten)
    assert not np.array_equal(dataset.facts_of("test"), other.facts_of("test"))
    before, after = (scores(d, config, arrays, time) for d in (dataset, other))
    assert np.array_equal(before, after)
    assert not np.array_equal(scores(dataset, config, arrays, time + 1), scores(other, config, arrays, time + 1))


@pytest.mark.parametrize("model_type", MODELS)
def test_a_horizon_hides_what_comes_after_it(model_type, dataset):
    config = make_config(model_type)
    arrays = random_arrays(config)
    earlier = replace(dataset, facts=dataset.facts[dataset.facts[:, 3] < 7])
    for time in (7, 9, 30):  # whatever else moves with the time asked, TiRGN's history window too
        hidden = forecaster(dataset, config, arrays, horizon=7).at(time)(*EVERY_QUERY)
        assert np.array_equal(hidden, scores(earlier, config, arrays, time))


@pytest.mark.parametrize("model_type", MODELS)
def test_a_query_depends_on_no_other(model_type, dataset):
    config = make_config(model_type)
    score = forecaster(dataset, config, random_arrays(config)).at(8)
    together = np.asarray(score(*EVERY_QUERY))
    order = np.random.default_rng(0).permutation(len(together))
    assert np.array_equal(np.asarray(score(*EVERY_QUERY[:, order])), together[order])
    alone = np.concatenate([np.asarray(score(*EVERY_QUERY[:, i : i + 1])) for i in range(0, 40, 7)])
    np.testing.assert_allclose(alone, together[:40:7], atol=1e-5)


@pytest.mark.parametrize("model_type", MODELS)
def test_ranks_do_not_depend_on_the_block_size(model_type, dataset):
    config = make_config(model_type)
    model = forecaster(dataset, config, random_arrays(config))
    small, large = (evaluate(model, dataset, split="test", block_size=size).rank for size in (3, 64))
    assert np.array_equal(small, large)


@pytest.mark.parametrize("model_type", MODELS)
def test_relabelled_entities_permute_the_scores(model_type, dataset):
    config = make_config(model_type)
    arrays = random_arrays(config)
    new_id = np.random.default_rng(1).permutation(N).astype(np.int32)
    facts = dataset.facts.copy()
    facts[:, [0, 2]] = new_id[facts[:, [0, 2]]]
    relabelled = replace(dataset, facts=facts[np.lexsort(facts.T[[2, 1, 0, 3]])])
    old_id = np.argsort(new_id)
    moved = arrays | {"encoder/entity_embedding": arrays["encoder/entity_embedding"][old_id]}
    queries = np.stack([new_id[EVERY_QUERY[0]], EVERY_QUERY[1]])
    expected = scores(dataset, config, arrays, 8)
    found = scores(relabelled, config, moved, 8, queries)
    np.testing.assert_allclose(found[:, new_id], expected, atol=2e-5)


def test_tirgn_reads_the_time_index(dataset):
    """Nothing but the time encoding tells a gap's length when the history window is unlimited."""
    config = make_config("tirgn", history_window=0)
    arrays = random_arrays(config)
    near, far = (scores(dataset, config, arrays, LAST + ahead) for ahead in (1, 5))
    assert np.abs(near - far).max() > 1e-3
    regcn = make_config("regcn", history_window=0)
    near, far = (scores(dataset, regcn, random_arrays(regcn), LAST + ahead) for ahead in (1, 5))
    assert np.array_equal(near, far)


@pytest.mark.parametrize("mode", ["multiply", "exclude"])
def test_masked_mixture_is_a_distribution(mode):
    rng = np.random.default_rng(0)
    raw, history = jnp.asarray(rng.normal(size=(2, 5, 9)) * 20, jnp.float32)
    seen = jnp.asarray(rng.random((5, 9)) < 0.4).at[0].set(False)
    masked = mask_history(history, raw, seen, mode)
    mixture = [Component(0.7, raw), Component(0.3, masked)]
    log_p = mixture_log_probabilities(mixture)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, atol=1e-5)
    expected = np.log(0.7 * jax.nn.softmax(raw) + 0.3 * jax.nn.softmax(masked))
    np.testing.assert_allclose(log_p, expected, rtol=1e-4, atol=1e-4)
    query, targets = jnp.asarray([0, 1, 1, 1, 4]), jnp.arange(5)
    nll = -log_p[query, targets]
    np.testing.assert_allclose(mixture_nll(mixture, query, targets), nll, rtol=1e-5, atol=1e-5)
    smoothed = 0.9 * nll - 0.1 * log_p.mean(axis=1)[query]
    found = mixture_nll(mixture, query, targets, label_smoothing=0.1)
    np.testing.assert_allclose(found, smoothed, rtol=1e-5, atol=1e-5)


def test_exclude_gives_unseen_nothing_and_falls_back_to_raw():
    raw, history = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([[-5.0, 9.0], [7.0, 8.0]])
    seen = jnp.asarray([[True, False], [False, False]])
    masked = mask_history(history, raw, seen, "exclude")
    assert np.array_equal(jax.nn.softmax(masked[0]), [1, 0])
    assert np.array_equal(masked[1], raw[1])
    assert np.array_equal(mask_history(history, raw, seen, "multiply"), [[-5, 0], [0, 0]])


@pytest.mark.parametrize("window", [0, 2])
def test_history_mask_is_the_vocabulary(window, dataset):
    history = build_for(dataset, window=window)
    subject, relation, _, time = with_inverses(dataset.facts, R).T
    slices = history.object_slices(subject, relation, time)
    rows, objects = history.objects.sparse(slices)
    expected = np.zeros((len(subject), N), bool)
    expected[rows, objects] = True
    for capacity in (len(rows), len(rows) + 1000):
        mask = history_mask(
            jnp.asarray(history.objects.targets), jnp.asarray(slices), num_candidates=N, capacity=capacity
        )
        assert np.array_equal(mask, expected)
    assert expected.any()


def test_a_context_of_another_window_is_refused(dataset):
    config = make_config("tirgn", history_window=5)
    with pytest.raises(ValueError, match="window"):
        ForecastContext.build(dataset, build_for(dataset, window=4), config)


def test_the_dataset_of_these_tests_has_a_past_and_a_future(dataset):
    assert isinstance(dataset, Dataset)
    assert len(dataset.facts_of("train"))
    assert len(dataset.facts_of("test"))


@pytest.mark.parametrize("model_type", MODELS)
def test_very_many_entities_are_updated_in_blocks(model_type, dataset, monkeypatch):
    config = make_config(model_type, num_layers=1)
    arrays = random_arrays(config)
    at_once = scores(dataset, config, arrays, 8)
    monkeypatch.setattr("geopol_tkg.models.evolution._MOST_ROWS", 5)
    _evolve.clear_cache()
    np.testing.assert_allclose(scores(dataset, config, arrays, 8), at_once, rtol=1e-5, atol=1e-5)
    _evolve.clear_cache()
