"""The networks against a plain second implementation, in float64: layers, evolution, decoders, loss, gradients."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from reference import Reference, part
from small_world import make_config

from geopol_tkg.checkpoint import fill, flatten
from geopol_tkg.config import TrainConfig
from geopol_tkg.data.dataset import Dataset, Split, with_inverses
from geopol_tkg.data.history import HistoryVocabulary, build_for
from geopol_tkg.data.snapshots import Snapshots
from geopol_tkg.data.static_graph import StaticGraph
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.models.decoders import Queries
from geopol_tkg.models.evolution import Window
from geopol_tkg.models.forecaster import ForecastContext, NetworkForecaster
from geopol_tkg.models.graph import GraphArrays, cut_snapshot, relation_context, window_shape
from geopol_tkg.models.layers import l2_normalise
from geopol_tkg.models.network import Component, History, build_network, mixture_nll
from geopol_tkg.models.tirgn import mask_history
from geopol_tkg.training.plan import plan_steps
from geopol_tkg.training.step import make_trainer, put_step_data

MODELS = ("regcn", "tirgn")
N, R, K = 6, 3, 3
TIME = 5  # of the queries
TOLERANCE = 1e-10
QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time; the arithmetic is the same

# (s, r, o, t): repeated facts, a self-pair, entity 5 isolated until it is asked for, relation 2 not in every
# snapshot, no facts at time 2
FACTS = np.array(
    [
        *[(0, 0, 1, 0), (1, 1, 2, 0), (0, 0, 1, 0), (3, 0, 0, 0), (4, 2, 1, 0)],
        *[(2, 1, 2, 1), (1, 0, 3, 1), (4, 1, 0, 1), (0, 1, 3, 1)],
        *[(0, 2, 4, 3), (1, 1, 2, 3), (1, 1, 2, 3), (3, 0, 1, 3)],
        *[(0, 0, 1, 4), (4, 2, 0, 4), (2, 1, 3, 4), (3, 0, 1, 4)],
        *[(0, 0, 2, 5), (1, 1, 2, 5), (5, 2, 4, 5), (3, 0, 1, 5), (2, 1, 3, 5)],
    ],
    np.int32,
)
PLAIN_FACTS = [tuple(fact) for fact in FACTS.tolist()]
QUERIES = [fact[:3] for fact in with_inverses(FACTS[FACTS[:, 3] == TIME], R).tolist()]
TRAINING = TrainConfig(task_weight=0.6, static_weight=0.3)
STEP = 1e-6  # of the difference quotients
STATIC_GRAPH = StaticGraph.from_labels(["POLICE (A)", "A", "POLICE (B)", "B", "ARMY (A)", "POLICE (C)"])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def config_of(model_type, *, static=False, **changes):
    sizes = {"embedding_dim": 4, "num_channels": 3, "history_length": K, "history_window": 0, "dropout": 0.0}
    sizes |= STATIC_GRAPH.sizes() | {"static_angle": 35.0} if static else {}
    return replace(make_config(model_type, **sizes | changes), num_entities=N, num_relations=R)


def widened(state):
    """Shapes of a state's leaves, all floats in float64."""

    def widen(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float64 if floating else leaf.dtype)

    return jax.tree.map(widen, state)


def structure(config):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build_network(config, key=jax.random.key(0))))
    return graphdef, widened(state)


def random_weights(config, *, seed=0):
    """Weights, running statistics and static edges by name."""
    rng = np.random.default_rng(seed)

    def drawn(name, array):
        if name.endswith("static/edges"):
            return STATIC_GRAPH.edges
        return rng.uniform(0.5, 2, array.shape) if name.endswith("/var") else rng.normal(0, 0.7, array.shape)

    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), structure(config)[1])
    return {name: drawn(name, array) for name, array in flatten(zeros).items()}


def compiled(config, weights, function):
    """``function(network, *arguments)`` as a jitted call that also gives the running statistics it leaves."""
    graphdef, skeleton = structure(config)
    state = fill(skeleton, weights)

    def call(state, *arguments):
        network = nnx.merge(graphdef, state)
        result = function(network, *arguments)
        return result, nnx.state(network, nnx.BatchStat)

    jitted = jax.jit(call, compiler_options=QUICK)

    def run(*arguments):
        result, statistics = jitted(state, *arguments)
        return result, flatten(statistics)

    return run


def check(found, expected, name=""):
    assert found.dtype == np.float64, name
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def check_statistics(found, weights, *, moved_from=None):
    """Running statistics are the plain implementation's; with ``moved_from`` some differ from those."""
    for name, array in found.items():
        check(array, weights[name], name)
    if moved_from is not None:
        assert any(not np.array_equal(array, moved_from[name]) for name, array in found.items())


def rows(count, dim=4, *, seed=1):
    return np.random.default_rng(seed).normal(size=(count, dim))


def snapshots_of(model_type):
    return Snapshots.build(FACTS, num_relations=R, model_type=model_type)


def snapshot_of(snapshots, time):
    """The snapshot of a time, padded to the largest of all, and its facts."""
    shape = window_shape(snapshots, np.arange(len(snapshots.times)))
    ordinal = snapshots.times.tolist().index(time)
    cut = partial(cut_snapshot, shape=shape, num_entities=N, num_relations=R)
    snapshot = jax.jit(cut)(GraphArrays.put(snapshots), jnp.int32(ordinal))
    return snapshot, [fact[:3] for fact in PLAIN_FACTS if fact[3] == time]


def copied(weights, prefix):
    return {name: np.array(array) for name, array in part(weights, prefix).items()}


@pytest.mark.parametrize("scale", [1.0, 1e-11, 1e-12, 1e-13, 0.0])
def test_l2_normalisation_and_its_epsilon(scale):
    x = scale * rows(3)
    check(l2_normalise(jnp.asarray(x)), reference.l2_rows(x))


@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("model_type", MODELS)
def test_relation_context(model_type, time):
    snapshot, facts = snapshot_of(snapshots_of(model_type), time)
    entities = rows(N)
    expected = reference.relation_context(facts, entities, R, objects_count=model_type == "regcn")
    found = jax.jit(relation_context, static_argnums=(2, 3))(snapshot, entities, R, jnp.float64)
    check(np.tile(found, (2, 1)), expected)
    assert expected[2].any() == (time == 0)


@pytest.mark.parametrize("cell", ["relation_gru", "entity_gru"])
def test_recurrent_units(cell):
    config = config_of("tirgn")
    weights = random_weights(config)
    own = part(weights, f"encoder/{cell}")
    x, hidden = rows(5, len(own["input_weight"])), rows(5, seed=2)
    run = compiled(config, weights, lambda network: getattr(network.encoder, cell)(x, hidden, jnp.float64))
    expected = [reference.gru(own, *pair) for pair in zip(x, hidden, strict=True)]
    check(run()[0], expected)


@pytest.mark.parametrize("model_type", MODELS)
def test_update_of_the_entities(model_type):
    config = config_of(model_type)
    weights = random_weights(config)
    convolved, before = rows(N), rows(N, seed=2)
    run = compiled(config, weights, lambda network: network.encoder.update(convolved, before, jnp.float64))
    own = part(weights, "encoder")
    check(run()[0], [reference.update_entity(own, *pair) for pair in zip(convolved, before, strict=True)])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model_type", MODELS)
def test_graph_convolution(model_type, training):
    """Isolated entities, repeated facts, a self-pair; in training TiRGN's norm takes the edges' statistics."""
    config = config_of(model_type)
    weights = random_weights(config)
    snapshot, facts = snapshot_of(snapshots_of(model_type), 0)
    assert len(facts) > len(set(facts))
    x, relations = rows(N), rows(2 * R, seed=2)

    def layer(network):
        arguments = (snapshot, jnp.asarray(x), jnp.asarray(relations))
        convolved, moments = network.encoder.layers[1](*arguments, training=training, dtype=jnp.float64)
        if moments is not None:
            network.encoder.layers[1].norm.remember(moments)
        return convolved

    found, statistics = compiled(config, weights, layer)()
    own = copied(weights, "encoder/layers/1")
    check(found, reference.graph_convolution(own, facts, x, relations, training=training))
    expected = weights | {f"encoder/layers/1/{name}": array for name, array in own.items()}
    check_statistics(statistics, expected, moved_from=weights if training and model_type == "tirgn" else None)


def evolution(snapshots, key):
    """The encoder over the window with some ordinals."""
    shape = window_shape(snapshots, np.arange(len(snapshots.times)))

    def evolve(network, ordinals):
        window = Window(GraphArrays.put(snapshots), ordinals)
        return network.encoder(window, shape, key=key, dtype=jnp.float64, remat=False)

    return evolve


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("model_type", "static"), [("regcn", True), ("tirgn", False)])
def test_evolution_over_full_short_and_empty_windows(model_type, static, training):
    config = config_of(model_type, static=static)
    weights = random_weights(config)
    snapshots = snapshots_of(model_type)
    key = jax.random.key(0) if training else None
    run = compiled(config, weights, evolution(snapshots, key))
    for time, length in ((0, 0), (1, 1), (3, 2), (TIME, K)):
        ordinals = snapshots.before(time, K)
        assert (ordinals >= 0).sum() == length
        found, statistics = run(ordinals)
        plain = Reference(weights, config)
        entities, relations, drift = plain.evolve(PLAIN_FACTS, time, training=training)
        check(found.entities, entities)
        check(found.relations, relations)
        if static and training:
            check(found.drift, drift)
            assert drift > 0 or not length
        check_statistics(statistics, plain.weights)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("model_type", "name"), [("regcn", "relation_decoder"), ("tirgn", "history_entity_decoder")])
def test_decoders(model_type, name, training):
    """ConvTransE of two inputs and Time-ConvTransE of four; in training padding rows move no statistics."""
    config = config_of(model_type)
    weights = random_weights(config)
    own = copied(weights, name)
    inputs = [rows(7, seed=seed) for seed in range(own["conv_weight"].shape[1])]
    key = jax.random.key(0) if training else None
    padded = [jnp.asarray(np.concatenate([each, np.full((3, 4), 1e3)])) for each in inputs]
    number = np.arange(10)
    queries = Queries(number, number, np.zeros((10, 2), np.int32), (number < 7).astype(np.int32), number)

    def stacked(part):
        return [each[part.first] for each in padded]

    def vectors(network):
        decoder = getattr(network, name)
        return decoder(queries, stacked, key=key, dtype=jnp.float64, num_blocks=2)

    found, statistics = compiled(config, weights, vectors)()
    check(found[:7], reference.decode(own, inputs, training=training))
    expected = weights | {f"{name}/{array_name}": array for array_name, array in own.items()}
    check_statistics(statistics, expected, moved_from=weights if training else None)


def test_time_vectors():
    config = config_of("tirgn")
    weights = random_weights(config)
    found, _ = compiled(config, weights, lambda network: network.time_encoding(jnp.int32(364), 2))()
    for vectors, expected in zip(found, reference.time_vectors(part(weights, "time_encoding"), 364), strict=True):
        check(vectors, [expected, expected])


@pytest.mark.parametrize(
    ("model_type", "mode", "window"),
    [("regcn", "multiply", 0), ("tirgn", "multiply", 0), ("tirgn", "exclude", 2)],
)
def test_distributions_of_both_tasks(model_type, mode, window):
    """Evaluation, with queries that have seen nothing, something and much; running statistics."""
    config = config_of(model_type, history_mask_mode=mode, history_window=window)
    weights = random_weights(config)
    plain = Reference(weights, config)
    evolved = plain.evolve(PLAIN_FACTS, TIME)
    expected = (
        plain.entity_probabilities(evolved, PLAIN_FACTS, QUERIES, TIME),
        plain.relation_probabilities(evolved, PLAIN_FACTS, QUERIES, TIME),
    )
    history = HistoryVocabulary.build(FACTS, num_entities=N, num_relations=R, window=window)
    subject, relation, object_ = np.array(QUERIES, np.int32).T
    slices = history.object_slices(subject, relation, TIME), history.relation_slices(subject, object_, TIME)
    for each in slices:
        assert {0, 1} <= set((each[:, 1] - each[:, 0]).tolist())
    snapshots = snapshots_of(model_type)
    number = np.arange(len(QUERIES))

    def probabilities(network):
        state = evolution(snapshots, None)(network, snapshots.before(TIME, K))
        weight = np.ones(len(QUERIES), np.int32)
        tasks = (
            (network.entity_task, relation, slices[0], history.objects),
            (network.relation_task, object_, slices[1], history.relations),
        )
        return [
            jnp.exp(
                network.log_probabilities(
                    task(state, jnp.int32(TIME)),
                    jax.tree.map(jnp.asarray, Queries(subject, second, own, weight, number)),
                    History(jnp.asarray(index.targets), 64),
                    dtype=jnp.float64,
                )
            )
            for task, second, own, index in tasks
        ]

    found, statistics = compiled(config, weights, probabilities)()
    check(found[0], expected[0])
    check(found[1], expected[1])
    check_statistics(statistics, weights)


class TrainingSteps:
    """The loss of every timestamp's step by the trainer, with gradients and running statistics after it."""

    def __init__(self, config, block_size):
        self.config, self.weights = config, random_weights(config)
        snapshots = snapshots_of(config.model_type)
        history = HistoryVocabulary.build(FACTS, num_entities=N, num_relations=R, window=config.history_window)
        settings = {"history_length": K, "batch_size": 0, "seed": 0, "block_size": block_size}
        self.plan = plan_steps(FACTS, snapshots=snapshots, history=history, **settings)
        self._data = put_step_data(self.plan, snapshots, history)
        trainer, state = self._untouched_trainer()
        self._state = [self._filled(tree) for tree in (state.parameters, state.statistics)]
        gradient = jax.value_and_grad(trainer.loss, has_aux=True)
        self._step = jax.jit(gradient, static_argnums=5, compiler_options=QUICK)

    def _untouched_trainer(self):
        """A trainer and the shapes of its state, without the time that drawing a first state takes."""
        made = []
        static_graph = STATIC_GRAPH if self.config.num_words else None
        settings = {"compute_dtype": jnp.float64, "remat": False, "static_graph": static_graph}

        def make():
            trainer, state = make_trainer(self.config, TRAINING, **settings)
            made.append(trainer)
            return state

        state = jax.eval_shape(make)
        return made[0], state

    def _filled(self, tree):
        return fill(widened(tree), {name: self.weights[name] for name in flatten(tree)})

    def __call__(self, index):
        shape = self.plan.shapes[self.plan.shape_of[index]]
        arguments = (*self._state, self._data, jnp.int32(index), jax.random.key(0), shape)
        (loss, (_, statistics)), gradients = self._step(*arguments)
        return loss, flatten(gradients), flatten(statistics)

    def plain(self, index, weights=None):
        """The plain implementation's loss, and the network that it leaves."""
        network = Reference(weights or self.weights, self.config)
        start, time = self.plan.starts[index], int(self.plan.times[index])
        queries = self.plan.queries[start : start + self.plan.counts[index]].tolist()
        weights = {"task_weight": TRAINING.task_weight, "static_weight": TRAINING.static_weight}
        return network.loss(PLAIN_FACTS, time, queries, **weights), network


@cache
def training_steps(model_type, static):
    """RE-GCN's in two blocks of queries, TiRGN's in one."""
    steps = TrainingSteps(config_of(model_type, static=static), {"regcn": 8, "tirgn": 16}[model_type])
    assert {shape.entity.blocks for shape in steps.plan.shapes} == {2 if model_type == "regcn" else 1}
    return steps


CASES = pytest.mark.parametrize(("model_type", "static"), [("regcn", False), ("tirgn", True)])


@pytest.mark.parametrize(
    ("model_type", "static"), [pytest.param("regcn", False, marks=pytest.mark.slow), ("tirgn", True)]
)
def test_loss_and_running_statistics_of_a_training_step(model_type, static):
    steps = training_steps(model_type, static)
    assert steps.plan.times.tolist() == [1, 3, 4, 5]
    for index in range(len(steps.plan)):
        loss, _, statistics = steps(index)
        expected, after = steps.plain(index)
        check(loss, expected)
        for name in statistics.keys() - {"encoder/static/edges"}:
            check(statistics[name], after.weights[name], name)
            assert not np.array_equal(statistics[name], steps.weights[name]), name


@CASES
def test_gradients_are_difference_quotients_of_the_plain_loss(model_type, static):
    """For every array the derivative along a random direction, so that every entry counts."""
    steps = training_steps(model_type, static)
    index = len(steps.plan) - 1
    _, gradients, _ = steps(index)
    rng = np.random.default_rng(3)
    for name, gradient in gradients.items():
        assert gradient.dtype == np.float64
        direction = rng.normal(size=gradient.shape)

        def loss(step, name=name, direction=direction):
            return steps.plain(index, steps.weights | {name: steps.weights[name] + step * direction})[0]

        check_slope(np.sum(gradient * direction), loss, name)


def check_slope(found, function, name):
    """``found`` is the derivative of a plain function at 0, by a central difference."""
    quotient = (function(STEP) - function(-STEP)) / (2 * STEP)
    np.testing.assert_allclose(found, quotient, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("mode", ["multiply", "exclude"])
def test_likelihood_under_the_history_mask_and_its_gradients(mode):
    """Of queries that have seen the target, others only, or nothing."""
    logits, directions = np.random.default_rng(0).normal(size=(2, 2, 3, N))
    targets, seen = [2, 2, 4], [{0, 2, 5}, {1, 3}, set()]
    mask = np.array([[i in each for i in range(N)] for each in seen])

    def found(logits):
        raw, history = logits
        masked = mask_history(history, raw, jnp.asarray(mask), mode)
        return jnp.sum(mixture_nll([Component(0.7, raw), Component(0.3, masked)], jnp.arange(3), jnp.asarray(targets)))

    def plain(logits):
        total = 0.0
        for raw, history, target, own in zip(*logits, targets, seen, strict=True):
            copied = reference.copy_distribution(history, raw, own, mode)
            total -= np.log(0.7 * reference.softmax(raw)[target] + 0.3 * copied[target])
        return total

    value, gradients = jax.jit(jax.value_and_grad(found))(logits)
    check(value, plain(logits))
    for part_of in ("raw", "history"):
        chosen = directions * (np.arange(2) == ("raw", "history").index(part_of))[:, None, None]
        check_slope(np.sum(gradients * chosen), lambda step, chosen=chosen: plain(logits + step * chosen), part_of)


def test_with_a_static_graph_only_what_comes_from_words_has_a_gradient():
    steps = training_steps("tirgn", True)
    _, gradients, _ = steps(len(steps.plan) - 1)
    to_words, to_entities = np.split(gradients["encoder/static/block_weight"], 2)
    assert not gradients["encoder/entity_embedding"].any()
    assert not to_words.any()
    assert to_entities.all()
    assert gradients["encoder/static/word_embedding"].all()


@pytest.mark.parametrize("model_type", MODELS)
def test_a_forecaster_scores_as_the_plain_network(model_type):
    """In float32: a trained network's forecasts use the running statistics."""
    config = config_of(model_type, static=True)
    weights = random_weights(config)
    plain = Reference(weights, config)
    expected = plain.entity_probabilities(plain.evolve(PLAIN_FACTS, TIME), PLAIN_FACTS, QUERIES, TIME)
    subject, relation, _ = np.array(QUERIES, np.int32).T
    with jax.enable_x64(False):
        graphdef, state = nnx.split(nnx.eval_shape(lambda: build_network(config, key=jax.random.key(0))))
        single = {name: array if array.dtype == np.int32 else np.float32(array) for name, array in weights.items()}
        dataset = Dataset(tuple("ABCDEF"), tuple("012"), FACTS, Split(4, 5), TimeAxis(0, 86400, "1d"))
        context = ForecastContext.build(dataset, build_for(dataset, window=0), config)
        forecaster = NetworkForecaster(graphdef, fill(state, single), config=config, context=context, name="test")
        found = forecaster.at(TIME)(subject, relation)
    np.testing.assert_allclose(found, np.log(expected), atol=2e-5)
