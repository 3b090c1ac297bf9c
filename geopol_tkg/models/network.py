"""What a trained network is: it evolves a window, then scores queries; and how mixtures are scored."""

from abc import abstractmethod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig
from geopol_tkg.models.evolution import EvolutionEncoder, Evolved
from geopol_tkg.models.layers import DTypeLike


class Queries(NamedTuple):
    """Padded queries of one time.

    For the entity task ``first`` is the subject and ``second`` the relation, with ``(s, r, ?)`` asked;
    for the relation task ``first`` is the subject and ``second`` the object, with ``(s, ?, o)`` asked.
    """

    first: Array  # int32 [b]
    second: Array  # int32 [b]
    time: Array  # int32, the same for all
    seen: Array | None  # bool [b, candidates], history mask; None for models without one
    mask: Array  # bool [b], False for padding


class Component(NamedTuple):
    """One softmax of a mixture: its weight and its logits [b, candidates]."""

    weight: float
    logits: Array


class Network(nnx.Module):
    """Base of RE-GCN and TiRGN."""

    encoder: EvolutionEncoder
    uses_history: bool

    @abstractmethod
    def entity_mixture(
        self, evolved: Evolved, queries: Queries, *, key: Array | None, dtype: DTypeLike
    ) -> list[Component]:
        """Distributions over all n entities for ``(s, r, ?)``."""

    @abstractmethod
    def relation_mixture(
        self, evolved: Evolved, queries: Queries, *, key: Array | None, dtype: DTypeLike
    ) -> list[Component]:
        """Distributions over all r2 relations for ``(s, ?, o)``."""


def mixture_log_probabilities(mixture: list[Component]) -> Array:
    """``log sum_c weight_c softmax(logits_c)``: [b, candidates]."""
    parts = [jnp.log(part.weight) + jax.nn.log_softmax(part.logits) for part in mixture]
    return parts[0] if len(parts) == 1 else jax.nn.logsumexp(jnp.stack(parts), axis=0)


def mixture_nll(mixture: list[Component], targets: Array) -> Array:
    """Negative log-likelihood of the targets [b], without a log-softmax over all candidates: [b]."""
    parts = []
    for weight, logits in mixture:
        target = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        parts.append(jnp.log(weight) + target - jax.nn.logsumexp(logits, axis=1))
    return -jax.nn.logsumexp(jnp.stack(parts), axis=0)


def history_mask(targets: Array, slices: Array, *, num_candidates: int, capacity: int) -> Array:
    """Which candidates stand in each query's slice of the history vocabulary: bool [b, candidates].

    Args:
        targets: int32 [h], the vocabulary's targets.
        slices: int32 [b, 2], from and to; their lengths sum to ``capacity`` at most.
    """
    lengths = slices[:, 1] - slices[:, 0]
    ends = jnp.cumsum(lengths)
    position = jnp.arange(capacity)
    row = jnp.searchsorted(ends, position, side="right")
    within = position - (ends - lengths).at[row].get(mode="clip")
    target = targets.at[slices[:, 0].at[row].get(mode="clip") + within].get(mode="clip")
    empty = jnp.zeros((len(slices), num_candidates), bool)
    return empty.at[row, target].set(True, mode="drop")


def parameter_count(parameters: Any) -> int:
    """Trainable numbers of a network, or of the ``nnx.Param`` part of its state."""
    state = nnx.state(parameters, nnx.Param) if isinstance(parameters, nnx.Module) else parameters
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def build_network(config: ModelConfig, *, key: Array) -> Network:
    """A freshly initialised network of ``config.model_type``."""
    from geopol_tkg.models.regcn import REGCN
    from geopol_tkg.models.tirgn import TiRGN

    return {"regcn": REGCN, "tirgn": TiRGN}[config.model_type](config, key=key)
