"""Folders of quadruples as benchmarks come: ``train.txt valid.txt test.txt``, ids and bare times."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from geopol_tkg.config import IngestConfig
from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.files import sha256_of
from geopol_tkg.data.selection import distinct_facts
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import DataError, UsageError

_SPLITS = ("train", "valid", "test")
_ALWAYS_SO = {"num_days": 0, "keep_self_pairs": True}  # what a folder kept as given amounts to


def is_quadruple_folder(path: Path) -> bool:
    """Whether a folder holds at least ``train.txt`` and ``valid.txt``."""
    return all((path / f"{name}.txt").is_file() for name in ("train", "valid"))


def read_quadruples(folder: Path, config: IngestConfig) -> Dataset:
    """The dataset of a folder, kept as given: its facts, its split, all its entities.

    Without ``test.txt`` the test split is empty. The time step is the greatest common divisor of
    the distances between times.

    Raises:
        DataError: files are damaged, or a timestamp stands in two splits or out of order.
        UsageError: options ask to change facts or split.
    """
    _refuse_changes(config, folder)
    parts = {name: _read_facts(folder / f"{name}.txt") for name in _SPLITS}
    _require_time_order(parts, folder)
    given = np.concatenate(list(parts.values()))
    times = np.unique(given[:, 3])
    axis = TimeAxis(int(times[0]), int(np.gcd.reduce(np.diff(times))) or 1, None)
    given[:, 3] = (given[:, 3] - axis.origin) // axis.step
    entities, given[:, [0, 2]] = _label(folder, "entity", given[:, [0, 2]], _published(folder, 0))
    relations, given[:, 1] = _label(folder, "relation", given[:, 1], _published(folder, 1))
    last = int(given[:, 3].max())
    if last >= np.iinfo(np.int32).max:
        raise DataError(f"{folder}: times span {last:,} steps of {axis.step}; round them to a coarser step")
    facts = distinct_facts(tuple(given[:, [3, 0, 1, 2]].T))[:, [1, 2, 3, 0]]
    return Dataset(
        entities=entities,
        relations=relations,
        facts=np.ascontiguousarray(facts, dtype=np.int32),
        split=_split(parts, axis),
        time_axis=axis,
        details=_details(folder, config, parts, facts),
    )


def _refuse_changes(config: IngestConfig, folder: Path) -> None:
    default = IngestConfig()
    changed = [
        field.name
        for field in fields(config)
        if getattr(config, field.name) not in (getattr(default, field.name), _ALWAYS_SO.get(field.name))
        and field.name != "seed"
    ]
    if changed:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise UsageError(f"{folder}: a quadruple folder is kept as given; leave out {options}")


def _read_facts(path: Path) -> np.ndarray:
    """Rows of a split file, further columns left out: int64 [f, 4]."""
    if not path.is_file() or path.stat().st_size == 0:
        if path.stem == "test":
            return np.empty((0, 4), np.int64)
        raise DataError(f"{path}: missing or empty; a quadruple folder needs train.txt and valid.txt")
    try:
        facts = pd.read_csv(path, sep=r"\s+", header=None, usecols=[0, 1, 2, 3], dtype=np.int64)
    except (ValueError, OverflowError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: wanted lines of subject, relation, object, time as integers ({reason})") from error
    if (facts.iloc[:, :3] < 0).to_numpy().any():
        raise DataError(f"{path}: negative ids; wanted subject, relation, object, time")
    return facts.to_numpy()


def _require_time_order(parts: dict[str, np.ndarray], folder: Path) -> None:
    filled = [name for name in _SPLITS if len(parts[name])]
    for before, after in pairwise(filled):
        last, first = parts[before][:, 3].max(), parts[after][:, 3].min()
        if last >= first:
            raise DataError(
                f"{folder}: {after}.txt begins at time {first}, {before}.txt ends at {last}; "
                "a split is whole timestamps in time order: sort by time and cut between timestamps"
            )


def _split(parts: dict[str, np.ndarray], axis: TimeAxis) -> Split:
    test = parts["test"]
    test_start = int(test[:, 3].min()) if len(test) else int(parts["valid"][:, 3].max()) + axis.step
    valid_start = int(parts["valid"][:, 3].min())
    return Split((valid_start - axis.origin) // axis.step, (test_start - axis.origin) // axis.step)


def _published(folder: Path, position: int) -> int:
    """The number of entities (0) or relations (1) that ``stat.txt`` says, 0 without one."""
    path = folder / "stat.txt"
    words = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return int(words[position]) if len(words) > position and words[position].isdigit() else 0


def _label(folder: Path, kind: str, ids: np.ndarray, published: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Labels in order, and the ids of the facts in that order; entities without facts stay."""
    path = folder / f"{kind}2id.txt"
    labels = _read_labels(path) if path.is_file() else {i: str(i) for i in range(published)}
    labels |= {int(i): str(i) for i in np.unique(ids) if int(i) not in labels}
    labels = _distinct(labels)
    order = sorted(labels, key=lambda i: labels[i])
    new_ids = np.argsort(order)
    return tuple(labels[i] for i in order), new_ids[np.searchsorted(np.sort(order), ids)]


def _read_labels(path: Path) -> dict[int, str]:
    """Labels by id; a label may hold spaces where tabs separate, further columns are left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = [line.split("\t") if "\t" in line else line.rsplit(maxsplit=1) for line in lines if line.strip()]
    rows = rows[1:] if rows and len(rows[0]) == 1 else rows  # some begin with their length
    try:
        return {int(row[1]): row[0].strip() for row in rows}
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: wanted lines of label and id ({error})") from error


def _distinct(labels: dict[int, str]) -> dict[int, str]:
    """Labels that stand for two ids carry the id from the second on."""
    taken = set(labels.values())
    first: dict[str, int] = {}
    result = {}
    for i, label in labels.items():
        result[i] = label
        if first.setdefault(label, i) != i:
            while result[i] in taken:
                result[i] += f" ({i})"
            taken.add(result[i])
    return result


def _details(folder: Path, config: IngestConfig, parts: dict[str, np.ndarray], facts: np.ndarray) -> dict[str, object]:
    read = sum(map(len, parts.values()))
    dropped = {"duplicate": read - len(facts)} if read > len(facts) else {}
    times = np.unique(facts[:, 3])
    return {
        "options": asdict(config) | _ALWAYS_SO | {"split": None},
        "sources": list(_sources(folder, parts)),
        "rows": {"read": read, "kept": len(facts), "dropped": dropped},
        "gaps": {
            "missing_steps": int(times[-1] - times[0]) + 1 - len(times),
            "missing_days": [],
            "num_missing_days": 0,
            "empty_files": [],
        },
    }


def _sources(folder: Path, parts: dict[str, np.ndarray]) -> Iterable[dict[str, object]]:
    for name, facts in parts.items():
        path = folder / f"{name}.txt"
        if path.is_file():
            size = path.stat().st_size
            yield {"path": str(path), "size": size, "sha256": sha256_of(path), "rows": len(facts)}
