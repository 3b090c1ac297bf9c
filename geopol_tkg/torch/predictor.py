"""Forecasts of the next time step from a ``.pt`` file alone: no jax, no dataset."""

import difflib
import pickle
import struct
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from geopol_tkg.config import DEFAULT_MODEL_DIR, ModelConfig
from geopol_tkg.errors import CheckpointError, DataError, GeopolTkgError
from geopol_tkg.torch.layers import with_inverses
from geopol_tkg.torch.modules import Evolved, Network, Queries, build_network

FORMAT_VERSION = 1
DEFAULT_FILES = ("tirgn_trained.pt", "regcn_trained.pt")
# What torch.load has been seen to raise on damaged files.
_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError),
    *(pickle.UnpicklingError, struct.error),
)
_NEEDED = ("model_config", "model_state_dict", "entity_to_id", "relation_to_id", "triple_frequency", "context")


class SeenObjects:
    """Which objects stand with a subject and relation, in both directions, in facts [f, 3]."""

    def __init__(self, facts: Tensor, *, num_entities: int, num_relations: int) -> None:
        subject, relation, object_ = with_inverses(facts.long(), num_relations).unbind(1)
        keys, order = torch.sort(subject * 2 * num_relations + relation)
        self._keys, self._objects = keys.contiguous(), object_[order]
        self._num_entities, self._num_relations = num_entities, num_relations

    def mask(self, subjects: Tensor, relations: Tensor) -> Tensor:
        """Objects seen for each query, int64 [b] each: bool [b, n]."""
        wanted = subjects * 2 * self._num_relations + relations
        low = torch.searchsorted(self._keys, wanted).tolist()
        high = torch.searchsorted(self._keys, wanted, right=True).tolist()
        seen = torch.zeros(len(wanted), self._num_entities, dtype=torch.bool, device=wanted.device)
        for row, (start, end) in enumerate(zip(low, high, strict=True)):
            seen[row, self._objects[start:end]] = True
        return seen


class TKGPredictor:
    """A trained network and the facts it looks at; answers queries of the step after the last fact.

    Args:
        path: a file that ``geopol-tkg convert`` wrote; by default ``models/tkg/tirgn_trained.pt``, else
            ``models/tkg/regcn_trained.pt``.
        device: ``auto`` (CUDA where there is one), or any name that torch knows.

    Attributes:
        config: the network's sizes and settings.
        network: the network in evaluation mode.
        entity_to_id, relation_to_id: ids by label.
        time_index: steps from the first timestamp to the one that is forecast.
        time: when that step begins.

    Raises:
        CheckpointError: the file is missing, damaged, foreign or of another format version.
        GeopolTkgError: the device is not there.
    """

    def __init__(self, path: str | Path | None = None, device: str = "auto") -> None:
        self.path = _default_path() if path is None else Path(path)
        self.device = _device(device)
        contents = _read(self.path)
        self.config, self.network = _restore(self.path, contents)
        self.network.to(self.device).eval()
        self.entity_to_id: dict[str, int] = contents["entity_to_id"]
        self.relation_to_id: dict[str, int] = contents["relation_to_id"]
        context = contents["context"]
        self.time_index: int = context["time_index"]
        self.time: str = context["time"]
        self._snapshots = [facts.long().to(self.device) for facts in context["snapshots"]]
        self._history = self._seen_objects(context["history"])
        self._past = self._seen_objects(contents["triple_frequency"]["triples"])
        self._entities = sorted(self.entity_to_id, key=self.entity_to_id.__getitem__)

    def predict(
        self, subject: str, relation: str, top: int = 10, *, direction: Literal["object", "subject"] = "object"
    ) -> list[dict[str, Any]]:
        """The likeliest objects of ``(subject, relation, ?)`` in the next step, best first.

        Args:
            subject: the entity that is given; with direction ``subject`` it is the fact's object, and
                ``(?, relation, entity)`` is asked.
            top: how many.

        Returns:
            For each: its label under the key ``object`` (or ``subject``); ``probability``, which sums to
            one over all entities; ``seen_before``, whether the fact has ever been seen.

        Raises:
            DataError: a label that the model does not know, or no such direction.
        """
        if direction not in ("object", "subject"):
            raise DataError(f"direction {direction!r} is neither object nor subject")
        entity_id = _look_up(subject, self.entity_to_id, "entity")
        relation_id = _look_up(relation, self.relation_to_id, "relation")
        if direction == "subject":
            relation_id += self.config.num_relations
        query = np.array([entity_id]), np.array([relation_id])
        probabilities = np.exp(self.log_probabilities(*query)[0])
        seen = self._past.mask(*self._put(*query))[0].tolist()
        return [
            {direction: self._entities[i], "probability": float(probabilities[i]), "seen_before": seen[i]}
            for i in np.argsort(-probabilities, kind="stable")[:top].tolist()
        ]

    @torch.inference_mode()
    def log_probabilities(self, subjects: np.ndarray, relations: np.ndarray) -> np.ndarray:
        """Log-probabilities of all entities as objects in the next step: float32 [b, n].

        Args:
            subjects, relations: ids [b]; a relation ``r + R`` asks for the subjects of ``r``.
        """
        first, second = self._put(subjects, relations)
        seen = self._history.mask(first, second)
        queries = Queries(first, second, self.time_index, seen)
        return self.network.entity_log_probabilities(self._evolved, queries).cpu().numpy()

    @cached_property
    @torch.inference_mode()
    def _evolved(self) -> Evolved:
        return self.network.encoder(self._snapshots)

    def _seen_objects(self, facts: Tensor) -> SeenObjects:
        sizes = {"num_entities": self.config.num_entities, "num_relations": self.config.num_relations}
        return SeenObjects(facts.to(self.device), **sizes)

    def _put(self, *ids: np.ndarray) -> list[Tensor]:
        return [torch.as_tensor(array, dtype=torch.int64, device=self.device) for array in ids]


def _default_path() -> Path:
    paths = [Path(DEFAULT_MODEL_DIR) / name for name in DEFAULT_FILES]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise CheckpointError(f"no {paths[0]} and no {paths[1]} here; run geopol-tkg convert, or give a path")
    return found


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise GeopolTkgError(f"device {name!r} is not there: {str(error).splitlines()[0]}") from error


def _read(path: Path) -> dict[str, Any]:
    """What the file holds; executes no code from it."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no .pt file here; run geopol-tkg convert first")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: damaged, or no plain .pt file ({type(error).__name__})") from error
    if not isinstance(contents, dict) or "format_version" not in contents:
        raise CheckpointError(f"{path}: not written by geopol-tkg convert (no format_version)")
    if contents["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version {contents['format_version']}, wanted {FORMAT_VERSION}")
    if missing := [key for key in _NEEDED if key not in contents]:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}")
    return contents


def _restore(path: Path, contents: dict[str, Any]) -> tuple[ModelConfig, Network]:
    try:
        config = ModelConfig(**contents["model_config"])
        network = build_network(config)
        network.load_state_dict(contents["model_state_dict"])
    except (TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: weights and model_config do not fit: {reason:.200}") from error
    return config, network


def _look_up(label: str, ids: dict[str, int], what: str) -> int:
    if label in ids:
        return ids[label]
    folded = {known.casefold(): known for known in ids}
    near = difflib.get_close_matches(label.casefold(), folded, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(folded[match] for match in near)}?" if near else ""
    raise DataError(f"{what} {label!r} is unknown to the model{hint}")
