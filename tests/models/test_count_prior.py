"""A network with a counting model beside it."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from small_world import N, R, make_checkpoint, make_config, make_dataset, random_arrays

from geopol_tkg.checkpoint import fill, flatten
from geopol_tkg.config import TrainConfig
from geopol_tkg.data.countries import Countries
from geopol_tkg.data.history import build_for
from geopol_tkg.errors import CheckpointError
from geopol_tkg.evaluation.evaluator import evaluate
from geopol_tkg.models.registry import build_context, build_forecaster, build_model, uses_vocabulary
from geopol_tkg.training.prepare import prepare
from geopol_tkg.training.run import with_prior

KEY = jax.random.key(3)
EVERY_QUERY = np.array([(s, r) for s in range(N) for r in range(2 * R)], np.int32).T
CODES = ("NGA", "NGAGOV", "NGACOP", "FRA", "FRAGOV", "FRABUS", "USA", "USAGOV", "USAMIL", "BRA", "CHN", "IGO")
COUNTRIES = Countries.from_labels(CODES, entity_kind="code")
COUNTS = make_config("counts", half_lives=(1.0, 3.0), num_countries=3)


@pytest.fixture(scope="module")
def dataset():
    return replace(make_dataset(1, size=300), entities=CODES, entity_kind="code")


def config_of(model_type, **changes):
    return make_config(model_type, num_layers=1, half_lives=COUNTS.half_lives, num_countries=3, **changes)


def arrays_of(config, seed=0):
    """All away from the values that training begins with."""
    if uses_vocabulary(config):
        return random_arrays(config, seed=seed)
    rng = np.random.default_rng(seed)
    _, state = nnx.split(build_model(config, key=jax.random.key(0)))
    arrays = {name: rng.normal(0, 0.3, array.shape).astype(np.float32) for name, array in flatten(state).items()}
    return arrays | {"compatriots/countries": COUNTRIES.of_entity}


PRIOR = arrays_of(COUNTS)


def forecaster(dataset, config, arrays, **more):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build_model(config, key=jax.random.key(0))))
    history = build_for(dataset, window=config.history_window) if uses_vocabulary(config) else None
    context = build_context(dataset, history, config)
    return build_forecaster(graphdef, fill(state, arrays), config=config, context=context, name="test", **more)


def probabilities(dataset, config, arrays, time, queries=EVERY_QUERY):
    return np.exp(np.asarray(forecaster(dataset, config, arrays).at(time)(*queries), np.float64))


def with_counts(arrays, prior=PRIOR):
    return arrays | {f"counts/{name}": array for name, array in prior.items()}


def reweighted(probability, by):
    product = probability * by
    return product / product.sum(axis=1, keepdims=True)


@pytest.mark.slow
def test_counts_reweigh_what_a_single_softmax_gives(dataset):
    config = config_of("regcn")
    arrays = random_arrays(config)
    alone, counted = probabilities(dataset, config, arrays, 8), probabilities(dataset, COUNTS, PRIOR, 8)
    found = probabilities(dataset, replace(config, count_prior=True), with_counts(arrays), 8)
    np.testing.assert_allclose(found, reweighted(alone, counted), rtol=1e-4, atol=1e-7)
    assert np.abs(found - alone).max() > 0.05


@pytest.mark.parametrize("mode", ["multiply", pytest.param("exclude", marks=pytest.mark.slow)])
def test_counts_reweigh_each_part_of_a_mixture(dataset, mode):
    config = config_of("tirgn", history_rate=0.4, history_mask_mode=mode)
    arrays = random_arrays(config)
    counted = probabilities(dataset, COUNTS, PRIOR, 8)
    raw, history = (
        reweighted(probabilities(dataset, replace(config, history_rate=rate), arrays, 8), counted) for rate in (0, 1)
    )
    found = probabilities(dataset, replace(config, count_prior=True), with_counts(arrays), 8)
    np.testing.assert_allclose(found, 0.6 * raw + 0.4 * history, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("horizon", [None, 5])
def test_scores_depend_on_the_past_only(dataset, horizon):
    config = config_of("regcn", count_prior=True)
    arrays, visible = with_counts(random_arrays(config)), horizon or 7
    future = dataset.facts[:, 3] >= visible
    facts = dataset.facts.copy()
    facts[future] = facts[future][:, [2, 1, 0, 3]]
    other = replace(dataset, facts=np.unique(facts[:, [3, 0, 1, 2]], axis=0)[:, [1, 2, 3, 0]])
    before, after = (forecaster(d, config, arrays, horizon=horizon).at(7)(*EVERY_QUERY) for d in (dataset, other))
    np.testing.assert_array_equal(before, after)
    if horizon is None:
        later = (forecaster(d, config, arrays).at(8)(*EVERY_QUERY) for d in (dataset, other))
        assert not np.array_equal(*later)
    else:
        earlier = replace(dataset, facts=dataset.facts[~future])
        np.testing.assert_allclose(before, forecaster(earlier, config, arrays).at(7)(*EVERY_QUERY), atol=1e-5)


@pytest.mark.slow
def test_ranks_do_not_depend_on_the_block_size(dataset):
    config = config_of("regcn", count_prior=True)
    model = forecaster(dataset, config, with_counts(random_arrays(config)))
    small, large = (evaluate(model, dataset, split="test", block_size=size).rank for size in (3, 64))
    np.testing.assert_array_equal(small, large)


def prepared(dataset, config, **settings):
    history = build_for(dataset, window=config.history_window)
    settings = TrainConfig(**{"batch_size": 0, "precision": "f32", "remat": False, **settings})
    return prepare(dataset, history, build_context(dataset, history, config), model=config, config=settings)


def arguments_of(prepared, index):
    plan, _, state, data = prepared
    return state.parameters, state.statistics, data, np.int32(index), KEY, plan.shapes[plan.shape_of[index]]


def start_with(prepared, prior):
    return prepared._replace(state=with_prior(prepared.state, prior))


@pytest.mark.parametrize("model_type", ["regcn", pytest.param("tirgn", marks=pytest.mark.slow)])
def test_training_starts_with_the_checkpoint_and_reaches_both(dataset, model_type):
    start = prepared(dataset, config_of(model_type, count_prior=True, dropout=0.0))
    fresh = flatten(start.state.parameters)
    start = start_with(start, make_checkpoint(COUNTS, dataset, PRIOR))
    np.testing.assert_array_equal(
        flatten(start.state.statistics)["counts/compatriots/countries"], PRIOR["compatriots/countries"]
    )
    for name, array in flatten(start.state.parameters).items():
        expected = PRIOR[name.removeprefix("counts/")] if name.startswith("counts/") else fresh[name]
        np.testing.assert_array_equal(array, expected, err_msg=name)
    gradient = jax.jit(jax.grad(start.trainer.loss, has_aux=True), static_argnums=5)
    early, late = (flatten(gradient(*arguments_of(start, step))[0]) for step in np.argsort(start.plan.times)[[1, -1]])
    reached = {name: np.abs(early[name]) + np.abs(late[name]) for name in early}  # late all have met, early few
    without = [name for name, array in reached.items() if array.size and not array.max() > 1e-7]
    assert all(name.endswith(("conv_bias", "linear_bias")) and "decoder" in name for name in without), without


def test_a_checkpoint_that_does_not_fit_is_refused(dataset):
    start = prepared(dataset, config_of("regcn", count_prior=True))
    other = replace(COUNTS, half_lives=(1.0, 2.0, 3.0))
    with pytest.raises(CheckpointError, match=r"array counts/.* is float32.*, wanted float32"):
        start_with(start, make_checkpoint(other, dataset, arrays_of(other)))


@pytest.mark.slow
def test_blocks_and_padding_do_not_change_the_loss(dataset):
    config = config_of("regcn", count_prior=True, dropout=0.0)
    checkpoint = make_checkpoint(COUNTS, dataset, PRIOR)
    losses = []
    for block_size in (1024, 16):
        start = start_with(prepared(dataset, config, block_size=block_size), checkpoint)
        index = int(np.argmax(start.plan.counts))
        arguments = arguments_of(start, index)
        assert (arguments[-1].blocks == 1) == (block_size == 1024)
        losses.append(float(jax.jit(start.trainer.loss, static_argnums=5)(*arguments)[0]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
