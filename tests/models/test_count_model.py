"""The counting model against loops over the facts; its sparse loss against its scores."""

from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from geopol_tkg.checkpoint import fill, flatten
from geopol_tkg.config import ModelConfig
from geopol_tkg.data.counts import CountSizes, CountTables
from geopol_tkg.data.dataset import Dataset, Split, with_inverses
from geopol_tkg.data.paths import PathIndex
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.evaluation.evaluator import evaluate
from geopol_tkg.models.base import Block
from geopol_tkg.models.count_forecaster import CountContext, CountForecaster, _log_probabilities, seen_by
from geopol_tkg.models.counts import CountModel, Truths
from geopol_tkg.models.past import TILE, CountShape, count_shape, past_of

N, R, FIRST, LAST = 40, 3, -3, 9
HUB, NEVER = 0, N - 1  # met by nearly all, and without any facts
GAPS = (2, 5)
HALF_LIVES = (0.5, 3.0)
NO_ROOM = CountShape(1, 1, 1, 1, 1)
COUNTRIES = np.arange(N, dtype=np.int32) % 4 - 1  # -1 = none
COUNTRIES[[HUB, NEVER]] = 2
CONFIG = ModelConfig(
    model_type="counts", num_entities=N, num_relations=R, half_lives=HALF_LIVES, num_countries=3, num_paths=N
)
EVERY_QUERY = np.array([(s, r) for s in range(N) for r in range(2 * R)], np.int32).T
GRAPHDEF, SKELETON, FIXED = nnx.split(
    nnx.eval_shape(lambda: CountModel(CONFIG, key=jax.random.key(0))), nnx.Param, nnx.Not(nnx.Param)
)
FIXED = fill(FIXED, {"compatriots/countries": COUNTRIES})


def make_facts(seed=0):
    """Gaps in time, several relations at once between two, some that met themselves, and one that met many."""
    rng = np.random.default_rng(seed)
    times = np.setdiff1d(np.arange(FIRST, LAST + 1), GAPS)
    few = np.stack(
        [rng.choice(times, 300), rng.integers(1, 12, 300), rng.integers(0, R, 300), rng.integers(1, 12, 300)]
    )
    hub = np.stack([rng.choice(times, 80), np.zeros(80, int), rng.integers(0, R, 80), rng.integers(1, NEVER, 80)])
    rows = np.concatenate([few.T, hub.T, hub[[0, 3, 2, 1]].T[::3]])
    return np.unique(rows.astype(np.int32), axis=0)[:, [1, 2, 3, 0]]


FACTS = make_facts()


def random_weights(seed=0, *, scale=0.3):
    """All away from the zeros that training begins with."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, scale, leaf.shape).astype(np.float32) for name, leaf in flatten_shapes().items()}


def flatten_shapes():
    return flatten(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), SKELETON))


WEIGHTS = random_weights()


class World:
    """Tables of facts, and what the model makes of them."""

    def __init__(self, facts=FACTS):
        tables = CountTables.build(facts, num_entities=N, num_relations=R, half_lives=HALF_LIVES)
        self._sizes = CountSizes(tables, num_relations=R)
        self._tables = jax.device_put(tables)
        self._paths = PathIndex(facts, num_entities=N, half_lives=HALF_LIVES, num_paths=CONFIG.num_paths)
        pairs = np.unique(with_inverses(facts, R)[:, [0, 2]], axis=0)
        self._ranks = np.full((N + 1, N), 1000)  # of those that never meet
        self._ranks[*pairs.T] = self._sizes.ranks(*pairs.T)

    def shape(self, queries, time):
        """No more room than the queries of a time need."""
        real = queries[:, queries[0] < N]
        shape = count_shape(*real, self._sizes.of(*real, time))
        return CountShape(*(max(size, 1) for size in shape))

    def room(self, queries):
        """Enough for all times, so that little is compiled."""
        return self.shape(queries, LAST + 1)

    def past(self, time):
        return past_of(self._tables, jnp.int32(time), HALF_LIVES)

    def paths(self, time, queries):
        return self._paths.of(time, queries[0])

    def scores(self, time, queries=EVERY_QUERY, weights=WEIGHTS, *, shape=None):
        state = fill(SKELETON, weights)
        paths = self.paths(time, queries)
        return np.asarray(_scores(state, self.past(time), *queries, paths, shape=shape or self.room(queries)))

    def truths(self, queries, owners, objects):
        """Objects of some queries; padding has no subject."""
        subjects = np.append(queries[0], N)[owners]
        return Truths(*(np.asarray(part, np.int32) for part in (owners, objects, self._ranks[subjects, objects])))

    def loss(self, time, queries, targets, weights=WEIGHTS, *, dense=False):
        """Negative log-likelihoods [b] and their gradient, by the sparse sum or by all scores; one truth a query."""
        function = _dense if dense else _sparse
        shape, mask = self.room(queries), queries[0] < N
        truths = targets if dense else self.truths(queries, np.arange(len(targets)), targets)
        asked = self.past(time), *queries, self.paths(time, queries)
        (_, nll), gradient = function(fill(SKELETON, weights), *asked, truths, mask, shape=shape)
        return np.asarray(nll), flatten(gradient)


@partial(jax.jit, static_argnames="shape")
def _scores(state, past, subjects, relations, paths, *, shape):
    return nnx.merge(GRAPHDEF, state, FIXED).scores(past, subjects, relations, shape, paths)


@partial(jax.jit, static_argnames="shape")
@partial(jax.value_and_grad, has_aux=True)
def _sparse(state, past, subjects, relations, paths, truths, mask, *, shape):
    nll = nnx.merge(GRAPHDEF, state, FIXED).nll(past, subjects, relations, truths, shape, paths)
    return jnp.sum(jnp.where(mask, nll, 0)), nll


@partial(jax.jit, static_argnames="shape")
@partial(jax.value_and_grad, has_aux=True)
def _dense(state, past, subjects, relations, paths, targets, mask, *, shape):
    scores = nnx.merge(GRAPHDEF, state, FIXED).scores(past, subjects, relations, shape, paths)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), targets[:, None], axis=1)[:, 0]
    return jnp.sum(jnp.where(mask, nll, 0)), nll


@partial(jax.jit, static_argnames="shape")
def _nll_of_every_target(state, past, subjects, relations, paths, truths, *, shape):
    model = nnx.merge(GRAPHDEF, state, FIXED)
    return jax.lax.map(lambda own: model.nll(past, subjects, relations, own, shape, paths), truths)


@pytest.fixture(scope="module")
def world():
    return World()


class Reference:
    """The formula of the model's docstring in float64, fact by fact."""

    def __init__(self, facts, time, weights=WEIGHTS):
        self._time = time
        self._weights = {name: array.astype(np.float64) for name, array in weights.items()}
        past = [fact for fact in facts.tolist() if fact[3] < time]
        self._times = defaultdict(list)
        self._last = {}
        self._meetings = defaultdict(list)
        for s, _, o, t in past:
            if s != o:
                self._meetings[s, o].append(t)
                self._meetings[o, s].append(t)
        for s, r, o, t in past + [(o, r + R, s, t) for s, r, o, t in past]:
            is_inverse = r >= R
            for key in ((s, r, o), ("row", s, r), ("answer", r, o), ("pair", is_inverse, s, o), (is_inverse, o)):
                self._times[key].append(t)
            self._last[s, o] = max(self._last.get((s, o), (t, r)), (t, r))

    def features(self, *key):
        times = self._times.get(key)
        if times is None:
            return [0.0] * (len(HALF_LIVES) + 2)
        counts = [sum(2 ** (-(self._time - t) / life) for t in times) for life in HALF_LIVES]
        return [*np.log([1 + 20 * count for count in [*counts, len(times)]]), np.log(1 + self._time - max(times))]

    def net(self, name, features, context=()):
        part = {key.removeprefix(f"{name}/"): array for key, array in self._weights.items() if key.startswith(name)}
        hidden = features @ part["weight"] + np.array(context) @ part["context_weight"] + part["bias"]
        return np.maximum(hidden, 0) @ part["output"] + features @ part["linear"]

    def popularity(self, r, o, *, where=""):
        is_inverse = r >= R
        entity = np.array([*self.features(is_inverse, o), *self.features(not is_inverse, o)])
        score = self.net(f"{where}entity_net", entity)
        if ("answer", r, o) not in self._times:
            return score + (0 if where else self._weights["unseen_bias"][r])
        own = np.array([*self.features("answer", r, o), *entity])
        return score + self.net(f"{where}answer_net", own, self._weights[f"{where}answer_relations"][r])

    def paths(self, s):
        """For each half-life, then plain: [k + 1, n]."""
        known = np.zeros((N, N))
        for pair, times in self._meetings.items():
            known[pair] = np.log(1 + len(times))
        norms = np.linalg.norm(known, axis=0)
        found = np.zeros((len(HALF_LIVES) + 1, N))
        for (subject, x), times in self._meetings.items():
            if subject == s:
                counts = [sum(2 ** (-(self._time - t) / life) for t in times) for life in HALF_LIVES]
                for o in range(N):
                    if norms[o]:
                        cosine = known[:, x] @ known[:, o] / norms[x] / norms[o]
                        found[:, o] += np.array([*counts, len(times)]) * cosine
        return found

    def of_path(self, s, r, o):
        """What paths add."""
        if s == o or not self._of_paths[s][-1, o]:
            return 0
        features = np.array([*np.log(1 + 20 * self._of_paths[s][:, o]), *self.features("answer", r, o)])
        score = self.net("acquaintance/net", features, self._weights["acquaintance/path_relations"][r])
        return (
            score + features @ self._weights["acquaintance/relation_weights"][r] + self._weights["acquaintance/bias"][r]
        )

    def history(self, s, r, o):
        if (s, o) not in self._last:
            if COUNTRIES[s] < 0 or COUNTRIES[s] != COUNTRIES[o]:
                return self.of_path(s, r, o)
            return self._of_compatriots[r, o] + self.of_path(s, r, o)
        is_inverse = r >= R
        features = [
            *self.features(s, r, o),
            *self.features("pair", is_inverse, s, o),
            *self.features("pair", not is_inverse, s, o),
            *self.features("answer", r, o),
            float((s, r, o) in self._times),
        ]
        context = [*self._weights["history_relations"][r], *self.features("row", s, r)]
        _, last = self._last[s, o]
        after = self._weights["next_relation"][r] @ self._weights["last_relation"][last]
        own = np.array(features) @ self._weights["relation_weights"][r]
        return self.net("history_net", np.array(features), context) + own + after + self._weights["history_bias"][r]

    def scores(self):
        popularity = np.array([[self.popularity(r, o) for o in range(N)] for r in range(2 * R)])
        more = [[self.popularity(r, o, where="compatriots/") for o in range(N)] for r in range(2 * R)]
        self._of_paths = [self.paths(s) for s in range(N)]
        self._of_compatriots = np.array(more) + self._weights["compatriots/relation_bias"][:, None]
        return np.array([popularity[r] + [self.history(s, r, o) for o in range(N)] for s, r in EVERY_QUERY.T])


def log_softmax(scores):
    scores = scores.astype(np.float64)
    top = scores.max(axis=1, keepdims=True)
    return scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))


def test_the_world_of_these_tests_has_what_can_go_wrong():
    pairs = np.unique(FACTS[:, [0, 2, 3]], axis=0)
    assert len(pairs) < 0.95 * len(FACTS)
    assert (FACTS[:, 0] == FACTS[:, 2]).any()
    assert len(np.unique(FACTS[FACTS[:, 0] == HUB, 2])) > 2 * TILE
    assert NEVER not in FACTS[:, [0, 2]]
    assert (np.bincount(COUNTRIES + 1) > 2).all()
    are_compatriots = COUNTRIES[FACTS[:, 0]] == COUNTRIES[FACTS[:, 2]]
    assert 0.1 < are_compatriots.mean() < 0.9
    assert FACTS[:, 3].min() == FIRST < 0


@pytest.mark.parametrize("time", [FIRST, FIRST + 1, GAPS[0] + 1, LAST + 1, LAST + 40])
def test_scores_are_those_of_loops(world, time):
    found, expected = world.scores(time), Reference(FACTS, time).scores()
    np.testing.assert_allclose(log_softmax(found), log_softmax(expected), rtol=1e-5, atol=2e-5)
    if time > FIRST:
        assert log_softmax(expected).std() > 0.1


def some_queries(count, seed=0):
    """Queries that ask for what was met, what was not, and what never was; some are padding."""
    rng = np.random.default_rng(seed)
    queries = rng.integers([0, 0], [N, 2 * R], (count, 2)).T.astype(np.int32)
    queries[0, ::5] = HUB
    queries[:, count // 2] = NEVER, 0
    queries[:, -3:] = [[N], [2 * R]]
    return queries, rng.integers(0, N, count).astype(np.int32)


def assert_same_loss(world, time, weights, queries, targets, **tolerance):
    nll, gradient = world.loss(time, queries, targets, weights)
    dense, wanted = world.loss(time, queries, targets, weights, dense=True)
    real = queries[0] < N
    assert np.isfinite(nll).all()
    np.testing.assert_allclose(nll[real], dense[real], **tolerance)
    for name, array in wanted.items():
        np.testing.assert_allclose(gradient[name], array, **tolerance, err_msg=name)


@pytest.mark.parametrize("time", [FIRST, FIRST + 1, 4, LAST + 1])
def test_the_sparse_loss_is_that_of_all_scores(world, time):
    queries, targets = some_queries(90)
    assert_same_loss(world, time, WEIGHTS, queries, targets, rtol=1e-4, atol=2e-4)


def test_the_loss_of_every_target(world):
    """Met and not met, seen with the relation and not: the same probability as by the scores, all summing to 1."""
    shape = world.room(EVERY_QUERY)
    owners = np.arange(EVERY_QUERY.shape[1])
    each = [world.truths(EVERY_QUERY, owners, np.full_like(owners, target)) for target in range(N)]
    truths = jax.tree.map(lambda *parts: np.stack(parts), *each)
    asked = world.past(4), *EVERY_QUERY, world.paths(4, EVERY_QUERY)
    nll = _nll_of_every_target(fill(SKELETON, WEIGHTS), *asked, truths, shape=shape)
    np.testing.assert_allclose(-nll.T, log_softmax(world.scores(4)), rtol=1e-5, atol=2e-5)


@partial(jax.jit, static_argnames="shape")
@partial(jax.value_and_grad, has_aux=True)
def _of_truths(state, past, subjects, relations, paths, truths, *, shape):
    nll = nnx.merge(GRAPHDEF, state, FIXED).nll(past, subjects, relations, truths, shape, paths)
    nll = jnp.where(truths.query < len(subjects), nll, 0)
    return jnp.sum(nll), nll


@partial(jax.jit, static_argnames="shape")
@partial(jax.value_and_grad, has_aux=True)
def _dense_filtered(state, past, subjects, relations, paths, truths, excluded, *, shape):
    scores = nnx.merge(GRAPHDEF, state, FIXED).scores(past, subjects, relations, shape, paths)
    own = scores.at[truths.query].get(mode="clip")
    kept = jax.nn.log_softmax(jnp.where(excluded, -jnp.inf, own))
    nll = -jnp.take_along_axis(kept, truths.objects[:, None], axis=1)[:, 0]
    nll = jnp.where(truths.query < len(subjects), nll, 0)
    return jnp.sum(nll), nll


ASKED = {time: rows[rows[:, 3] == time] for rows in [with_inverses(FACTS, R)] for time in (FIRST, 4, LAST)}
MOST = max(map(len, ASKED.values()))


@pytest.mark.parametrize("time", ASKED)
def test_other_truths_of_a_query_are_no_candidates(world, time):
    """Met before or not: they are taken out of the sum, as the evaluation's filter takes them out of the ranking."""
    # as many queries and truths, and the same room, at all times, for which one program serves
    pairs, owners = np.unique(ASKED[time][:, :2], axis=0, return_inverse=True)
    order = np.argsort(owners, kind="stable")
    queries = np.full((2, MOST), [[N], [2 * R]], np.int32)
    queries[:, : len(pairs)] = pairs.T
    room = MOST - len(order)
    owners = np.append(owners[order], np.full(room, MOST))
    truths = world.truths(queries, owners, np.append(ASKED[time][order, 2], np.zeros(room, int)))
    same = (owners == owners[:, None]) & (owners < MOST)
    excluded = np.zeros((MOST, N), bool)
    for i, j in np.argwhere(same & ~np.eye(MOST, dtype=bool)):
        excluded[i, truths.objects[j]] = True
    assert excluded.any()
    shape = CountShape(*map(max, zip(*(world.room(rows[:, :2].T) for rows in ASKED.values()), strict=True)))
    arguments = (fill(SKELETON, WEIGHTS), world.past(time), *queries, world.paths(time, queries), truths)
    (_, nll), gradient = _of_truths(*arguments, shape=shape)
    (_, wanted), wanted_gradient = _dense_filtered(*arguments, excluded, shape=shape)
    np.testing.assert_allclose(nll, wanted, rtol=1e-4, atol=2e-5)
    for name, array in flatten(gradient).items():
        np.testing.assert_allclose(array, flatten(wanted_gradient)[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_every_parameter_receives_a_gradient(world):
    _, gradient = world.loss(LAST + 1, *some_queries(90))
    for name, array in gradient.items():
        assert array.size == 0 or np.abs(array).max() > 1e-6, name


def weights_of(**changed):
    """Zeros but for some, by their names with _ for /."""
    return {name: changed.get(name.replace("/", "_"), np.zeros_like(array)) for name, array in WEIGHTS.items()}


def by_plain_count(name, weight, part=0):
    """A net that adds this times the logarithm of a plain count, that of its features' given part."""
    linear = np.zeros_like(WEIGHTS[f"{name.replace('compatriots_', 'compatriots/')}/linear"])
    linear[part * (len(HALF_LIVES) + 2) + len(HALF_LIVES)] = weight
    return {f"{name}_linear": linear}


def bias(value):
    return np.full(2 * R, value, np.float32)


CONCENTRATED = {
    "a met entity holds all": by_plain_count("history_net", 20, 1),
    "a popular entity holds all": by_plain_count("entity_net", 20),
    "an answer holds all": by_plain_count("answer_net", 20),
    "an entity that was never seen with the relation": {"unseen_bias": bias(40)},
    "what was met holds little": by_plain_count("entity_net", 2) | {"history_bias": bias(-3)},
    "what was met holds nothing": {"history_bias": bias(-60)},
    "answers hold nothing": {"unseen_bias": bias(60)},
    "the subject's country holds all": {"compatriots_relation_bias": bias(40)},
    "the subject's country holds nothing": {"compatriots_relation_bias": bias(-60)},
    "some of the subject's country hold much": by_plain_count("compatriots_entity_net", 1),
    "what paths lead to holds all": {"acquaintance_bias": bias(40)},
    "what paths lead to holds nothing": {"acquaintance_bias": bias(-60)},
}


@pytest.mark.parametrize("changed", CONCENTRATED.values(), ids=CONCENTRATED)
def test_the_sparse_loss_where_few_hold_nearly_all_probability(world, changed):
    queries, targets = some_queries(90)
    assert_same_loss(world, LAST + 1, weights_of(**changed), queries, targets, rtol=2e-3, atol=2e-3)


BEYOND = {
    "the popular were met and hold nothing": by_plain_count("entity_net", 8) | {"history_bias": bias(-200)},
    "the popular were seen with the relation and hold nothing": by_plain_count("entity_net", 8)
    | by_plain_count("answer_net", -50),
    "the popular of the subject's country were met and hold little": by_plain_count("compatriots_entity_net", 20),
}


@pytest.mark.parametrize("changed", BEYOND.values(), ids=BEYOND)
def test_what_rounding_hides_is_never_taken_for_less_than_it_is(world, changed):
    """The sum over entities that were not met is a difference: too small a one would reward the model for it."""
    queries, targets = some_queries(90)
    weights = weights_of(**changed)
    nll, gradient = world.loss(LAST + 1, queries, targets, weights)
    dense, _ = world.loss(LAST + 1, queries, targets, weights, dense=True)
    real = queries[0] < N
    assert (nll[real] > dense[real] - 2e-3).all()
    assert (nll[real] > dense[real] + 1).any()
    assert all(np.isfinite(array).all() for array in gradient.values())


@pytest.mark.parametrize("scale", [1, 10, 1000])
def test_large_weights_give_finite_losses_and_gradients(world, scale):
    queries, targets = some_queries(90)
    weights = random_weights(scale=scale)
    nll, gradient = world.loss(LAST + 1, queries, targets, weights)
    assert np.isfinite(nll).all()
    assert (nll[queries[0] < N] >= -1e-3).all()
    assert all(np.isfinite(array).all() for array in gradient.values())
    assert np.isfinite(world.scores(LAST + 1, weights=weights)).all()


def test_a_query_depends_on_no_other(world):
    together = world.scores(7)
    order = np.random.default_rng(0).permutation(len(together))
    shuffled = EVERY_QUERY[:, order]
    np.testing.assert_array_equal(world.scores(7, shuffled), together[order])
    part = slice(30, 37)
    alone = world.scores(7, shuffled[:, part], shape=world.shape(shuffled[:, part], 7))
    np.testing.assert_allclose(alone, together[order][part], rtol=1e-6, atol=1e-6)


def test_padded_queries_and_room_to_spare_change_nothing(world):
    padding = np.array([[N] * 5, [2 * R] * 5], np.int32)
    queries = np.concatenate([EVERY_QUERY, padding], axis=1)
    found = world.scores(7, queries, shape=world.shape(EVERY_QUERY, 7))
    np.testing.assert_allclose(found[:-5], world.scores(7), rtol=1e-6, atol=1e-6)
    assert np.isfinite(found).all()


def test_padding_takes_no_room_whatever_relation_it_names(world):
    """Blocks of a network are padded with the plan's first relation."""
    queries = EVERY_QUERY[:, EVERY_QUERY[1] == 4]
    padded = np.concatenate([queries, [[N] * 5, [0] * 5]], axis=1)
    found = world.scores(LAST + 1, padded, shape=world.shape(queries, LAST + 1))
    np.testing.assert_allclose(found[:-5], world.scores(LAST + 1, queries), rtol=1e-6, atol=1e-6)


def make_dataset(facts):
    names = [tuple(f"{kind} {i}" for i in range(size)) for kind, size in (("E", N), ("R", R))]
    return Dataset(*names, facts, Split(6, 8), TimeAxis(0, 1, None))


def forecaster(facts, *, horizon=None, countries=COUNTRIES):
    context = CountContext.build(make_dataset(facts), CONFIG)
    state = nnx.merge_state(fill(SKELETON, WEIGHTS), fill(FIXED, {"compatriots/countries": countries}))
    return CountForecaster(GRAPHDEF, state, config=CONFIG, context=context, name="counts", horizon=horizon)


def rewritten(time):
    """Other facts at and after a time, the same before it."""
    past = FACTS[FACTS[:, 3] < time]
    future = make_facts(1)
    return np.concatenate([past, future[future[:, 3] >= time]])


@pytest.mark.parametrize("horizon", [None, 4])
def test_scores_depend_on_the_past_only(horizon):
    time, visible = 7, horizon or 7
    own, other = (forecaster(facts, horizon=horizon) for facts in (FACTS, rewritten(visible)))
    found = np.asarray(own.at(time)(*EVERY_QUERY))
    np.testing.assert_array_equal(found, other.at(time)(*EVERY_QUERY))
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)
    if horizon is None:
        assert not np.array_equal(own.at(time + 1)(*EVERY_QUERY), other.at(time + 1)(*EVERY_QUERY))
    else:
        earlier = forecaster(FACTS[FACTS[:, 3] < horizon])
        np.testing.assert_allclose(found, earlier.at(time)(*EVERY_QUERY), rtol=1e-6, atol=1e-6)
        assert not np.allclose(found, forecaster(FACTS).at(horizon)(*EVERY_QUERY))  # ages reach to the time asked
        assert not np.allclose(found, forecaster(FACTS).at(time)(*EVERY_QUERY))


def small_forecaster():
    """One that has room for nothing yet."""
    model = forecaster(FACTS)
    model._context.shape = NO_ROOM
    return model


def test_a_forecaster_grows_with_its_queries_and_scores_as_before():
    score = small_forecaster().at(LAST + 1)
    alone = np.asarray(score(*EVERY_QUERY[:, 9:10]))
    together = np.asarray(score(*EVERY_QUERY))
    np.testing.assert_allclose(alone[0], together[9], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(together, log_softmax(Reference(FACTS, LAST + 1).scores()), rtol=1e-5, atol=2e-5)


def test_all_blocks_of_an_evaluation_are_scored_by_one_program():
    programs = _log_probabilities._cache_size()
    evaluate(small_forecaster(), make_dataset(FACTS), block_size=9)
    assert _log_probabilities._cache_size() == programs + 1


def test_a_horizon_may_lie_before_all_that_int32_counts():
    """As of multi-step forecasts of train, asked on a dataset older than the model's."""
    hidden = forecaster(FACTS, horizon=-(2**31) - 50).at(7)(*EVERY_QUERY)
    np.testing.assert_array_equal(hidden, forecaster(FACTS, horizon=-5).at(7)(*EVERY_QUERY))


@pytest.mark.parametrize("horizon", [None, 3])
def test_room_is_made_for_what_will_be_asked(horizon):
    model = forecaster(FACTS, horizon=horizon)
    context, size = model._context, EVERY_QUERY.shape[1]
    blocks = [Block(time, *EVERY_QUERY[:, size - 1 :: -step]) for time, step in ((4, 60), (6, 20), (7, 7))]
    context.shape = NO_ROOM
    grown = [context.room_for(block) for block in seen_by(blocks, horizon)]
    assert len(set(grown)) > 1
    context.shape = NO_ROOM
    model.expect(blocks)
    expected = context.shape
    assert {context.room_for(block) for block in seen_by(blocks, horizon)} == {expected}
    assert all(size <= 2 * most for size, most in zip(expected, grown[-1], strict=True))


def test_relabelled_entities_permute_the_scores():
    new_id = np.random.default_rng(1).permutation(N).astype(np.int32)
    facts = FACTS.copy()
    facts[:, [0, 2]] = new_id[facts[:, [0, 2]]]
    queries = np.stack([new_id[EVERY_QUERY[0]], EVERY_QUERY[1]])
    found = np.asarray(forecaster(facts, countries=COUNTRIES[np.argsort(new_id)]).at(7)(*queries))
    np.testing.assert_allclose(found[:, new_id], forecaster(FACTS).at(7)(*EVERY_QUERY), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_loss_over_many_entities_needs_memory_for_entities_not_for_queries_times_entities():
    block, size, relations, time = 1024, 500_000, 250, 49
    config = ModelConfig(model_type="counts", num_entities=size, num_relations=relations)
    rng = np.random.default_rng(0)
    facts = rng.integers([0, 0, 0, 0], [size, relations, size, time + 1], (100_000, 4)).astype(np.int32)
    facts = facts[np.argsort(facts[:, 3], kind="stable")]
    tables = CountTables.build(facts, num_entities=size, num_relations=relations, half_lives=config.half_lives)
    queries, targets = facts[-block:, :2].T, facts[-block:, 2]
    sizes = CountSizes(tables, num_relations=relations)
    shape = count_shape(*queries, sizes.of(*queries, time))
    truths = Truths(np.arange(block), targets, sizes.ranks(queries[0], targets))
    graphdef, state = nnx.split(CountModel(config, key=jax.random.key(0)))

    @jax.jit
    @jax.value_and_grad
    def loss(state, tables, queries, truths):
        past = past_of(tables, jnp.int32(time), config.half_lives)
        return jnp.mean(nnx.merge(graphdef, state).nll(past, *queries, truths, shape))

    arguments = (state, jax.device_put(tables), queries, truths)
    compiled = loss.lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < block * size  # a quarter of float32 [b, n]
    assert np.isfinite(compiled(*arguments)[0])
