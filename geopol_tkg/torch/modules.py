"""RE-GCN (Li et al., SIGIR 2021) and TiRGN (Li, Sun and Zhao, IJCAI 2022) as torch modules.

The same functions as the JAX networks of ``geopol_tkg.models``. A snapshot is the facts of one timestamp,
int64 [f, 3]: subject, relation, object, without inverses; the modules add those.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from geopol_tkg.config import ModelConfig
from geopol_tkg.torch.counts import CountModel
from geopol_tkg.torch.layers import (
    ConvTransE,
    GraphConvolution,
    NormalisedGraphConvolution,
    StaticGraphLayer,
    TimeEncoding,
    mask_history,
    relation_context,
    static_drift,
    with_inverses,
    xavier_linear,
)


class Evolved(NamedTuple):
    """Embeddings after the last snapshot, and how far entities left their static embeddings."""

    entities: Tensor  # [n, d]
    relations: Tensor  # [r2, d]
    drift: Tensor  # summed over snapshots and entities; 0 without a static graph


class Queries(NamedTuple):
    """Queries of one time: ``(s, r, ?)`` for the entity task, ``(s, ?, o)`` for the relation task."""

    first: Tensor  # int64 [b], subjects
    second: Tensor  # int64 [b], relations or objects
    time: int  # steps since the first timestamp
    seen: Tensor | None = None  # bool [b, candidates], history mask; TiRGN needs it
    prior: Tensor | None = None  # [b, n], scores of the counting model beside the network; of the entity task only


class Encoder(nn.Module):
    """Recurrent evolution: per snapshot a relation GRU, graph convolutions, an update of the entities."""

    layer_type: type[GraphConvolution]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.num_relations = config.num_relations
        self.entity_embedding = nn.Embedding(config.num_entities, dim)
        self.relation_embedding = nn.Embedding(2 * config.num_relations, dim)
        nn.init.xavier_normal_(self.relation_embedding.weight)
        self.relation_gru = nn.GRUCell(2 * dim, dim)
        self.layers = nn.ModuleList([self.layer_type(dim) for _ in range(config.num_layers)])
        self.static = StaticGraphLayer(config) if config.num_words else None
        self.static_angle = config.static_angle
        self.dropout = nn.Dropout(config.dropout)

    @abstractmethod
    def members(self, facts: Tensor) -> Tensor:
        """Relations and the entities that give them their context: [m, 2]."""

    @abstractmethod
    def update(self, convolved: Tensor, entities: Tensor) -> Tensor:
        """Entities [n, d] after a snapshot, from the normalised graph output and the entities before."""

    def start(self) -> Tensor:
        """Entities [n, d] before the first snapshot."""
        embedding = self.entity_embedding.weight
        return normalize(embedding) if self.static is None else self.static(len(embedding))

    def forward(self, snapshots: Sequence[Tensor]) -> Evolved:
        """Evolve over the snapshots, oldest first; there may be none."""
        initial = self.relation_embedding.weight
        origin = self.start()
        entities, relations, drift = origin, initial, initial.new_zeros(())
        for step, facts in enumerate(snapshots):
            context = relation_context(self.members(facts), entities, self.num_relations)
            relations = normalize(self.relation_gru(torch.cat([initial, context], dim=1), relations))
            edges, x = with_inverses(facts, self.num_relations), entities
            for layer in self.layers:
                x = self.dropout(layer(edges, x, relations))
            entities = self.update(normalize(x), entities)
            if self.static is not None:
                drift = drift + static_drift(origin, entities, step, self.static_angle)
        return Evolved(normalize(entities), relations, drift)  # TiRGN's rows have unit length already


class REGCNEncoder(Encoder):
    """Evolution with a time gate; members of a relation are its subjects and objects."""

    layer_type = GraphConvolution

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gate = xavier_linear(config.embedding_dim, bias=True)

    def members(self, facts: Tensor) -> Tensor:
        return torch.cat([facts[:, [1, 0]], facts[:, [1, 2]]])

    def update(self, convolved: Tensor, entities: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(entities))
        return gate * convolved + (1 - gate) * entities


class TiRGNEncoder(Encoder):
    """Evolution with an entity GRU; members of a relation are its subjects."""

    layer_type = NormalisedGraphConvolution

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.entity_gru = nn.GRUCell(config.embedding_dim, config.embedding_dim)

    def members(self, facts: Tensor) -> Tensor:
        return facts[:, [1, 0]]

    def update(self, convolved: Tensor, entities: Tensor) -> Tensor:
        return normalize(self.entity_gru(convolved, entities))


class Network(nn.Module):
    """Base of RE-GCN and TiRGN. In training mode batch norms take the statistics of the queries given.

    Attributes:
        counts: the counting model whose scores are the queries' prior; None without one.
    """

    encoder: Encoder
    counts: CountModel | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.counts = CountModel(config) if config.count_prior else None

    def forward(self, snapshots: Sequence[Tensor], queries: Queries) -> Tensor:
        """Evolve the snapshots, then log-probabilities of all entities: [b, n]."""
        return self.entity_log_probabilities(self.encoder(snapshots), queries)

    @abstractmethod
    def entity_log_probabilities(self, evolved: Evolved, queries: Queries) -> Tensor:
        """Log-probabilities of every entity for ``(s, r, ?)``: [b, n]."""

    @abstractmethod
    def relation_log_probabilities(self, evolved: Evolved, queries: Queries) -> Tensor:
        """Log-probabilities of every relation, inverses included, for ``(s, ?, o)``: [b, r2]."""


class REGCN(Network):
    """RE-GCN with ConvTransE decoders for entities and relations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = REGCNEncoder(config)
        self.entity_decoder = ConvTransE(config, num_inputs=2)
        self.relation_decoder = ConvTransE(config, num_inputs=2)

    def entity_log_probabilities(self, evolved: Evolved, queries: Queries) -> Tensor:
        candidates = torch.tanh(evolved.entities)
        vectors = self.entity_decoder([candidates[queries.first], evolved.relations[queries.second]])
        return log_softmax(_with_prior(vectors @ candidates.T, queries), dim=1)

    def relation_log_probabilities(self, evolved: Evolved, queries: Queries) -> Tensor:
        entities = torch.tanh(evolved.entities)
        vectors = self.relation_decoder([entities[queries.first], entities[queries.second]])
        return log_softmax(vectors @ evolved.relations.T, dim=1)


class TiRGN(Network):
    """TiRGN: per task a raw and a history decoder, mixed by the history rate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.history_rate = config.history_rate
        self.history_mask_mode = config.history_mask_mode
        self.encoder = TiRGNEncoder(config)
        self.time_encoding = TimeEncoding(config.embedding_dim)
        self.raw_entity_decoder = ConvTransE(config, num_inputs=4)
        self.history_entity_decoder = ConvTransE(config, num_inputs=4)
        self.raw_relation_decoder = ConvTransE(config, num_inputs=4)
        self.history_relation_decoder = ConvTransE(config, num_inputs=4)

    def entity_log_probabilities(self, evolved: Evolved, queries: Queries) -> Tensor:
        candidates = torch.tanh(evolved.entities)
        inputs = [candidates[queries.first], evolved.relations[queries.second]]
        inputs += self.time_encoding(queries.time, queries.first.shape[0])
        raw = self.raw_entity_decoder(inputs) @ candidates.T
        return self._mixture(raw, self.history_entity_decoder(inputs) @ candidates.T, queries)

    def relation_log_probabilities(self, evolved: Evolved, queries: Queries) -> Tensor:
        entities = torch.tanh(evolved.entities)
        inputs = [entities[queries.first], entities[queries.second]]
        inputs += self.time_encoding(queries.time, queries.first.shape[0])
        raw = self.raw_relation_decoder(inputs) @ evolved.relations.T
        history = self.history_relation_decoder(inputs) @ evolved.relations.T
        return self._mixture(raw, history, queries)

    def _mixture(self, raw: Tensor, history: Tensor, queries: Queries) -> Tensor:
        if queries.seen is None:
            raise ValueError("TiRGN needs a history mask: queries.seen is None")
        masked = mask_history(history, raw, queries.seen, self.history_mask_mode)
        weighted = ((1 - self.history_rate, raw), (self.history_rate, masked))
        parts = [
            math.log(weight) + log_softmax(_with_prior(logits, queries), dim=1)
            for weight, logits in weighted
            if weight > 0
        ]
        return torch.logsumexp(torch.stack(parts), dim=0)


def _with_prior(logits: Tensor, queries: Queries) -> Tensor:
    return logits if queries.prior is None else logits + queries.prior


def build_network(config: ModelConfig) -> Network | CountModel:
    """A freshly initialised network of ``config.model_type``."""
    types: dict[str, type[Network | CountModel]] = {"regcn": REGCN, "tirgn": TiRGN, "counts": CountModel}
    return types[config.model_type](config)


def parameter_count(network: nn.Module) -> int:
    """Trainable numbers."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
