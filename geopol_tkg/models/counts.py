"""A forecaster that counts: what was true before between these two, how often, and how lately.

The score of an object ``o`` for a query ``(s, r, ?, t)`` is its popularity plus, where ``s`` and ``o`` have
met before ``t``, what their own past adds::

    score(s, r, o) = popularity(r, o) + [met] history(s, r, o)

Both parts are small networks over counts of the facts before ``t`` at several decays, and the time since the
last one: of ``(s, r, o)``, of ``(s, ., o)`` in either direction, of ``(s, r, .)``, of ``(., r, o)`` and of
``o``. The two terms extend strict and relaxed recurrency (Gastinger et al., "History Repeats Itself", IJCAI
2024), with weights that are learned. Only meetings, and the pairs of a relation and an object that occurred,
are looked at one by one: the sum over all other entities is that of their popularity, computed once.

Where labels name countries, an entity that ``s`` has never met has a popularity of its own if it is of the country
of ``s``: from the same counts, by networks of their own. The sums then are one for each country.

With ``num_paths``, so have those entities to which most paths lead (:mod:`geopol_tkg.data.paths`).

Axis letters: n entities, r2 relations in both directions, b queries, x distinct relations, f features, m meetings,
a answers (pairs of a relation and an object), c countries, p paths' ends, t tiles of ``past.TILE`` entries.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from geopol_tkg.config import ModelConfig
from geopol_tkg.data.paths import Paths
from geopol_tkg.models.layers import uniform
from geopol_tkg.models.past import TILE, CountShape, Entries, Past, Popularity, answer_of, look_up

HIDDEN, POPULARITY_HIDDEN, RELATION_DIM = 32, 16, 8
LEAST_REST = 1e-5  # share of a float32 sum that is known well once other terms are taken away


class Countries(nnx.Variable):
    """Country of each entity, int32 [n], -1 = none: part of a model's state, never trained."""


class Scores(NamedTuple):
    """How popular entities are as answers, whoever asks.

    Attributes:
        entities: [2, n], without their relation, as objects of relations and of their inverses.
        bias: [x], what the relation adds to those never seen with it.
        answers: [a], of those that were.
    """

    entities: Array
    bias: Array
    answers: Array


class Truths(NamedTuple):
    """What is true at the time of queries.

    Attributes:
        query: int32 [h], ascending; b = padding.
        objects: int32 [h].
        ranks: int32 [h], which of the entities that the subject ever meets each is, in the order of meeting.
    """

    query: Array
    objects: Array
    ranks: Array


class CountModel(nnx.Module):
    """Learned weights of counts, which are looked up in :class:`CountTables`; and the country of each entity."""

    def __init__(self, config: ModelConfig, *, key: Array) -> None:
        keys = iter(jax.random.split(key, 8))
        f, r2 = len(config.half_lives) + 2, 2 * config.num_relations
        self.config = config
        self.entity_net = Net(2 * f, 0, POPULARITY_HIDDEN, key=next(keys))
        self.answer_net = Net(3 * f, RELATION_DIM, POPULARITY_HIDDEN, key=next(keys))
        self.history_net = Net(4 * f + 1, RELATION_DIM + f, HIDDEN, key=next(keys))
        self.answer_relations = nnx.Param(_small_normal(next(keys), (r2, RELATION_DIM)))
        self.history_relations = nnx.Param(_small_normal(next(keys), (r2, RELATION_DIM)))
        self.relation_weights = nnx.Param(jnp.zeros((r2, 4 * f + 1)))
        self.unseen_bias = nnx.Param(jnp.zeros(r2))
        self.history_bias = nnx.Param(jnp.zeros(r2))
        self.next_relation = nnx.Param(_small_normal(next(keys), (r2, 2 * RELATION_DIM)))
        self.last_relation = nnx.Param(jnp.zeros((r2, 2 * RELATION_DIM)))
        self.compatriots = Compatriots(config, key=next(keys)) if config.num_countries else None
        self.acquaintance = Acquaintance(config, key=next(keys)) if config.num_paths else None

    def nll(
        self,
        past: Past,
        subjects: Array,
        relations: Array,
        truths: Truths,
        shape: CountShape,
        paths: Paths | None = None,
    ) -> Array:
        """Negative log-likelihood [h] of truths; a padded query has subject n.

        A query's other truths are no candidates, as in evaluation.

        Args:
            paths: of the subjects, where the model looks at them.
        """
        common, entries = look_up(past, subjects, relations, shape, self.config)
        popularity = self._popularity(common)
        query = jnp.minimum(entries.query, len(subjects) - 1)
        base = self._base(common, popularity[0], query[:, None], entries.objects, entries.answer)
        score = jnp.where(entries.valid, base + self._history(common, entries), -jnp.inf)
        base = self._unmet(common, popularity, subjects, query[:, None], entries.objects, entries.answer)
        base = jnp.where(entries.valid, base, -jnp.inf)
        unmet = self._log_totals(common, popularity, subjects)
        top = jnp.maximum(unmet, _per_query(jnp.max(score, axis=1), entries.query, len(subjects), jax.ops.segment_max))
        if self.acquaintance is not None:
            assert paths is not None
            known, added = self._led_to(past, common, popularity, subjects, paths)
            led_to = known + added
            top = jnp.maximum(top, jnp.max(led_to, axis=1))
        top = jax.lax.stop_gradient(top)

        own = jnp.minimum(truths.query, len(subjects) - 1)
        answer = answer_of(past.tables, common, common.relation_of[own], truths.objects)
        popular = self._unmet(common, popularity, subjects, own, truths.objects, answer)
        is_met = truths.ranks < entries.lengths[own]
        entry = jnp.where(is_met, entries.first_tiles[own] * TILE + truths.ranks, score.size)
        true_score = jnp.where(is_met, score.reshape(-1).at[entry].get(mode="clip"), popular)
        is_real = truths.query < len(subjects)
        is_true = jnp.zeros(score.size, bool).at[jnp.where(is_real, entry, score.size)].set(True, mode="drop")
        false = jnp.where(is_true.reshape(score.shape), -jnp.inf, score)

        sums = jnp.stack([jnp.sum(jnp.exp(part - top[query][:, None]), axis=1) for part in (false, base)], axis=1)
        met, replaced = _per_query(sums, entries.query, len(subjects), jax.ops.segment_sum).T
        looked_at = is_met
        if self.acquaintance is not None:
            assert paths is not None
            is_there = paths.objects[own] == truths.objects[:, None]
            place = jnp.argmax(is_there, axis=1)
            is_led_to = jnp.any(is_there, axis=1)
            looked_at |= is_led_to
            true_score = jnp.where(is_led_to, led_to[own, place], true_score)
            place = jnp.where(is_led_to & is_real, place, led_to.shape[1])
            is_true = jnp.zeros(led_to.shape, bool).at[own, place].set(True, mode="drop")
            replaced += jnp.sum(jnp.exp(known - top[:, None]), axis=1)
            met += jnp.sum(jnp.exp(jnp.where(is_true, -jnp.inf, led_to) - top[:, None]), axis=1)
        new = jnp.where(looked_at, 0, jnp.exp(popular - top[own]))
        replaced += _per_query(new, truths.query, len(subjects), jax.ops.segment_sum)
        others = _rest(jnp.exp(unmet - top), replaced) + met
        return jnp.log(others[own] + jnp.exp(true_score - top[own])) + top[own] - true_score

    def scores(
        self, past: Past, subjects: Array, relations: Array, shape: CountShape, paths: Paths | None = None
    ) -> Array:
        """Scores of every entity, up to a constant of the query: [b, n]; a padded query has subject n."""
        common, entries = look_up(past, subjects, relations, shape, self.config)
        rows, *of_compatriots = (self._rows(common, scores)[common.relation_of] for scores in self._popularity(common))
        query = jnp.where(entries.valid, entries.query[:, None], len(subjects))
        met = rows.at[query, entries.objects].get(mode="clip") + self._history(common, entries)
        if self.compatriots is not None:
            everyone = jnp.arange(self.config.num_entities)
            rows = jnp.where(self.compatriots.are(subjects[:, None], everyone), of_compatriots[0], rows)
        if self.acquaintance is not None:
            assert paths is not None
            _, added = self._of_paths(past, common, paths)
            rows = rows.at[jnp.arange(len(subjects))[:, None], paths.objects].add(added, mode="drop")
        return rows.at[query, entries.objects].set(met, mode="drop")

    def _popularity(self, common: Popularity) -> tuple[Scores, ...]:
        """Of entities; where there are countries, also of those of the subject's country."""
        relation = common.relations.at[common.owners].get(mode="clip")
        direction = self._direction(relation)
        features = jnp.concatenate([common.answers, common.entities[direction, common.objects]], axis=1)
        entities = self.entity_net(common.entities)
        answers = self.answer_net(features, self.answer_relations[...].at[relation].get(mode="clip"))
        bias = self.unseen_bias[...].at[common.relations].get(mode="clip")
        scores = Scores(entities, bias, entities[direction, common.objects] + answers)
        if self.compatriots is None:
            return (scores,)
        entities, bias, answers = self.compatriots(common, features)
        answers += entities[direction, common.objects]
        return scores, Scores(scores.entities + entities, scores.bias + bias, scores.answers + answers)

    def _base(self, common: Popularity, scores: Scores, query: Array, objects: Array, answer: Array) -> Array:
        """Popularity of objects under the relations of their queries."""
        slot = common.relation_of[query]
        unseen = scores.entities[self._direction(common.relations[slot]), objects] + scores.bias[slot]
        return jnp.where(answer >= 0, scores.answers[jnp.maximum(answer, 0)], unseen)

    def _unmet(
        self,
        common: Popularity,
        popularity: tuple[Scores, ...],
        subjects: Array,
        query: Array,
        objects: Array,
        answer: Array,
    ) -> Array:
        """What objects score, as long as the subject of their query has not met them."""
        base = self._base(common, popularity[0], query, objects, answer)
        if self.compatriots is None:
            return base
        own = self._base(common, popularity[1], query, objects, answer)
        return jnp.where(self.compatriots.are(subjects[query], objects), own, base)

    def _history(self, common: Popularity, entries: Entries) -> Array:
        """What the past of subject and object adds: [t, TILE]."""
        query = jnp.minimum(entries.query, len(common.relation_of) - 1)
        slot = common.relation_of[query]
        relation = common.relations[slot]
        seen = (entries.answer >= 0)[..., None]
        answers = jnp.where(seen, common.answers[jnp.maximum(entries.answer, 0)], 0)
        size = common.answers.shape[1]
        is_repeat = entries.features[..., size - 2 : size - 1] > 0  # the plain count
        features = jnp.concatenate([entries.features, answers, is_repeat], axis=-1)
        context = jnp.concatenate(
            [self.history_relations[...].at[relation].get(mode="clip"), entries.rows[query]], axis=-1
        )
        after = self.next_relation[...].at[common.relations].get(mode="clip") @ self.last_relation[...].T
        history = self.history_net(features, context[:, None]) + after[slot[:, None], entries.last_relation]
        history += jnp.einsum("tmf,tf->tm", features, self.relation_weights[...].at[relation].get(mode="clip"))
        return history + self.history_bias[...].at[relation].get(mode="clip")[:, None]

    def _led_to(
        self, past: Past, common: Popularity, popularity: tuple[Scores, ...], subjects: Array, paths: Paths
    ) -> tuple[Array, Array]:
        """What entities that paths lead to score without them, -inf = no path; and what paths add: [b, p] each."""
        answer, added = self._of_paths(past, common, paths)
        query = jnp.arange(len(subjects))[:, None]
        base = self._unmet(common, popularity, subjects, query, paths.objects, answer)
        return jnp.where(paths.objects < self.config.num_entities, base, -jnp.inf), added

    def _of_paths(self, past: Past, common: Popularity, paths: Paths) -> tuple[Array, Array]:
        """Place of what paths lead to among the answers, -1 = none, and what paths add to its score: [b, p] each."""
        assert self.acquaintance is not None
        answer = answer_of(past.tables, common, common.relation_of[:, None], paths.objects)
        return answer, self.acquaintance(common, paths, answer)

    def _rows(self, common: Popularity, scores: Scores) -> Array:
        """Of every entity under each relation: [x, n]."""
        rows = scores.entities[self._direction(common.relations)] + scores.bias[:, None]
        return rows.at[common.owners, common.objects].set(scores.answers, mode="drop")

    def _log_totals(self, common: Popularity, popularity: tuple[Scores, ...], subjects: Array) -> Array:
        """Log of the sum of ``exp(score)`` over all entities, if the subject had met none: [b]."""
        everyone = self._log_sums(common, popularity[0])[common.relation_of]
        if self.compatriots is None:
            return everyone
        country = self.compatriots.countries[...]
        own = country.at[subjects].get(mode="fill", fill_value=-1)
        where = common.relation_of, jnp.maximum(own, 0)
        before, after = (self._log_sums_of_countries(common, scores, country)[where] for scores in popularity)
        others = everyone + jnp.log(_rest(jnp.ones_like(before), jnp.exp(before - everyone)))
        return jnp.where(own >= 0, jnp.logaddexp(others, after), everyone)

    def _log_sums(self, common: Popularity, scores: Scores) -> Array:
        """Log of the sum of ``exp(popularity)`` over all entities, for each distinct relation: [x]."""
        count = len(common.relations)
        direction = self._direction(common.relations)
        owners = common.owners
        own = jnp.minimum(owners, count - 1)
        largest = jax.lax.stop_gradient(jnp.max(scores.entities, axis=1))
        everyone = jnp.exp(scores.entities - largest[:, None])
        answers = jnp.where(owners < count, scores.answers, -jnp.inf)
        top = jax.ops.segment_max(answers, owners, count, indices_are_sorted=True)
        top = jax.lax.stop_gradient(jnp.maximum(top, largest[direction] + scores.bias))
        parts = jnp.stack([jnp.exp(answers - top[own]), everyone[direction[own], common.objects]], axis=1)
        seen, replaced = jax.ops.segment_sum(parts, owners, count, indices_are_sorted=True).T
        unseen = _rest(jnp.sum(everyone, axis=1)[direction], replaced) * jnp.exp(largest[direction] + scores.bias - top)
        return jnp.log(unseen + seen) + top

    def _log_sums_of_countries(self, common: Popularity, scores: Scores, country: Array) -> Array:
        """The same over the entities of each country: [x, c]."""
        count, size = len(common.relations), self.config.num_countries
        direction = self._direction(common.relations)
        place = jnp.where(country >= 0, country, size)
        own = jnp.minimum(common.owners, count - 1), place[common.objects]
        row = jnp.where(common.owners < count, common.owners, count), own[1]
        fixed = jax.lax.stop_gradient(scores)
        largest = jnp.full((2, size), -jnp.inf).at[:, place].max(fixed.entities, mode="drop")
        everyone = jnp.exp(scores.entities - largest.at[:, place].get(mode="fill", fill_value=jnp.inf))
        whole = jnp.zeros((2, size)).at[:, place].add(everyone, mode="drop")
        top = (largest[direction] + fixed.bias[:, None]).at[row].max(fixed.answers, mode="drop")
        answers = jnp.exp(scores.answers - top.at[own].get(mode="fill", fill_value=jnp.inf))
        parts = jnp.stack([answers, everyone[direction[own[0]], common.objects]], axis=1)
        seen, replaced = jnp.moveaxis(jnp.zeros((count, size, 2)).at[row].add(parts, mode="drop"), 2, 0)
        unseen = _rest(whole[direction], replaced) * jnp.exp(largest[direction] + scores.bias[:, None] - top)
        return jnp.log(unseen + seen) + top

    def _direction(self, relations: Array) -> Array:
        return (relations >= self.config.num_relations).astype(jnp.int32)


class Compatriots(nnx.Module):
    """What entities of the subject's country have beyond the popularity that they have with all subjects."""

    def __init__(self, config: ModelConfig, *, key: Array) -> None:
        keys = jax.random.split(key, 3)
        f, r2 = len(config.half_lives) + 2, 2 * config.num_relations
        self.entity_net = Net(2 * f, 0, POPULARITY_HIDDEN, key=keys[0])
        self.answer_net = Net(3 * f, RELATION_DIM, POPULARITY_HIDDEN, key=keys[1])
        self.answer_relations = nnx.Param(_small_normal(keys[2], (r2, RELATION_DIM)))
        self.relation_bias = nnx.Param(jnp.zeros(r2))
        self.countries = Countries(jnp.full(config.num_entities, -1, jnp.int32))

    def __call__(self, common: Popularity, features: Array) -> Scores:
        """Answers [a] without what their entities have, from features [a, 3f]."""
        bias = self.relation_bias[...].at[common.relations].get(mode="clip")
        slot = jnp.minimum(common.owners, len(common.relations) - 1)
        context = self.answer_relations[...].at[common.relations[slot]].get(mode="clip")
        return Scores(self.entity_net(common.entities), bias, self.answer_net(features, context) + bias[slot])

    def are(self, subjects: Array, objects: Array) -> Array:
        """Whether two are of one country; arrays that broadcast."""
        country = self.countries[...]
        own = country.at[subjects].get(mode="fill", fill_value=-1)
        return (own >= 0) & (own == country[objects])


class Acquaintance(nnx.Module):
    """What paths add to the score of an entity that the subject has not met."""

    def __init__(self, config: ModelConfig, *, key: Array) -> None:
        keys = jax.random.split(key, 2)
        f, r2 = len(config.half_lives) + 2, 2 * config.num_relations
        self.net = Net(2 * f - 1, RELATION_DIM, POPULARITY_HIDDEN, key=keys[0])
        self.path_relations = nnx.Param(_small_normal(keys[1], (r2, RELATION_DIM)))
        self.relation_weights = nnx.Param(jnp.zeros((r2, 2 * f - 1)))
        self.bias = nnx.Param(jnp.zeros(r2))

    def __call__(self, common: Popularity, paths: Paths, answer: Array) -> Array:
        """For each query and what paths lead to, with its place among the answers, -1 = none: [b, p]."""
        relation = common.relations[common.relation_of]
        answers = jnp.where((answer >= 0)[..., None], common.answers[jnp.maximum(answer, 0)], 0)
        features = jnp.concatenate([paths.features, answers], axis=-1)
        found = self.net(features, self.path_relations[...].at[relation].get(mode="clip")[:, None])
        found += jnp.einsum("bpf,bf->bp", features, self.relation_weights[...].at[relation].get(mode="clip"))
        return found + self.bias[...].at[relation].get(mode="clip")[:, None]


def set_countries(model: nnx.Module, countries: ArrayLike) -> None:
    """Put the country of each entity, int32 [n], where a freshly built model has room for it."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Compatriots):
            module.countries[...] = jnp.asarray(countries)


class Net(nnx.Module):
    """A perceptron with one hidden layer and one output, beside a linear function of its features.

    Features differ from entry to entry, the context is shared by many: its product is computed once.
    """

    def __init__(self, num_features: int, num_context: int, hidden: int, *, key: Array) -> None:
        keys = jax.random.split(key, 2)
        bound = (num_features + num_context) ** -0.5
        self.weight = nnx.Param(uniform(keys[0], (num_features, hidden), bound))
        self.context_weight = nnx.Param(uniform(keys[1], (num_context, hidden), bound))
        self.bias = nnx.Param(jnp.zeros(hidden))
        self.output = nnx.Param(jnp.zeros(hidden))
        self.linear = nnx.Param(jnp.zeros(num_features))

    def __call__(self, features: Array, context: Array | None = None) -> Array:
        """[..., num_features], context [..., num_context] that broadcasts against it: [...]."""
        hidden = features @ self.weight[...] + self.bias[...]
        if context is not None:
            hidden += context @ self.context_weight[...]
        return jax.nn.relu(hidden) @ self.output[...] + features @ self.linear[...]


def _small_normal(key: Array, shape: tuple[int, ...]) -> Array:
    return 0.3 * jax.random.normal(key, shape)


def _rest(whole: Array, part: Array) -> Array:
    """A sum of exponentials without some of its terms; no less than rounding can tell, so that no loss is too low."""
    return jnp.maximum(whole - part, LEAST_REST * whole)


def _per_query(values: Array, query: Array, count: int, reduce: Callable[..., Array]) -> Array:
    return reduce(values, query, count, indices_are_sorted=True)
