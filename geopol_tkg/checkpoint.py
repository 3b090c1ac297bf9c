"""Checkpoints: plain arrays in an .npz and all else in a .json beside it.

The .json names the .npz by its digest and commits the pair: new arrays wait under another name until it is
replaced, and a reader that comes in between takes them from there.
"""

import hashlib
import io
import json
import os
import platform
import struct
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from flax import nnx

from geopol_tkg.config import ModelConfig, ModelType
from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.files import replace_file, sha256_of, write_json
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import CheckpointError
from geopol_tkg.models.registry import build_model

FORMAT_VERSION = 1
_READINGS = 5  # of a pair that is being replaced all the while
_ZIP_END, _ZIP_END_SIZE = b"PK\5\6", 22
_ZIP_EXTRA = 20  # bytes that numpy's archives have between a member's name and its content
_AS_GIVEN = ("settings", "epoch", "metrics", "entity_to_id", "relation_to_id", "dataset", "resume")
_ENVIRONMENT = ("geopol-tkg", "jax", "jaxlib", "flax", "optax", "numpy")


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with all that gives its numbers a meaning.

    Attributes:
        config: the network.
        settings: the training settings, resolved.
        arrays: parameters and running statistics by readable key (``encoder/layers/0/message_weight``).
        trained_entities: bool [n], entities with a fact that was learned from.
        dataset: content hash, split, labels' kinds, time axis and path of the training dataset.
        temperature: that probabilities are read with (``value``), and what it was fitted on; None: not fitted.
        resume: what else a run needs to go on; its arrays stand under ``optimiser/``.
        source: what errors call it, the path it was loaded from.
    """

    config: ModelConfig
    settings: dict[str, Any]
    epoch: int
    metrics: dict[str, Any]
    entity_to_id: dict[str, int]
    relation_to_id: dict[str, int]
    dataset: dict[str, Any]
    arrays: dict[str, np.ndarray]
    trained_entities: np.ndarray
    temperature: dict[str, Any] | None = None
    resume: dict[str, Any] | None = None
    optimiser: dict[str, np.ndarray] = field(default_factory=dict)
    source: str = "checkpoint"

    @property
    def time_axis(self) -> TimeAxis:
        return TimeAxis(self.dataset["origin"], self.dataset["step"], self.dataset["granularity"])

    @property
    def split(self) -> Split:
        return Split(self.dataset["valid_start"], self.dataset["test_start"])

    @property
    def trained_until(self) -> int:
        """Time index before which facts were learned from."""
        bound = {"train": "valid_start", "valid": "test_start", "test": "end"}
        return int(self.dataset[bound[self.settings.get("through", "train")]])

    def learned_from(self, facts: np.ndarray) -> bool:
        """Whether it learned from times of facts [f, 4], in its ids and times, sorted by time."""
        return len(facts) > 0 and int(facts[0, 3]) < self.trained_until

    @property
    def temperature_value(self) -> float:
        """1 where none was fitted."""
        return 1.0 if self.temperature is None else float(self.temperature["value"])

    def network(self) -> tuple[nnx.GraphDef[Any], Any]:
        """Structure and state of the trained network.

        Raises:
            CheckpointError: arrays are missing, left over or of another shape.
        """
        skeleton = nnx.eval_shape(lambda: build_model(self.config, key=jax.random.key(0)))
        graphdef, state = nnx.split(skeleton)
        return graphdef, fill(state, self.arrays, source=self.source)


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint records of the dataset it was trained on."""
    return {
        "content_hash": dataset.content_hash,
        "path": None if dataset.path is None else str(dataset.path.resolve()),
        "entity": dataset.entity_kind,
        "relation": dataset.relation_kind,
        "origin": dataset.time_axis.origin,
        "step": dataset.time_axis.step,
        "granularity": dataset.time_axis.granularity,
        "valid_start": dataset.split.valid_start,
        "test_start": dataset.split.test_start,
        "end": int(dataset.timestamps[-1]) + 1,
        "counts": dataset.counts(),
    }


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Leaves of a pytree by readable path, on the host."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def fill(skeleton: Any, arrays: dict[str, np.ndarray], *, source: str = "checkpoint") -> Any:
    """The skeleton with its leaves taken from arrays.

    Raises:
        CheckpointError: an array is missing, left over, or of another shape or type.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(skeleton)
    wanted = {_name(path): leaf for path, leaf in leaves}
    if missing := sorted(wanted.keys() - arrays.keys()):
        raise CheckpointError(f"{source}: lacks array {missing[0]} ({len(missing)} missing); train again")
    if extra := sorted(arrays.keys() - wanted.keys()):
        raise CheckpointError(f"{source}: unexpected array {extra[0]} ({len(extra)} left over); train again")
    for name, leaf in wanted.items():
        _require_like(name, arrays[name], leaf.shape, leaf.dtype, source)
    return jax.tree_util.tree_unflatten(structure, [jax.numpy.asarray(arrays[name]) for name in wanted])


def _require_like(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: Any, source: str) -> None:
    if (array.shape, array.dtype) != (shape, dtype):
        found, wanted = f"{array.dtype}{list(array.shape)}", f"{dtype}{list(shape)}"
        raise CheckpointError(f"{source}: array {name} is {found}, wanted {wanted}; train again")


def _name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path]
    return "/".join(part for part in parts if part != "value")


def checkpoint_paths(stem: Path) -> tuple[Path, Path]:
    """The .npz and the .json of a checkpoint named by its stem, its .npz or its .json."""
    if stem.suffix in (".npz", ".json"):
        stem = stem.with_suffix("")
    stem = stem if stem.name else stem.resolve()  # of "."
    return stem.with_name(f"{stem.name}.npz"), stem.with_name(f"{stem.name}.json")


def save_checkpoint(stem: Path, checkpoint: Checkpoint) -> None:
    """Write the pair; killed at any moment, or on a full disk, the old pair or the new one is there."""
    npz_path, json_path = checkpoint_paths(stem)
    arrays = {"trained_entities": checkpoint.trained_entities, **checkpoint.arrays}
    arrays |= {f"optimiser/{name}": array for name, array in checkpoint.optimiser.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    content = buffer.getbuffer()
    with replace_file(_waiting(npz_path)) as file:
        file.write(content)
    manifest = _describe(checkpoint, arrays) | {"sha256": hashlib.sha256(content).hexdigest()}
    write_json(json_path, manifest | {"json_sha256": _digest(manifest)})
    os.replace(_waiting(npz_path), npz_path)


def remove_checkpoint(stem: Path) -> None:
    """Remove a pair, the .json first: what is left has no name."""
    npz_path, json_path = checkpoint_paths(stem)
    for path in (json_path, _waiting(npz_path), npz_path):
        path.unlink(missing_ok=True)


def settle_checkpoint(stem: Path) -> None:
    """Finish what a killed writer left half done, and remove its temporary files; for the only writer."""
    npz_path, json_path = checkpoint_paths(stem)
    waiting = _waiting(npz_path)
    if waiting.is_file():
        with suppress(CheckpointError):  # the reader will say it
            if sha256_of(waiting) == read_manifest(json_path).get("sha256"):
                os.replace(waiting, npz_path)
        waiting.unlink(missing_ok=True)
    for path in (npz_path, json_path):
        for left in path.parent.glob(f".{path.name}.*"):
            left.unlink()


def _waiting(npz_path: Path) -> Path:
    """Where new arrays stand until the .json names them."""
    return npz_path.with_name(f"{npz_path.name}.new")


def _digest(manifest: dict[str, Any]) -> str:
    """Of the content, not of its layout."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _describe(checkpoint: Checkpoint, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "model_type": checkpoint.config.model_type,
        "epoch": checkpoint.epoch,
        "metrics": checkpoint.metrics,
        "config": asdict(checkpoint.config),
        "settings": checkpoint.settings,
        "entity_to_id": checkpoint.entity_to_id,
        "relation_to_id": checkpoint.relation_to_id,
        "dataset": checkpoint.dataset,
        "temperature": checkpoint.temperature,
        "environment": {"python": platform.python_version()} | {name: version(name) for name in _ENVIRONMENT},
        "resume": checkpoint.resume,
        "arrays": {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in arrays.items()},
    }


def load_checkpoint(stem: Path) -> Checkpoint:
    """Read a checkpoint; executes no code from it.

    Raises:
        CheckpointError: it is missing, damaged, of another format version, or its two files do not
            belong together.
    """
    npz_path, json_path = checkpoint_paths(stem)
    manifest, content = _read_pair(npz_path, json_path)
    arrays = _read_arrays(content, npz_path)
    optimiser = {n.removeprefix("optimiser/"): arrays.pop(n) for n in list(arrays) if n.startswith("optimiser/")}
    try:
        config = _read_config(manifest["config"], json_path)
        trained_entities = arrays.pop("trained_entities")
        given = {name: manifest[name] for name in _AS_GIVEN}
        sizes = len(given["entity_to_id"]), len(given["relation_to_id"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{json_path}: not a complete checkpoint ({error}); train again") from error
    if sizes != (config.num_entities, config.num_relations):
        raise CheckpointError(f"{json_path}: labels and config differ in number; train again")
    temperature = manifest.get("temperature")
    if temperature is not None and not _is_temperature(temperature):
        raise CheckpointError(f"{json_path}: temperature has no value above 0; train again")
    _require_like("trained_entities", trained_entities, (config.num_entities,), np.dtype(bool), str(npz_path))
    return Checkpoint(
        config=config,
        trained_entities=trained_entities,
        arrays=arrays,
        temperature=temperature,
        optimiser=optimiser,
        source=str(npz_path),
        **given,
    )


def _is_temperature(entry: Any) -> bool:
    value = entry.get("value") if isinstance(entry, dict) else None
    return isinstance(value, int | float) and 0 < value < float("inf")


def _read_config(entries: dict[str, Any], path: Path) -> ModelConfig:
    if unknown := sorted(entries.keys() - {f.name for f in fields(ModelConfig)}):
        raise CheckpointError(f"{path}: unknown config entry {unknown[0]}; made by a newer version?")
    entries = {name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()}
    config = ModelConfig(**entries)
    if config.model_type not in get_args(ModelType):
        raise CheckpointError(f"{path}: unknown model_type {config.model_type!r}; made by a newer version?")
    return config


def _read_pair(npz_path: Path, json_path: Path) -> tuple[dict[str, Any], bytes]:
    """The .json and the bytes of the arrays that it names; those that wait are looked at first, for they move."""
    for _ in range(_READINGS):
        manifest = read_manifest(json_path)
        for path in (_waiting(npz_path), npz_path):
            content = _content(path)
            if content is not None and hashlib.sha256(content).hexdigest() == manifest.get("sha256"):
                return manifest, content
        if manifest == read_manifest(json_path):
            break
    if content is None:
        raise CheckpointError(f"{npz_path}: does not exist, though its .json does; train again")
    raise CheckpointError(f"{npz_path}: {_damage(content, manifest)}; train again")


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The .json of a checkpoint; raises CheckpointError where there is none or it is damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint here; run geopol-tkg train first or name one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); train again") from error
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if found != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version {found}, wanted {FORMAT_VERSION}; train again")
    digest = manifest.pop("json_sha256", None)
    if digest is not None and digest != _digest(manifest):
        raise CheckpointError(f"{path}: damaged or changed by hand (json_sha256 differs); train again")
    return manifest


def _damage(content: bytes, manifest: dict[str, Any]) -> str:
    """What is wrong with bytes that are not those the .json names."""
    members = [f"{name}.npy" for name in manifest.get("arrays") or ()]
    if _ZIP_END not in content[-_ZIP_END_SIZE:]:
        begun = [name for name in members if struct.pack("<HH", len(name), _ZIP_EXTRA) + name.encode() in content]
        return f"truncated in or after array {begun[-1].removesuffix('.npy')}" if begun else "truncated"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError):
        return "its table of contents is damaged"
    if broken in members:
        return f"array {str(broken).removesuffix('.npy')} is damaged (its checksum differs)"
    return "does not belong to its .json, or is damaged outside its arrays (sha256 differs)"


def _read_arrays(content: bytes, path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    name = ""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as members:
            for name in members.files:
                arrays[name] = members[name]
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"{path}: array {name} is not a plain array ({error}); train again") from error
    return arrays
