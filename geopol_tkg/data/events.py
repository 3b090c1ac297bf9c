"""The events table: what every source is brought to, and the reasons why rows are dropped."""

import gzip
import lzma
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geopol_tkg.config import IngestConfig
from geopol_tkg.data import gdelt
from geopol_tkg.data.delimited import PROCESSED_COLUMNS, ByteStream, Dialect, parse_block, sniff, text_blocks
from geopol_tkg.data.sources import SourceFile
from geopol_tkg.data.times import DAY, NO_TIME, parse_times
from geopol_tkg.errors import DataError, UsageError

SCHEMA = pa.schema(
    [
        ("entity1", pa.string()),
        ("relation", pa.string()),
        ("entity2", pa.string()),
        ("timestamp", pa.int64()),  # epoch seconds, UTC
    ]
)
_BATCH_ROWS = 500_000
_OF_GDELT = ("entity", "relation", "time", "min_mentions")  # settings that choose among GDELT's columns
# What readers raise: the third of parquet's text that is no UTF-8, the last two of a zip compressed in a way that
# zipfile does not know, or encrypted.
_DAMAGE = (
    OSError,
    EOFError,
    UnicodeDecodeError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class EventBatch:
    """Some rows of a file.

    Attributes:
        events: the usable ones, by :data:`SCHEMA`, no nulls.
        rows: how many were read.
        dropped: the others, by reason.
        days: days since 1970 (UTC) that any row with a time falls on: int64 [days].
        given: whether labels stood in the file as they are, instead of in GDELT columns.
    """

    events: pa.Table
    rows: int
    dropped: dict[str, int]
    days: np.ndarray
    given: bool


def read_events(file: SourceFile, config: IngestConfig) -> Iterator[EventBatch]:
    """Batches of a file's rows, cleaned; none for a file without rows.

    Raises:
        DataError: the file is damaged, of an unknown format, or lacks what the options ask for.
        UsageError: options that change nothing about processed events.
    """
    if file.size == 0:
        return
    try:
        with file.open() as stream:
            yield from _read(stream, file, config)
    except (*_DAMAGE, pa.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "if it is damaged or truncated, fetch it again"
        raise DataError(f"{file.path}: cannot be read ({reason}); {advice}") from error


def _read(stream: BinaryIO, file: SourceFile, config: IngestConfig) -> Iterator[EventBatch]:
    if file.suffix == ".parquet":
        yield from _read_parquet(stream, file.path, config)
    elif file.suffix == ".zip":
        yield from _read_zip(stream, file.path, config)
    elif file.suffix == ".gz":
        with gzip.open(stream) as plain:
            yield from _read_text(plain, file.path, config)
    else:
        yield from _read_text(stream, file.path, config)


def _read_zip(stream: BinaryIO, where: str, config: IngestConfig) -> Iterator[EventBatch]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            if not info.is_dir() and not info.filename.startswith("__MACOSX/"):
                with archive.open(info) as member:
                    yield from _read_text(member, f"{where}/{info.filename}", config)


def _read_parquet(stream: BinaryIO, where: str, config: IngestConfig) -> Iterator[EventBatch]:
    with pq.ParquetFile(stream) as parquet:
        names = parquet.schema_arrow.names
        canonical = dict(zip(reversed(gdelt.canonical_columns(names)), reversed(names), strict=True))
        needed = _needed(canonical, config, where)
        read = [canonical[name] for name in needed]
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=read):
            first = [batch.schema.names.index(name) for name in read]  # of columns that have one name
            table = pa.Table.from_batches([batch]).select(first).rename_columns(needed)
            yield _sift(table, config, rows=len(table))


def _read_text(stream: ByteStream, where: str, config: IngestConfig) -> Iterator[EventBatch]:
    dialect: Dialect | None = None
    needed: list[str] = []
    for block in text_blocks(stream):
        if not block.strip():
            continue
        if dialect is None:
            if block.count(b"\n") == 1 and b"\r" in block.rstrip():
                raise DataError(f"{where}: lines end in carriage returns alone; put line feeds there (tr '\\r' '\\n')")
            dialect = sniff(block, where)
            needed = _needed(dialect.columns, config, where)
            block = _without_header(block) if dialect.header else block
        tables, lines = parse_block(block, dialect, needed)
        if lines:
            yield _sift(pa.concat_tables(tables) if tables else _no_rows(needed), config, rows=lines)


def _without_header(block: bytes) -> bytes:
    return block.lstrip(b"\r\n").partition(b"\n")[2]


def _no_rows(names: list[str]) -> pa.Table:
    return pa.schema([(name, pa.string()) for name in names]).empty_table()


def _is_processed(names: Collection[str]) -> bool:
    return set(PROCESSED_COLUMNS) <= set(names)


def _needed(names: Collection[str], config: IngestConfig, where: str) -> list[str]:
    if not _is_processed(names):
        return gdelt.needed_columns(names, config, where)
    if changed := [name for name in _OF_GDELT if getattr(config, name) != getattr(IngestConfig, name)]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise UsageError(f"{where}: processed events have labels and times, and no mentions; leave out {options}")
    return list(PROCESSED_COLUMNS)


def _sift(table: pa.Table, config: IngestConfig, *, rows: int) -> EventBatch:
    """Keep the usable rows of a table, and count the others by the first reason that applies."""
    given = _is_processed(table.column_names)
    columns = _as_they_are(table) if given else gdelt.choose(table, config)
    usable = np.ones(len(table), bool)
    dropped = {"malformed_row": rows - len(table)}
    for reason, wrong in _reasons(columns, config):
        dropped[reason] = int((usable & wrong).sum())
        usable &= ~wrong
    times = columns["timestamp"].drop_null().to_numpy()
    return EventBatch(
        events=columns.filter(pa.array(usable)).select(SCHEMA.names).cast(SCHEMA),
        rows=rows,
        dropped={reason: count for reason, count in dropped.items() if count},
        days=np.unique(times // DAY),
        given=given,
    )


def _reasons(columns: pa.Table, config: IngestConfig) -> Iterator[tuple[str, np.ndarray]]:
    first, second = columns["entity1"], columns["entity2"]
    yield "missing_actor", _true(pc.or_(first.is_null(), second.is_null()))
    yield "missing_relation", _true(columns["relation"].is_null())
    yield "bad_time", _true(columns["timestamp"].is_null())
    if not config.keep_self_pairs:
        yield "same_entity", _true(pc.equal(first, second))
    if config.min_mentions:
        yield "few_mentions", _true(pc.less(columns["mentions"], config.min_mentions))


def _true(condition: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(condition, False).to_numpy()


def _as_they_are(table: pa.Table) -> pa.Table:
    seconds = parse_times(table["timestamp"])
    labels = {name: gdelt.clean_labels(table[name]) for name in PROCESSED_COLUMNS[:3]}
    return pa.table(labels | {"timestamp": pa.array(seconds, mask=seconds == NO_TIME)})


def mock_events(
    num_events: int = 400,
    *,
    seed: int = 0,
    num_entities: int = 8,
    num_hours: int = 24,
    first_day: int = 20171101,
) -> pa.Table:
    """Small valid GDELT rows with GDELT's column names, times in quarters of an hour; for tests."""
    draw = np.random.default_rng(seed)
    names = np.array([f"ENTITY {i}" for i in range(num_entities)])
    codes = np.array(["010", "042", "0211", "112", "190"])[draw.integers(0, 5, num_events)]
    actors = draw.integers(0, num_entities, (2, num_events))
    start = int(parse_times(pa.array([first_day]))[0])
    slots = start + np.sort(draw.integers(0, num_hours * 4, num_events)) * 900
    moments = slots.astype("datetime64[s]").astype(object)
    return pa.table(
        {
            "GLOBALEVENTID": np.arange(num_events),
            "SQLDATE": np.array([int(f"{moment:%Y%m%d}") for moment in moments]),
            **_mock_actor(1, names[actors[0]]),
            **_mock_actor(2, names[actors[1]]),
            "EventCode": codes,
            "EventBaseCode": [code[:3] for code in codes],
            "EventRootCode": [code[:2] for code in codes],
            "QuadClass": [1 + (int(code[:2]) > 5) + (code[0] != "0") + (int(code[:2]) > 14) for code in codes],
            "NumMentions": draw.integers(1, 20, num_events),
            "DATEADDED": np.array([int(f"{moment:%Y%m%d%H%M%S}") for moment in moments]),
        }
    )


def _mock_actor(number: int, names: np.ndarray) -> dict[str, list[str]]:
    codes = [f"E{name.split()[1]:0>2}" for name in names]
    return {
        f"Actor{number}Code": [f"{code}GOV" for code in codes],
        f"Actor{number}Name": names.tolist(),
        f"Actor{number}CountryCode": codes,
    }
