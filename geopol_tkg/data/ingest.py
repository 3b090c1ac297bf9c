"""From event files to a dataset."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geopol_tkg.config import IngestConfig
from geopol_tkg.data import selection
from geopol_tkg.data.dataset import Dataset, Split, is_dataset
from geopol_tkg.data.events import EventBatch, read_events
from geopol_tkg.data.quadruples import is_quadruple_folder, read_quadruples
from geopol_tkg.data.sources import SourceFile, find_files
from geopol_tkg.data.time_axis import TimeAxis, floor_to_step, granularity_seconds
from geopol_tkg.data.times import DAY
from geopol_tkg.errors import DataError, UsageError

_LISTED_DAYS = 100
Progress = Callable[[str], None]


def ingest(sources: Sequence[str], config: IngestConfig, *, progress: Progress | None = None) -> Dataset:
    """Read events and make a dataset of them; nothing is written.

    Args:
        sources: files, folders, globs, ``s3://`` and ``gs://`` addresses, ``sample``, or one
            quadruple folder.
        config: which rows become facts, and how.
        progress: told one line per file.

    Raises:
        DataError: a source that is missing or unreadable, or no facts left.
        UsageError: options that hold an impossible value, sources that do not go together.
    """
    _check(config)
    for source in sources:
        if is_dataset(Path(source)):
            raise DataError(f"{source}: a dataset already; give the events that it was made from")
    folders = [source for source in sources if is_quadruple_folder(Path(source))]
    if folders and len(sources) > 1:
        raise UsageError(f"{folders[0]}: a quadruple folder is ingested alone, without other sources")
    if folders:
        return read_quadruples(Path(folders[0]), config)
    collected = _Collected(config)
    for file in find_files(sources):
        collected.read(file, progress or (lambda _line: None))
    return _build(collected, config)


def _check(config: IngestConfig) -> None:
    granularity_seconds(config.granularity)
    for name in ("num_days", "max_events", "min_mentions", "min_entity_count"):
        if getattr(config, name) < 0:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(config, name)}: wanted 0 or more")


class _Labels:
    """Ids in order of appearance, and at the end ids in order of labels."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def ids(self, column: pa.ChunkedArray) -> np.ndarray:
        """Ids of labels, new ones given where needed: int32 [rows]."""
        encoded = pa.concat_arrays(column.chunks or [pa.array([], pa.string())]).dictionary_encode()
        table = [self._ids.setdefault(label, len(self._ids)) for label in encoded.dictionary.to_pylist()]
        return np.array(table, np.int32)[encoded.indices.to_numpy()]

    def ordered(self) -> tuple[list[str], np.ndarray]:
        """Labels sorted, and the place of each id among them: int32 [labels]."""
        labels = sorted(self._ids)
        places = np.empty(len(labels), np.int32)
        places[[self._ids[label] for label in labels]] = np.arange(len(labels))
        return labels, places


@dataclass
class _Collected:
    """Usable rows of all files as integers, and what there is to report."""

    config: IngestConfig
    entities: _Labels = field(default_factory=_Labels)
    relations: _Labels = field(default_factory=_Labels)
    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)  # seconds, subject, relation, object
    last: int = np.iinfo(np.int64).min
    num_rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    days: set[int] = field(default_factory=set)
    files: list[dict[str, Any]] = field(default_factory=list)
    given: bool = False

    def read(self, file: SourceFile, progress: Progress) -> None:
        """Add the rows of a file."""
        before, usable = self.num_rows, 0
        for batch in read_events(file, self.config):
            usable += len(batch.events)
            self._add(batch)
        rows = self.num_rows - before
        self.files.append({"path": file.path, "size": file.size, "sha256": file.sha256(), "rows": rows})
        progress(f"{file.path}: {rows} rows, {usable} usable" if rows else f"{file.path}: empty")

    def _add(self, batch: EventBatch) -> None:
        self.num_rows += batch.rows
        self.dropped.update(batch.dropped)
        self.days.update(batch.days.tolist())
        self.given |= batch.given
        if len(batch.events):
            self.last = max(self.last, pc.max(batch.events["timestamp"]).as_py())
        events = self._recent(batch.events)
        self.parts.append(
            (
                events["timestamp"].to_numpy(),
                self.entities.ids(events["entity1"]),
                self.relations.ids(events["relation"]),
                self.entities.ids(events["entity2"]),
            )
        )

    def _recent(self, events: pa.Table) -> pa.Table:
        """Without the rows that are too old already, whatever comes: old files take no memory."""
        kept = selection.in_last_days(events["timestamp"].to_numpy(), self.config.num_days, self.last)
        self.dropped["outside_num_days"] += int((~kept).sum())
        return events.filter(pa.array(kept))

    def columns(self) -> tuple[np.ndarray, ...]:
        """Seconds, subject, relation, object of all rows on the days to keep; the parts are given up."""
        columns = tuple(np.concatenate(part) for part in zip(*self.parts, strict=True))
        self.parts.clear()
        if not columns:
            return tuple(np.empty(0, np.int64) for _ in range(4))
        kept = selection.in_last_days(columns[0], self.config.num_days, self.last)
        self.dropped["outside_num_days"] += int((~kept).sum())
        return columns if kept.all() else tuple(column[kept] for column in columns)

    def require(self, facts: np.ndarray) -> None:
        """Refuse to go on without facts, naming the reason that took most rows."""
        if len(facts):
            return
        if not self.num_rows:
            raise DataError(f"{self.files[0]['path']}: no rows in the {len(self.files)} file(s) given")
        reason, count = self.dropped.most_common(1)[0]
        raise DataError(f"no facts left of {self.num_rows} rows; most were dropped as {reason} ({count})")


def _build(collected: _Collected, config: IngestConfig) -> Dataset:
    step = granularity_seconds(config.granularity)
    entities, entity_places = collected.entities.ordered()
    relations, relation_places = collected.relations.ordered()
    seconds, subject, relation, object_ = collected.columns()
    collected.require(seconds)
    origin = floor_to_step(int(seconds.min()), step)
    columns = (
        (seconds - origin) // step,
        entity_places[subject],
        relation_places[relation],
        entity_places[object_],
    )
    facts = _select(columns, collected, config)
    origin += int(facts[0, 0]) * step
    facts[:, 0] -= facts[0, 0]
    if facts[-1, 0] >= np.iinfo(np.int32).max:
        raise DataError(f"times span {facts[-1, 0]:,} steps of {config.granularity}; give --num-days, or wider steps")
    used_entities = np.unique(facts[:, [1, 3]])
    used_relations = np.unique(facts[:, 2])
    facts[:, [1, 3]] = np.searchsorted(used_entities, facts[:, [1, 3]])
    facts[:, 2] = np.searchsorted(used_relations, facts[:, 2])
    axis = TimeAxis(origin, step, config.granularity.strip())
    return Dataset(
        entities=tuple(entities[i] for i in used_entities),
        relations=tuple(relations[i] for i in used_relations),
        facts=np.ascontiguousarray(facts[:, [1, 2, 3, 0]], dtype=np.int32),
        split=_split(np.unique(facts[:, 0]), collected, config),
        time_axis=axis,
        entity_kind="given" if collected.given else config.entity,
        relation_kind="given" if collected.given else config.relation,
        details=_details(collected, config, facts[:, 0], axis),
    )


def _split(timestamps: np.ndarray, collected: _Collected, config: IngestConfig) -> Split:
    try:
        return selection.split_timestamps(timestamps, config.split)
    except DataError as error:
        older = collected.dropped["outside_num_days"]
        if not older:
            raise
        newest = datetime.fromtimestamp(collected.last, UTC).date().isoformat()
        raise DataError(f"{error}; --num-days {config.num_days} before {newest} left out {older:,} rows") from error


def _select(columns: tuple[np.ndarray, ...], collected: _Collected, config: IngestConfig) -> np.ndarray:
    """Facts that stay, columns time, subject, relation, object: int64 [f, 4]."""
    facts = selection.distinct_facts(columns)
    collected.dropped["duplicate"] += len(columns[0]) - len(facts)
    frequent = selection.of_frequent_entities(facts, config.min_entity_count)
    collected.dropped["rare_entity"] += int((~frequent).sum())
    facts = facts[frequent]
    kept = selection.thinned(facts[:, 0], config.max_events, config.seed)
    collected.dropped["thinned"] += int((~kept).sum())
    collected.require(facts[kept])
    return facts[kept]


def _details(collected: _Collected, config: IngestConfig, times: np.ndarray, axis: TimeAxis) -> dict[str, Any]:
    dropped = {reason: count for reason, count in sorted(collected.dropped.items()) if count}
    if collected.num_rows != len(times) + sum(dropped.values()):
        raise AssertionError(f"{collected.num_rows} rows read, {len(times)} kept, dropped {dropped}")
    return {
        "options": asdict(config) | {"split": list(config.split)},
        "sources": collected.files,
        "rows": {"read": collected.num_rows, "kept": len(times), "dropped": dropped},
        "gaps": _gaps(collected, times, axis),
    }


def _gaps(collected: _Collected, times: np.ndarray, axis: TimeAxis) -> dict[str, Any]:
    """Steps without facts, days without any row, files without rows."""
    end = axis.origin + (int(times[-1]) + 1) * axis.step - 1
    first, last = axis.origin // DAY, min(end, collected.last) // DAY
    days = {day for day in collected.days if first <= day <= last}
    missing = sorted(set(range(min(days), last + 1)) - days)
    listed = [datetime.fromtimestamp(day * DAY, UTC).date().isoformat() for day in missing[:_LISTED_DAYS]]
    return {
        "missing_steps": int(times[-1]) + 1 - len(np.unique(times)),
        "missing_days": listed,
        "num_missing_days": len(missing),
        "empty_files": [file["path"] for file in collected.files if file["rows"] == 0],
    }
