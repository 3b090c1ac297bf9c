"""What a trained network is: it evolves a window, then scores queries; and how mixtures are scored."""

from abc import abstractmethod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig
from geopol_tkg.models.blocks import sum_over_blocks
from geopol_tkg.models.counts import CountModel
from geopol_tkg.models.decoders import ConvTransE, Inputs, Queries
from geopol_tkg.models.evolution import EvolutionEncoder, Evolved
from geopol_tkg.models.layers import DTypeLike, inner, split_key
from geopol_tkg.models.past import CountShape, Past
from geopol_tkg.models.sampling import Entries, Sample, entries_of


class Component(NamedTuple):
    """One softmax of a mixture: its weight and its logits [b, candidates]."""

    weight: float
    logits: Array


class Task(NamedTuple):
    """What a network does for one of its tasks, after evolving.

    Attributes:
        decoders: one for each distribution of the mixture.
        inputs: what the decoders stack.
        candidates: [c, d].
    """

    decoders: tuple[ConvTransE, ...]
    inputs: Inputs
    candidates: Array


class Prior(NamedTuple):
    """What the counting model beside a network looks at: the past, and room for a block's queries."""

    past: Past
    shape: CountShape


class History(NamedTuple):
    """The vocabulary that queries' slices point into.

    Attributes:
        targets: int32 [h].
        capacity: no less than the lengths of a block's slices together; for a sampled softmax, those of its answers.
        previous: int32 [h], where each target was last seen with the same key; for a sampled softmax.
        prior: of the entity task of a network with counts.
    """

    targets: Array
    capacity: int
    previous: Array | None = None
    prior: Prior | None = None


class Answers(NamedTuple):
    """What is true for queries: objects, or relations.

    Attributes:
        targets: int32 [q].
        slices: int32 [b, 2] of the targets, each query's own.
        capacity: no less than the answers of a block together.
    """

    targets: Array
    slices: Array
    capacity: int


class Network(nnx.Module):
    """Base of RE-GCN and TiRGN; with ``counts``, their scores are added to the logits of entities."""

    counts: CountModel | None = None
    encoder: EvolutionEncoder
    uses_history: bool

    @abstractmethod
    def entity_task(self, evolved: Evolved, time: Array) -> Task:
        """Scoring all n entities for ``(s, r, ?)`` at a time index."""

    @abstractmethod
    def relation_task(self, evolved: Evolved, time: Array) -> Task:
        """Scoring all r2 relations for ``(s, ?, o)`` at a time index."""

    @abstractmethod
    def mixture(self, logits: list[Array], seen: Array | None) -> list[Component]:
        """Distributions from each decoder's logits [b, c] and the history mask bool [b, c]."""

    @abstractmethod
    def sampled_parts(
        self, logits: list[Array], vectors: list[Array], task: Task, targets: Array, entries: Entries | None
    ) -> list[tuple[float, Array]]:
        """Weight and log-probability [b] of the targets under each distribution.

        Args:
            logits: of the targets, then of a sample, corrected by its log-probability: [b, 1 + m] each.
        """

    def log_probabilities(self, task: Task, queries: Queries, history: History, *, dtype: DTypeLike) -> Array:
        """Log-probabilities [b, c] by the running statistics."""
        vectors = self._vectors(task, queries, key=None, dtype=dtype, num_blocks=1)
        return mixture_log_probabilities(self._mixture(task, vectors, queries, history, dtype))

    def nll(
        self,
        task: Task,
        queries: Queries,
        answers: Answers,
        history: History,
        *,
        key: Array | None,
        dtype: DTypeLike,
        num_blocks: int = 1,
        label_smoothing: float = 0.0,
        sample: Sample | None = None,
    ) -> Array:
        """Sum of the negative log-likelihoods of all answers, by the batch's statistics.

        Args:
            num_blocks: [b, c] arrays never exist for more than a block of queries.
            label_smoothing: share of the target's weight that all candidates divide.
            sample: candidates that stand for all others; None scores them all.
        """
        with jax.named_scope("decoders"):
            vectors = self._vectors(task, queries, key=key, dtype=dtype, num_blocks=num_blocks)

        def block(rows: tuple[list[Array], Queries, Array]) -> Array:
            own, part, slices = rows
            found = entries_of(answers.targets, slices, capacity=answers.capacity)
            query = jnp.minimum(found.query, found.num_queries - 1)
            if sample is not None:
                vectors = [vector[query] for vector in own]
                seen = jnp.where(found.first[:, None], part.seen[query], 0)
                nll = self._sampled_nll(task, vectors, seen, sample.number(found.target), history, sample, dtype)
            else:
                mixture = self._mixture(task, own, part, history, dtype)
                nll = mixture_nll(mixture, query, found.target, label_smoothing=label_smoothing)
            return jnp.sum(jnp.where(found.first, nll, 0))

        with jax.named_scope("scores"):
            return sum_over_blocks(block, (vectors, queries, answers.slices), num_blocks, mask=queries.mask)

    def _vectors(
        self, task: Task, queries: Queries, *, key: Array | None, dtype: DTypeLike, num_blocks: int
    ) -> list[Array]:
        keys = split_key(key, len(task.decoders)) if len(task.decoders) > 1 else [key]
        return [
            decoder(queries, task.inputs, key=own, dtype=dtype, num_blocks=num_blocks)
            for decoder, own in zip(task.decoders, keys, strict=True)
        ]

    def _mixture(
        self, task: Task, vectors: list[Array], queries: Queries, history: History, dtype: DTypeLike
    ) -> list[Component]:
        logits = [inner(vector, task.candidates, dtype) for vector in vectors]
        size = len(task.candidates)
        seen = None
        if self.uses_history:
            seen = history_mask(history.targets, queries.seen, num_candidates=size, capacity=history.capacity)
        mixture = self.mixture(logits, seen)
        if self.counts is None or history.prior is None:
            return mixture
        subjects = jnp.where(queries.mask, queries.first, self.counts.config.num_entities)
        prior = self.counts.scores(history.prior.past, subjects, queries.second, history.prior.shape)
        return [Component(part.weight, part.logits + prior) for part in mixture]

    def _sampled_nll(
        self,
        task: Task,
        vectors: list[Array],
        seen: Array,
        targets: Array,
        history: History,
        sample: Sample,
        dtype: DTypeLike,
    ) -> Array:
        """Of targets int32 [b], one for each vector [b, d] and slice [b, 2] of the history."""
        logits = [
            jnp.concatenate(
                [
                    jnp.sum(vector * task.candidates[targets], axis=1, keepdims=True),
                    sample.corrected(inner(vector, task.candidates[sample.rows], dtype), targets),
                ],
                axis=1,
            )
            for vector in vectors
        ]
        entries = None
        if self.uses_history:
            entries = entries_of(history.targets, seen, capacity=history.capacity, previous=history.previous)
            entries = entries._replace(target=sample.number(entries.target))
        parts = self.sampled_parts(logits, vectors, task, targets, entries)
        return -jax.nn.logsumexp(jnp.stack([jnp.log(weight) + part for weight, part in parts]), axis=0)


def mixture_log_probabilities(mixture: list[Component]) -> Array:
    """``log sum_c weight_c softmax(logits_c)``: [b, candidates]."""
    parts = [jnp.log(part.weight) + jax.nn.log_softmax(part.logits) for part in mixture]
    return parts[0] if len(parts) == 1 else jax.nn.logsumexp(jnp.stack(parts), axis=0)


def mixture_nll(mixture: list[Component], query: Array, targets: Array, *, label_smoothing: float = 0.0) -> Array:
    """Negative log-likelihood [a] of targets int32 [a] of queries int32 [a], without a log-softmax over all candidates.

    With label smoothing (Szegedy et al., CVPR 2016) all candidates share that part of the target's weight.
    """
    parts = []
    for weight, logits in mixture:
        parts.append(jnp.log(weight) + logits[query, targets] - jax.nn.logsumexp(logits, axis=1)[query])
    nll = -jax.nn.logsumexp(jnp.stack(parts), axis=0)
    if not label_smoothing:
        return nll
    return (1 - label_smoothing) * nll - label_smoothing * jnp.mean(mixture_log_probabilities(mixture), axis=1)[query]


def history_mask(targets: Array, slices: Array, *, num_candidates: int, capacity: int) -> Array:
    """Which candidates stand in each query's slice of the history vocabulary: bool [b, candidates].

    Args:
        targets: int32 [h], the vocabulary's targets.
        slices: int32 [b, 2], from and to; their lengths sum to ``capacity`` at most.
    """
    entries = entries_of(targets, slices, capacity=capacity)
    empty = jnp.zeros((len(slices), num_candidates), bool)
    return empty.at[entries.query, entries.target].set(True, mode="drop")


def parameter_count(parameters: Any) -> int:
    """Trainable numbers of a network, or of the ``nnx.Param`` part of its state."""
    state = nnx.state(parameters, nnx.Param) if isinstance(parameters, nnx.Module) else parameters
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def build_network(config: ModelConfig, *, key: Array) -> Network:
    """A freshly initialised network of ``config.model_type``."""
    from geopol_tkg.models.regcn import REGCN
    from geopol_tkg.models.tirgn import TiRGN

    network = {"regcn": REGCN, "tirgn": TiRGN}[config.model_type](config, key=key)
    if config.count_prior:
        network.counts = CountModel(config, key=jax.random.fold_in(key, 1))
    return network
