"""Building blocks of both networks in torch, in their plain form: one message per edge.

Axis letters: n entities, r relations, r2 with inverses, d hidden, e edges, b queries, c channels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, normalize, relu

from geopol_tkg.config import MaskMode, ModelConfig

LEAKY_SLOPE = 11 / 48  # mean of rrelu(1/8, 1/3)
_STATIC_KINDS, _STATIC_BLOCK = 3, 2  # kinds of edges, rows and columns of a diagonal block
_EXCLUDED = -1e30  # a logit whose probability is exactly zero


def with_inverses(facts: Tensor, num_relations: int) -> Tensor:
    """Facts [f, 3] followed by their inverses ``(o, r + R, s)``: [2f, 3]."""
    subject, relation, object_ = facts.unbind(1)
    return torch.cat([facts, torch.stack([object_, relation + num_relations, subject], dim=1)])


def relation_context(members: Tensor, entities: Tensor, num_relations: int) -> Tensor:
    """Mean of the distinct entities [n, d] that touch each relation: [r2, d], zero where there are none.

    Args:
        members: int64 [m, 2], relation (without inverses) and entity, repeats allowed.
    """
    relation, entity = torch.unique(members, dim=0).unbind(1)
    sums = entities.new_zeros(num_relations, entities.shape[1]).index_add(0, relation, entities[entity])
    counts = torch.bincount(relation, minlength=num_relations).clamp(min=1)
    mean = sums / counts.unsqueeze(1)
    return torch.cat([mean, mean])


def xavier_linear(dim: int, *, bias: bool) -> nn.Linear:
    """Square layer, Xavier uniform with gain sqrt(2), bias zero."""
    layer = nn.Linear(dim, dim, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(2))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class GraphConvolution(nn.Module):
    """Relational graph convolution of RE-GCN: the message is ``(h_s + r) W``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.message = xavier_linear(dim, bias=False)
        self.loop = xavier_linear(dim, bias=False)
        self.isolated = xavier_linear(dim, bias=False)

    def combine(self, subjects: Tensor, relations: Tensor) -> Tensor:
        """What the message weight multiplies, per edge: [e, d] from two of [e, d]."""
        return subjects + relations

    def forward(self, edges: Tensor, x: Tensor, relations: Tensor) -> Tensor:
        """Entities [n, d] after one layer; edges [e, 3] hold both directions."""
        subject, relation, object_ = edges.unbind(1)
        messages = self.message(self.combine(x[subject], relations[relation]))
        degree = torch.bincount(object_, minlength=len(x)).unsqueeze(1)
        mean = torch.zeros_like(x).index_add(0, object_, messages.to(x.dtype)) / degree.clamp(min=1)
        own = torch.where(degree > 0, self.loop(x), self.isolated(x))
        return leaky_relu(mean + own, LEAKY_SLOPE)


class NormalisedGraphConvolution(GraphConvolution):
    """Relational graph convolution of TiRGN: the message is ``conv1x1(BN([h_s ; r])) W``."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.norm = nn.BatchNorm1d(2)
        self.mix = nn.Conv1d(2, 1, kernel_size=1)

    def combine(self, subjects: Tensor, relations: Tensor) -> Tensor:
        channels = torch.stack([subjects, relations], dim=1)  # [e, 2, d]
        return self.mix(self.norm(channels)).squeeze(1)


class StaticGraphLayer(nn.Module):
    """One relational graph convolution with block-diagonal weights: entities as the mean of their words.

    The graph's edges (entity, kind, word), sorted by entity, are a buffer: they come with the weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.word_embedding = nn.Embedding(config.num_words, dim)
        nn.init.xavier_normal_(self.word_embedding.weight)
        self.block_weight = nn.Parameter(torch.empty(2 * _STATIC_KINDS, dim * _STATIC_BLOCK))
        nn.init.xavier_uniform_(self.block_weight, gain=math.sqrt(2))
        self.edges: Tensor
        self.register_buffer("edges", torch.zeros(config.num_static_edges, 3, dtype=torch.int32))

    def forward(self, num_entities: int) -> Tensor:
        """Static embeddings of unit length: [n, d]."""
        entity, kind, word = self.edges.long().unbind(1)
        blocks = self.block_weight[_STATIC_KINDS + kind].unflatten(1, (-1, _STATIC_BLOCK, _STATIC_BLOCK))
        words = self.word_embedding(word).unflatten(1, (-1, 1, _STATIC_BLOCK))
        messages = (words @ blocks).flatten(1)
        sums = messages.new_zeros(num_entities, messages.shape[1]).index_add(0, entity, messages)
        degree = torch.bincount(entity, minlength=num_entities).clamp(min=1).unsqueeze(1)
        return normalize(leaky_relu(sums / degree, LEAKY_SLOPE))


def static_drift(static: Tensor, entities: Tensor, step: int, angle: float) -> Tensor:
    """Sum over entities of how far they turned beyond ``angle * (step + 1)`` degrees, in cosines."""
    allowed = math.cos(math.radians(angle * (step + 1)))
    return relu(allowed - (static * normalize(entities)).sum(dim=1)).sum()


class ConvTransE(nn.Module):
    """ConvTransE (Shang et al., AAAI 2019): stacked embeddings to the vector that scores candidates."""

    def __init__(self, config: ModelConfig, *, num_inputs: int) -> None:
        super().__init__()
        dim, channels = config.embedding_dim, config.num_channels
        self.input_norm = nn.BatchNorm1d(num_inputs)
        self.conv = nn.Conv1d(num_inputs, channels, config.kernel_width, padding="same")
        self.conv_norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels * dim, dim)
        self.output_norm = nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Vectors [b, d] from inputs of shape [b, d] each."""
        x = self.dropout(self.input_norm(torch.stack(list(inputs), dim=1)))  # [b, inputs, d]
        x = self.dropout(relu(self.conv_norm(self.conv(x))))  # [b, c, d]
        return relu(self.output_norm(self.dropout(self.linear(x.flatten(1)))))


class TimeEncoding(nn.Module):
    """Linear and periodic time vectors: ``w1 i + b1`` and ``sin(w2 i + b2)`` of the time index i."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_weight = nn.Parameter(torch.randn(dim))
        self.linear_bias = nn.Parameter(torch.randn(dim))
        self.periodic_weight = nn.Parameter(torch.randn(dim))
        self.periodic_bias = nn.Parameter(torch.randn(dim))

    def forward(self, time: int, rows: int) -> list[Tensor]:
        """Both vectors, repeated for each query: 2 x [b, d]."""
        linear = _multiply_add(self.linear_weight, time, self.linear_bias)
        periodic = torch.sin(_multiply_add(self.periodic_weight, time, self.periodic_bias))
        return [linear.expand(rows, -1), periodic.expand(rows, -1)]


def _multiply_add(weight: Tensor, time: int, bias: Tensor) -> Tensor:
    """``weight * time + bias`` rounded once, as XLA fuses it; a second rounding shows in the sine of a large time.

    The time itself is a float32 number, as it is there.
    """
    return (weight.double() * float(np.float32(time)) + bias.double()).to(weight.dtype)


def mask_history(history: Tensor, raw: Tensor, seen: Tensor, mode: MaskMode) -> Tensor:
    """History logits [b, candidates] under the mask ``seen``.

    ``multiply`` leaves unseen candidates at logit 0; ``exclude`` takes them out, and a query that has
    seen nothing gets the raw logits.
    """
    if mode == "multiply":
        return history.masked_fill(~seen, 0)
    excluded = history.masked_fill(~seen, _EXCLUDED)
    return torch.where(seen.any(dim=1, keepdim=True), excluded, raw)
