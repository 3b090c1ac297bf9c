"""The counting model as a torch module: learned weights of what :mod:`geopol_tkg.torch.past` counts.

The same function as the JAX model of ``geopol_tkg.models.counts``, whose docstring explains it::

    score(s, r, o) = popularity(r, o) + [s and o have met] history(s, r, o)

with another popularity for entities of the subject's country that it has not met, where labels name countries, and
for those that paths lead to, where the model follows them.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from geopol_tkg.config import ModelConfig
from geopol_tkg.torch.past import Counts

HIDDEN, POPULARITY_HIDDEN, RELATION_DIM = 32, 16, 8


class CountModel(nn.Module):
    """Scores of entities from counts of the past."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        f, r2 = len(config.half_lives) + 2, 2 * config.num_relations
        self.num_relations = config.num_relations
        self.entity_net = Net(2 * f, 0, POPULARITY_HIDDEN)
        self.answer_net = Net(3 * f, RELATION_DIM, POPULARITY_HIDDEN)
        self.history_net = Net(4 * f + 1, RELATION_DIM + f, HIDDEN)
        self.answer_relations = nn.Parameter(0.3 * torch.randn(r2, RELATION_DIM))
        self.history_relations = nn.Parameter(0.3 * torch.randn(r2, RELATION_DIM))
        self.relation_weights = nn.Parameter(torch.zeros(r2, 4 * f + 1))
        self.unseen_bias = nn.Parameter(torch.zeros(r2))
        self.history_bias = nn.Parameter(torch.zeros(r2))
        self.next_relation = nn.Parameter(0.3 * torch.randn(r2, 2 * RELATION_DIM))
        self.last_relation = nn.Parameter(torch.zeros(r2, 2 * RELATION_DIM))
        self.compatriots = Compatriots(config) if config.num_countries else None
        self.acquaintance = Acquaintance(config) if config.num_paths else None

    def forward(self, counts: Counts) -> Tensor:
        """Scores of every entity as object, their log-probabilities up to a constant of the query: [b, n]."""
        popularity = self.popularity(counts)
        scores = popularity[counts.relation_of]
        met = scores[counts.query, counts.objects] + self.history(counts)
        if self.compatriots is not None:
            direction, features = self._of_answers(counts)
            more = self.compatriots(counts, direction, features)[counts.relation_of]
            scores = scores + torch.where(self.compatriots.of(counts.subjects), more, 0)
        scores = scores.index_put((counts.query, counts.objects), met)
        if self.acquaintance is None:
            return scores
        query, place = torch.nonzero(counts.path_objects < scores.shape[1], as_tuple=True)
        objects = counts.path_objects[query, place]
        slot = counts.relation_of[query]
        features = torch.cat([counts.path_features[query, place], counts.answers[slot, objects]], dim=1)
        added = self.acquaintance(counts.relations[slot], features)
        return scores.index_put((query, objects), added, accumulate=True)

    def popularity(self, counts: Counts) -> Tensor:
        """Of every entity under each relation: [x, n]."""
        direction, features = self._of_answers(counts)
        answers = self.answer_net(features, self.answer_relations[counts.relations].unsqueeze(1))
        unseen = self.unseen_bias[counts.relations].unsqueeze(1)
        return self.entity_net(counts.entities)[direction] + torch.where(_has_any(counts.answers), answers, unseen)

    def _of_answers(self, counts: Counts) -> tuple[Tensor, Tensor]:
        """Direction of each relation [x], and features of every entity under it [x, n, 3f]."""
        direction = (counts.relations >= self.num_relations).long()
        return direction, torch.cat([counts.answers, counts.entities[direction]], dim=-1)

    def history(self, counts: Counts) -> Tensor:
        """What the past of subject and object adds: [m]."""
        slot = counts.relation_of[counts.query]
        relation = counts.relations[slot]
        is_repeat = _has_any(counts.meetings[:, : counts.rows.shape[1]]).float().unsqueeze(1)
        features = torch.cat([counts.meetings, counts.answers[slot, counts.objects], is_repeat], dim=1)
        context = torch.cat([self.history_relations[relation], counts.rows[counts.query]], dim=1)
        after = (self.next_relation[relation] * self.last_relation[counts.last_relations]).sum(dim=1)
        own = (features * self.relation_weights[relation]).sum(dim=1)
        return self.history_net(features, context) + own + after + self.history_bias[relation]


class Compatriots(nn.Module):
    """What entities of the subject's country have beyond the popularity that they have with all subjects.

    The country of each entity, -1 = none, is a buffer: it comes with the weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        f, r2 = len(config.half_lives) + 2, 2 * config.num_relations
        self.entity_net = Net(2 * f, 0, POPULARITY_HIDDEN)
        self.answer_net = Net(3 * f, RELATION_DIM, POPULARITY_HIDDEN)
        self.answer_relations = nn.Parameter(0.3 * torch.randn(r2, RELATION_DIM))
        self.relation_bias = nn.Parameter(torch.zeros(r2))
        self.countries: Tensor
        self.register_buffer("countries", torch.full((config.num_entities,), -1, dtype=torch.int32))

    def forward(self, counts: Counts, direction: Tensor, features: Tensor) -> Tensor:
        """Of every entity under each relation, from their features [x, n, 3f]: [x, n]."""
        answers = self.answer_net(features, self.answer_relations[counts.relations].unsqueeze(1))
        more = torch.where(_has_any(counts.answers), answers, 0)
        return self.entity_net(counts.entities)[direction] + more + self.relation_bias[counts.relations].unsqueeze(1)

    def of(self, subjects: Tensor) -> Tensor:
        """Which entities are of each subject's country: bool [b, n]."""
        own = self.countries[subjects].unsqueeze(1)
        return (own >= 0) & (own == self.countries)


class Acquaintance(nn.Module):
    """What paths add to the score of an entity that the subject has not met."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        f, r2 = len(config.half_lives) + 2, 2 * config.num_relations
        self.net = Net(2 * f - 1, RELATION_DIM, POPULARITY_HIDDEN)
        self.path_relations = nn.Parameter(0.3 * torch.randn(r2, RELATION_DIM))
        self.relation_weights = nn.Parameter(torch.zeros(r2, 2 * f - 1))
        self.bias = nn.Parameter(torch.zeros(r2))

    def forward(self, relations: Tensor, features: Tensor) -> Tensor:
        """Of relations [x] and features [x, 2f - 1], of paths and of ``(r, o)``: [x]."""
        own = (features * self.relation_weights[relations]).sum(dim=1)
        return self.net(features, self.path_relations[relations]) + own + self.bias[relations]


class Net(nn.Module):
    """A perceptron with one hidden layer and one output, beside a linear function of its features."""

    def __init__(self, num_features: int, num_context: int, hidden: int) -> None:
        super().__init__()
        bound = (num_features + num_context) ** -0.5
        self.weight = nn.Parameter(bound * (2 * torch.rand(num_features, hidden) - 1))
        self.context_weight = nn.Parameter(bound * (2 * torch.rand(num_context, hidden) - 1))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.output = nn.Parameter(torch.zeros(hidden))
        self.linear = nn.Parameter(torch.zeros(num_features))

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        """[..., num_features], context [..., num_context] that broadcasts against it: [...]."""
        hidden = features @ self.weight + self.bias
        if context is not None:
            hidden = hidden + context @ self.context_weight
        return relu(hidden) @ self.output + features @ self.linear


def _has_any(features: Tensor) -> Tensor:
    """Whether there was such a fact at all, by the plain count."""
    return features[..., -2] > 0
