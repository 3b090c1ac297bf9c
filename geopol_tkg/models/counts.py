"""A forecaster that counts: what was true before between these two, how often, and how lately.

The score of an object ``o`` for a query ``(s, r, ?, t)`` is its popularity plus, where ``s`` and ``o`` have
met before ``t``, what their own past adds::

    score(s, r, o) = popularity(r, o) + [met] history(s, r, o)

Both parts are small networks over counts of the facts before ``t`` at several decays, and the time since the
last one: of ``(s, r, o)``, of ``(s, ., o)`` in either direction, of ``(s, r, .)``, of ``(., r, o)`` and of
``o``. The two terms extend strict and relaxed recurrency (Gastinger et al., "History Repeats Itself", IJCAI
2024), with weights that are learned. Only meetings, and the pairs of a relation and an object that occurred,
are looked at one by one: the sum over all other entities is that of their popularity, computed once.

Axis letters: n entities, r2 relations in both directions, b queries, f features, m meetings, a answers
(pairs of a relation and an object), t tiles of ``past.TILE`` entries.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig
from geopol_tkg.models.layers import uniform
from geopol_tkg.models.past import CountShape, Entries, Past, Popularity, answer_of, look_up, other_answers

HIDDEN, POPULARITY_HIDDEN, RELATION_DIM = 32, 16, 8
LEAST_REST = 1e-5  # share of a float32 sum that is known well once other terms are taken away


class CountModel(nnx.Module):
    """Learned weights of counts; parameters only, the counts are looked up in :class:`CountTables`."""

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

    def nll(
        self,
        past: Past,
        subjects: Array,
        relations: Array,
        targets: Array,
        shape: CountShape,
        *,
        filtered: bool = False,
    ) -> Array:
        """Negative log-likelihood [b] of targets int32 [b]; a padded query has subject n.

        Args:
            filtered: a query's other true objects at its time are no candidates, as in evaluation; the shape must
                have room for triples that are first seen at that time, too.
        """
        common, entries = look_up(past, subjects, relations, shape, self.config)
        entity_scores, answer_scores = self._popularity(common)
        query = jnp.minimum(entries.query, len(subjects) - 1)
        base = self._base(entity_scores, answer_scores, relations[query][:, None], entries.objects, entries.answer)
        score = jnp.where(entries.valid, base + self._history(common, entries), -jnp.inf)
        base = jnp.where(entries.valid, base, -jnp.inf)
        candidate = score
        unmet = self._log_totals(common, entity_scores, answer_scores)[common.relation_of]
        top = jnp.maximum(unmet, _per_query(jnp.max(score, axis=1), entries.query, len(subjects), jax.ops.segment_max))
        top = jax.lax.stop_gradient(top)
        new = jnp.zeros(len(subjects))
        if filtered:
            others = other_answers(past, common, entries, subjects, relations, targets, shape)
            candidate = jnp.where(others.is_entry, -jnp.inf, score)
            own = jnp.minimum(others.owners, len(subjects) - 1)
            popular = self._base(entity_scores, answer_scores, relations[own], others.objects, others.answer)
            popular = jnp.where(others.is_new, jnp.exp(popular - top[own]), 0)
            new = _per_query(popular, others.owners, len(subjects), jax.ops.segment_sum)
        sums = jnp.stack([jnp.sum(jnp.exp(part - top[query][:, None]), axis=1) for part in (candidate, base)], axis=1)
        met, replaced = _per_query(sums, entries.query, len(subjects), jax.ops.segment_sum).T
        replaced += new
        total = _rest(jnp.exp(unmet - top), replaced) + met
        is_target = entries.valid & (entries.objects == targets[query][:, None])
        hits = jnp.stack([jnp.sum(jnp.where(is_target, part, 0.0), axis=1) for part in (score, 1.0)], axis=1)
        own, is_met = _per_query(hits, entries.query, len(subjects), jax.ops.segment_sum).T
        answer = answer_of(past.tables, common, common.relation_of, targets)
        popular = self._base(entity_scores, answer_scores, relations, targets, answer)
        target_score = jnp.where(is_met > 0, own, popular)
        return jnp.log(total) + top - target_score

    def scores(self, past: Past, subjects: Array, relations: Array, shape: CountShape) -> Array:
        """Scores of every entity, up to a constant of the query: [b, n]; a padded query has subject n."""
        common, entries = look_up(past, subjects, relations, shape, self.config)
        entity_scores, answer_scores = self._popularity(common)
        rows = entity_scores[self._direction(common.relations)] + self._bias(common.relations)[:, None]
        rows = rows.at[common.owners, common.objects].set(answer_scores, mode="drop")
        query = jnp.where(entries.valid, entries.query[:, None], len(subjects))
        return rows[common.relation_of].at[query, entries.objects].add(self._history(common, entries), mode="drop")

    def _popularity(self, common: Popularity) -> tuple[Array, Array]:
        """Of each entity, without its relation [2, n], and of each answer [a]."""
        entities = self.entity_net(common.entities)
        relation = common.relations.at[common.owners].get(mode="clip")
        direction = self._direction(relation)
        features = jnp.concatenate([common.answers, common.entities[direction, common.objects]], axis=1)
        answers = self.answer_net(features, self.answer_relations[...].at[relation].get(mode="clip"))
        return entities, entities[direction, common.objects] + answers

    def _base(
        self, entity_scores: Array, answer_scores: Array, relations: Array, objects: Array, answer: Array
    ) -> Array:
        """Popularity of objects under the relations of their queries."""
        unseen = entity_scores[self._direction(relations), objects] + self._bias(relations)
        return jnp.where(answer >= 0, answer_scores[jnp.maximum(answer, 0)], unseen)

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

    def _log_totals(self, common: Popularity, entity_scores: Array, answer_scores: Array) -> Array:
        """Log of the sum of ``exp(popularity)`` over all entities, for each distinct relation: [x]."""
        count = len(common.relations)
        direction = self._direction(common.relations)
        bias = self._bias(common.relations)
        owners = common.owners
        own = jnp.minimum(owners, count - 1)
        largest = jax.lax.stop_gradient(jnp.max(entity_scores, axis=1))
        everyone = jnp.exp(entity_scores - largest[:, None])
        answer_scores = jnp.where(owners < count, answer_scores, -jnp.inf)
        top = jax.ops.segment_max(answer_scores, owners, count, indices_are_sorted=True)
        top = jax.lax.stop_gradient(jnp.maximum(top, largest[direction] + bias))
        parts = jnp.stack([jnp.exp(answer_scores - top[own]), everyone[direction[own], common.objects]], axis=1)
        seen, replaced = jax.ops.segment_sum(parts, owners, count, indices_are_sorted=True).T
        unseen = _rest(jnp.sum(everyone, axis=1)[direction], replaced) * jnp.exp(largest[direction] + bias - top)
        return jnp.log(unseen + seen) + top

    def _direction(self, relations: Array) -> Array:
        return (relations >= self.config.num_relations).astype(jnp.int32)

    def _bias(self, relations: Array) -> Array:
        return self.unseen_bias[...].at[relations].get(mode="clip")


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
