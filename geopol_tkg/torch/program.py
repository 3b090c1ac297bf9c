"""The scoring function of one step as a program of its own: ids in, log-probabilities out, nothing else to load."""

import copy
import json
import logging
import warnings
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from geopol_tkg.errors import GeopolTkgError, UsageError
from geopol_tkg.torch.facts import KnownFacts
from geopol_tkg.torch.modules import Evolved, Network, Queries
from geopol_tkg.torch.predictor import TKGPredictor

_DESCRIPTION = "geopol_tkg.json"
_DESCRIBED = (
    *("format_version", "model_type", "model_config", "entity_to_id", "relation_to_id", "epoch", "metrics"),
    "temperature",  # not applied
)


class ScoringProgram(nn.Module):
    """Log-probabilities of every entity as object, from evolved embeddings and the history vocabulary, both fixed.

    Raises:
        UsageError: the model counts.
    """

    def __init__(self, predictor: TKGPredictor) -> None:
        super().__init__()
        if predictor.config.is_counting or not isinstance(predictor.network, Network):
            raise UsageError("counts are looked up among the facts, which no program holds: use pt or safetensors")
        facts, window = predictor.facts, predictor.config.history_window
        self.network = _scoring_part(predictor.network)
        self.time, self.num_relations = facts.time_index, facts.num_relations
        starts, objects = _history(facts, since=facts.time_index - window if window else None)
        self.capacity = int(np.diff(starts).max())
        self.entities: Tensor
        self.relations: Tensor
        self.starts: Tensor
        self.objects: Tensor
        evolved = predictor.evolved()
        self.register_buffer("entities", evolved.entities.clone())
        self.register_buffer("relations", evolved.relations.clone())
        self.register_buffer("starts", torch.from_numpy(starts))
        self.register_buffer("objects", torch.from_numpy(objects))

    def forward(self, subjects: Tensor, relations: Tensor) -> Tensor:
        """Float32 [b, n] from int64 ids [b]; a relation ``r + R`` asks for the subjects of ``r``."""
        queries = Queries(subjects, relations, self.time, self._seen(subjects, relations))
        evolved = Evolved(self.entities, self.relations, self.entities.new_zeros(()))
        return self.network.entity_log_probabilities(evolved, queries)

    def _seen(self, subjects: Tensor, relations: Tensor) -> Tensor:
        """History mask: bool [b, n]. Objects beyond a query's own go to a column that is cut off."""
        key = subjects * 2 * self.num_relations + relations
        start, end = self.starts[key].long().unsqueeze(1), self.starts[key + 1].long().unsqueeze(1)
        place = start + torch.arange(self.capacity)
        found = self.objects[place.clamp(max=self.objects.shape[0] - 1)].long()
        size = self.entities.shape[0]
        column = torch.where(place < end, found, size)
        seen = torch.zeros(subjects.shape[0], size + 1, dtype=torch.int32)
        return seen.scatter(1, column, 1)[:, :size] > 0


def _scoring_part(network: Network) -> Network:
    """A copy without what scores of entities do not need."""
    part = copy.deepcopy(network)
    for name, _ in network.named_children():
        if name == "encoder" or "relation_decoder" in name:
            delattr(part, name)
    return part


def _history(facts: KnownFacts, *, since: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Objects seen with each ``s * 2R + r``: int32 [N * 2R + 1] places in int32 [p], which is never empty."""
    size = facts.num_entities * 2 * facts.num_relations
    subjects, relations = np.divmod(np.arange(size), 2 * facts.num_relations)
    matches = facts.objects(subjects, relations)
    kept = slice(None) if since is None else matches.last_seen >= since
    starts = np.searchsorted(matches.query[kept], np.arange(size + 1)).astype(np.int32)
    return starts, np.append(matches.candidate[kept], 0).astype(np.int32)


def write(predictor: TKGPredictor, contents: dict[str, Any], file_format: str, file: BinaryIO) -> None:
    """The program of a predictor's next step, with labels, sizes and time as JSON under ``geopol_tkg.json``."""
    description = json.dumps({key: contents[key] for key in _DESCRIBED} | {"time": predictor.time}, ensure_ascii=False)
    module = ScoringProgram(predictor).eval()
    with torch.no_grad():
        content = _to_onnx(module, description) if file_format == "onnx" else _to_torch_export(module, description)
    file.write(content)


def _to_torch_export(module: ScoringProgram, description: str) -> bytes:
    """For ``torch.export.load``; any number of queries at once."""
    exported = torch.export.export(module, _example(), dynamic_shapes=_any_batch())
    buffer = BytesIO()
    torch.export.save(exported, buffer, extra_files={_DESCRIPTION: description})
    return buffer.getvalue()


def _to_onnx(module: ScoringProgram, description: str) -> bytes:
    """With inputs ``subjects`` and ``relations``; the description is a metadata property."""
    try:
        import onnxruntime  # noqa: F401 - the check needs it
        import onnxscript  # noqa: F401 - the exporter needs it
    except ImportError as error:
        raise GeopolTkgError("ONNX needs onnxscript and onnxruntime: pip install 'geopol-tkg[onnx]'") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which is not needed
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name: batch", UserWarning)
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        exported = torch.onnx.export(
            module,
            _example(),
            dynamo=True,
            dynamic_shapes=_any_batch(),
            input_names=["subjects", "relations"],
            output_names=["log_probabilities"],
            verbose=False,
        )
    exported.model.metadata_props[_DESCRIPTION] = description
    return exported.model_proto.SerializeToString()


def _example() -> tuple[Tensor, Tensor]:
    return torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)


def _any_batch() -> tuple[dict[int, Any], dict[int, Any]]:
    batch = torch.export.Dim("batch", min=1)
    return {0: batch}, {0: batch}
