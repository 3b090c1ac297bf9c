"""The files that ``geopol-tkg convert`` writes, and what they hold: nested dictionaries of tensors and plain values.

Reading executes no code from a file.
"""

import hashlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from geopol_tkg.config import DEFAULT_MODEL_DIR, ModelConfig
from geopol_tkg.errors import CheckpointError, GeopolTkgError
from geopol_tkg.torch.counts import CountModel
from geopol_tkg.torch.facts import KnownFacts, snapshots_kept, split_by_time
from geopol_tkg.torch.modules import Network, build_network

FORMAT_VERSION = 2
DEFAULT_FILES = ("tirgn_trained.pt", "regcn_trained.pt", "counts_trained.pt")
_WEIGHTS = "model_state_dict"
_CLOCK = ("time_index", "origin", "step", "granularity")
_NEEDED = {
    "model_config": (),
    _WEIGHTS: (),
    "entity_to_id": (),
    "relation_to_id": (),
    "triple_frequency": ("triples", "counts", "last_seen"),
    "context": ("snapshots", "snapshot_times", *_CLOCK),
}
_NEEDED_TO_COUNT = _NEEDED | {"context": ("facts", *_CLOCK)}
# What torch.load has been seen to raise on damaged files.
_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError),
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
)


def default_path() -> Path:
    """The file that is loaded when none is named: what ``convert`` wrote last in the default place."""
    paths = [Path(DEFAULT_MODEL_DIR) / name for name in DEFAULT_FILES]
    found = [path for path in paths if path.is_file()]
    if not found:
        names = ", ".join(DEFAULT_FILES)
        raise CheckpointError(f"none of {names} in {DEFAULT_MODEL_DIR}; run geopol-tkg convert, or give a path")
    return max(found, key=lambda path: path.stat().st_mtime)


def read(path: Path) -> dict[str, Any]:
    """What a ``.pt`` or ``.safetensors`` file holds.

    Raises:
        CheckpointError: it is missing, damaged, foreign or of another format version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; run geopol-tkg convert first")
    contents = _read_safetensors(path) if _is_safetensors(path) else _read_pt(path)
    if not isinstance(contents, dict) or "format_version" not in contents:
        raise CheckpointError(f"{path}: not written by geopol-tkg convert (no format_version)")
    if contents["format_version"] != FORMAT_VERSION:
        found = contents["format_version"]
        raise CheckpointError(f"{path}: format_version {found}, wanted {FORMAT_VERSION}; convert the checkpoint again")
    for key, parts in (_NEEDED_TO_COUNT if _is_counting(contents) else _NEEDED).items():
        if key not in contents:
            raise CheckpointError(f"{path}: lacks {key}")
        if missing := [part for part in parts if part not in contents[key]]:
            raise CheckpointError(f"{path}: {key} lacks {missing[0]}")
    return contents


def _is_counting(contents: dict[str, Any]) -> bool:
    config = contents.get("model_config")
    return isinstance(config, dict) and (config.get("model_type") == "counts" or bool(config.get("count_prior")))


def restore(path: Path, contents: dict[str, Any]) -> tuple[ModelConfig, Network | CountModel, KnownFacts]:
    """Network and facts of a file; the network takes the tensors as they are, without a copy.

    Raises:
        CheckpointError: the file's parts do not fit together.
    """
    try:
        config = ModelConfig(**{name: _hashable(value) for name, value in contents["model_config"].items()})
        network = build_network(config)  # not on the meta device, whose first use takes seconds
        _require_types(network, contents[_WEIGHTS])
        network.load_state_dict(contents[_WEIGHTS], assign=True)
    except (TypeError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: weights and model_config do not fit: {reason:.200}") from error
    try:
        facts = _known_facts(config, contents)
        _require_ids(config, contents, facts)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: labels, facts and model_config do not fit: {error}") from error
    return config, network, facts


def _hashable(value: Any) -> Any:
    """JSON knows lists, the settings of a network are tuples."""
    return tuple(value) if isinstance(value, list) else value


def temperature(path: Path, contents: dict[str, Any]) -> float:
    """What log-probabilities of entities are divided by; 1 in files that have none.

    Raises:
        CheckpointError: it is no number above 0.
    """
    entry = contents.get("temperature")
    try:
        value = 1.0 if entry is None else float(entry["value"])
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: temperature has no value") from error
    if not 0 < value < float("inf"):
        raise CheckpointError(f"{path}: temperature {value}, wanted a number above 0")
    return value


def _require_types(network: Network | CountModel, weights: dict[str, Tensor]) -> None:
    for name, wanted in network.state_dict().items():
        if name in weights and weights[name].dtype != wanted.dtype:
            raise TypeError(f"{name} is {weights[name].dtype}, wanted {wanted.dtype}")


def _known_facts(config: ModelConfig, contents: dict[str, Any]) -> KnownFacts:
    context, triples = contents["context"], contents["triple_frequency"]
    if config.is_counting:
        times, snapshots = split_by_time(context["facts"].numpy())
    else:
        times, snapshots = context["snapshot_times"], [snapshot.numpy() for snapshot in context["snapshots"]]
    return KnownFacts(
        config.num_entities,
        config.num_relations,
        snapshots_kept(config),
        snapshots=tuple(snapshots),
        snapshot_times=tuple(times),
        triples=triples["triples"].numpy(),
        counts=triples["counts"].numpy(),
        last_seen=triples["last_seen"].numpy(),
        time_index=int(context["time_index"]),
    )


def _require_ids(config: ModelConfig, contents: dict[str, Any], facts: KnownFacts) -> None:
    sizes = {"entity_to_id": config.num_entities, "relation_to_id": config.num_relations}
    for name, size in sizes.items():
        if sorted(contents[name].values()) != list(range(size)):
            raise ValueError(f"{name} does not number {size} labels")
    limits = [config.num_entities, config.num_relations, config.num_entities]
    for triples in (facts.triples, *facts.snapshots):
        if triples.ndim != 2 or ((triples < 0) | (triples >= limits)).any():
            raise ValueError("a fact names an id that there is not")
    if not len(facts.triples) == len(facts.counts) == len(facts.last_seen):
        raise ValueError("triple_frequency has parts of different length")
    if len(facts.snapshots) != len(facts.snapshot_times):
        raise ValueError("snapshots and snapshot_times differ in number")


def _is_safetensors(path: Path) -> bool:
    """A safetensors file begins with the length of its JSON, 8 bytes, and the JSON; a ``.pt`` is a zip."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read_pt(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load reads past wrong checksums
            if (part := archive.testzip()) is not None:
                raise zipfile.BadZipFile(part)
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: damaged, or no plain .pt file ({type(error).__name__})") from error


def write_pt(contents: dict[str, Any], file: BinaryIO) -> None:
    """One dictionary that ``torch.load(path, weights_only=True)`` reads."""
    buffer = io.BytesIO()  # torch would hide that the disk is full behind an error of its own
    torch.save(contents, buffer)
    file.write(buffer.getbuffer())


def write_safetensors(contents: dict[str, Any], file: BinaryIO) -> None:
    """Tensors under their names in the state dict, or their path in the contents; all else as JSON in the metadata."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_take_out(contents, (), tensors), ensure_ascii=False)
    metadata = {"format": "pt", "geopol_tkg": text, "sha256": _digest(text, tensors)}
    file.write(_safetensors().torch.save(tensors, metadata))


def _read_safetensors(path: Path) -> Any:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if "geopol_tkg" not in metadata:
            return None
        if _digest(metadata["geopol_tkg"], tensors) != metadata.get("sha256"):
            raise ValueError("sha256 differs")
        return _put_back(json.loads(metadata["geopol_tkg"]), tensors)
    except (*_UNREADABLE, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({type(error).__name__})") from error


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Of the JSON, and of name, type, shape and bytes of each tensor: the format has no checksum of its own."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        values = tensors[name].contiguous().numpy()
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _take_out(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """The value with the name of each tensor in its place; the tensors go into ``tensors``."""
    if isinstance(value, Tensor):
        name = path[1] if path[0] == _WEIGHTS else "/".join(path)
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: _take_out(item, (*path, key), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take_out(item, (*path, str(i)), tensors) for i, item in enumerate(value)]
    return value


def _put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_back(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"tensor"} and isinstance(value["tensor"], str):
        return tensors[value["tensor"]]
    return {key: _put_back(item, tensors) for key, item in value.items()}


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise GeopolTkgError(".safetensors needs safetensors: pip install 'geopol-tkg[safetensors]'") from error
    return safetensors
