"""The dataset: labels, facts as integers, the split, and the directory that holds them."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geopol_tkg.config import SplitName
from geopol_tkg.data.files import json_bytes, replace_file
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import DataError

FORMAT_VERSION = 1
COLUMNS = ("subject", "relation", "object", "time")
FILES = ("dataset.json", "facts.parquet", "entities.parquet", "relations.parquet")


def inverse_relation(relation: np.ndarray, num_relations: int) -> np.ndarray:
    """``r + R`` for a relation, ``r`` for an inverse."""
    return np.where(relation < num_relations, relation + num_relations, relation - num_relations)


def with_inverses(facts: np.ndarray, num_relations: int) -> np.ndarray:
    """Facts [f, 4] followed by their inverses ``(o, r + R, s, t)``: int32 [2f, 4]."""
    inverses = facts[:, [2, 1, 0, 3]].copy()
    inverses[:, 1] = inverse_relation(inverses[:, 1], num_relations)
    return np.concatenate([facts, inverses])


@dataclass(frozen=True)
class Split:
    """Whole timestamps in time order: train ``t < valid_start``, test ``t >= test_start``."""

    valid_start: int
    test_start: int

    def bounds(self, name: SplitName) -> tuple[int, int]:
        """Half-open range of time indices of a split."""
        end = np.iinfo(np.int32).max
        starts = {
            "train": (-end, self.valid_start),
            "valid": (self.valid_start, self.test_start),
            "test": (self.test_start, end),
        }
        return starts[name]


@dataclass(frozen=True)
class Dataset:
    """A temporal knowledge graph.

    Attributes:
        entities, relations: labels by id.
        facts: int32 [f, 4], columns subject, relation, object, time; sorted by time, then by the
            columns in order; distinct.
        split: where valid and test begin.
        time_axis: what a time index means.
        entity_kind, relation_kind: which GDELT columns the labels are from ("given" otherwise).
        details: what the manifest records besides: options, sources, rows, gaps.
        path: the directory it was loaded from.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    facts: np.ndarray
    split: Split
    time_axis: TimeAxis
    entity_kind: str = "given"
    relation_kind: str = "given"
    details: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def num_entities(self) -> int:
        return len(self.entities)

    @property
    def num_relations(self) -> int:
        """Relations without inverses."""
        return len(self.relations)

    @cached_property
    def timestamps(self) -> np.ndarray:
        """Time indices that have facts, ascending: int32 [t]."""
        return np.unique(self.facts[:, 3])

    @cached_property
    def entity_to_id(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.entities)}

    @cached_property
    def relation_to_id(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.relations)}

    def facts_of(self, name: SplitName) -> np.ndarray:
        """Facts of one split, a view: int32 [f, 4]."""
        start, end = self.split.bounds(name)
        times = self.facts[:, 3]
        return self.facts[np.searchsorted(times, start) : np.searchsorted(times, end)]

    def facts_through(self, name: SplitName) -> np.ndarray:
        """Facts of a split and of those before it, a view: int32 [f, 4]."""
        return self.facts[: np.searchsorted(self.facts[:, 3], self.split.bounds(name)[1])]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over everything a number can depend on: labels, facts, times, split."""
        head = {
            "entities": self.entities,
            "relations": self.relations,
            "origin": self.time_axis.origin,
            "step": self.time_axis.step,
            "split": [self.split.valid_start, self.split.test_start],
        }
        digest = hashlib.sha256(json.dumps(head).encode())
        digest.update(np.ascontiguousarray(self.facts, dtype="<i4").tobytes())
        return digest.hexdigest()

    def counts(self) -> dict[str, int]:
        """Sizes, with facts per split."""
        sizes = {
            "facts": len(self.facts),
            "entities": self.num_entities,
            "relations": self.num_relations,
            "timestamps": len(self.timestamps),
        }
        names: tuple[SplitName, ...] = ("train", "valid", "test")
        return sizes | {name: len(self.facts_of(name)) for name in names}

    def save(self, directory: Path) -> None:
        """Write the directory. What stood there before is replaced once all of the new is on disk."""
        entity_counts = np.bincount(self.facts[:, [0, 2]].ravel(), minlength=self.num_entities)
        relation_counts = np.bincount(self.facts[:, 1], minlength=self.num_relations)
        with ExitStack() as stack:  # it closes the last first: dataset.json takes its place after the others
            manifest, *files = (stack.enter_context(replace_file(directory / name)) for name in FILES)
            manifest.write(json_bytes(self.manifest()))
            facts, entities, relations = files
            _write_table(facts, {name: self.facts[:, i] for i, name in enumerate(COLUMNS)})
            _write_labels(entities, self.entities, entity_counts)
            _write_labels(relations, self.relations, relation_counts)
            for file in (manifest, *files):
                file.flush()

    def manifest(self) -> dict[str, Any]:
        """What ``dataset.json`` says."""
        return {
            "format_version": FORMAT_VERSION,
            "content_hash": self.content_hash,
            "entity": self.entity_kind,
            "relation": self.relation_kind,
            "granularity": self.time_axis.granularity,
            "origin": self.time_axis.origin,
            "step": self.time_axis.step,
            "first_time": self.time_axis.label(int(self.timestamps[0])),
            "last_time": self.time_axis.label(int(self.timestamps[-1])),
            "split": {
                "valid_start": self.split.valid_start,
                "test_start": self.split.test_start,
                "valid_start_time": self.time_axis.label(self.split.valid_start),
                "test_start_time": self.time_axis.label(self.split.test_start),
            },
            "counts": self.counts(),
        } | self.details

    @classmethod
    def load(cls, directory: Path) -> "Dataset":
        """Read a directory that :meth:`save` wrote.

        Raises:
            DataError: it is no dataset, of another format version, or its files do not belong together.
        """
        manifest = _read_manifest(directory)
        try:
            facts = _read_table(directory / "facts.parquet", COLUMNS)
            dataset = cls(
                entities=_read_labels(directory / "entities.parquet"),
                relations=_read_labels(directory / "relations.parquet"),
                facts=np.stack([facts[name].to_numpy() for name in COLUMNS], axis=1),
                split=Split(manifest["split"]["valid_start"], manifest["split"]["test_start"]),
                time_axis=TimeAxis(manifest["origin"], manifest["step"], manifest["granularity"]),
                entity_kind=manifest["entity"],
                relation_kind=manifest["relation"],
                details={k: v for k, v in manifest.items() if k in ("options", "sources", "rows", "gaps")},
                path=directory,
            )
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise DataError(f"{directory}: damaged dataset ({error}); run ingest again") from error
        if dataset.content_hash != manifest["content_hash"]:
            raise DataError(f"{directory}: files and dataset.json do not belong together; run ingest again")
        return dataset


def is_dataset(directory: Path) -> bool:
    """Whether the directory holds a dataset."""
    return (directory / "dataset.json").is_file()


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / "dataset.json"
    if not path.is_file():
        raise DataError(f"{directory}: no dataset here (no dataset.json); run geopol-tkg ingest first")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); run ingest again") from error
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if found != FORMAT_VERSION:
        raise DataError(f"{path}: format_version {found}, wanted {FORMAT_VERSION}; run ingest again")
    return manifest


def _write_table(file: BinaryIO, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), file, compression="zstd")


def _write_labels(file: BinaryIO, labels: tuple[str, ...], counts: np.ndarray) -> None:
    ids = np.arange(len(labels), dtype=np.int32)
    _write_table(file, {"id": ids, "label": pa.array(labels, pa.string()), "count": counts})


def _read_labels(path: Path) -> tuple[str, ...]:
    return tuple(_read_table(path, ["label"])["label"].to_pylist())


def _read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    with path.open("rb") as file:  # pyarrow opens no path that is not UTF-8
        return pq.read_table(file, columns=list(columns))
