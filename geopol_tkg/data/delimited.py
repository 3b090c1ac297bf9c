"""Reading delimited event text in blocks: GDELT exports and CSV, damaged lines counted, not fatal.

A line is a record, also inside quotes: no event field holds a line break. Fields are counted per
line, and lines of one width are parsed together, so that a file may mix widths.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import IO

import numpy as np
import pyarrow as pa
from pyarrow import csv

from geopol_tkg.data import gdelt
from geopol_tkg.errors import DataError

ByteStream = IO[bytes] | BufferedIOBase

BLOCK_BYTES = 1 << 24
PROCESSED_COLUMNS = ("entity1", "relation", "entity2", "timestamp")
_SNIFFED_LINES = 100
_KNOWN = {name.lower() for name in (*gdelt.COLUMNS_2, *PROCESSED_COLUMNS)}


@dataclass(frozen=True)
class Dialect:
    """How a text file is written.

    Attributes:
        delimiter: between fields.
        quoted: whether fields may stand in double quotes.
        header: whether the first line names the columns.
        layouts: column names by the number of fields that a line may have.
    """

    delimiter: str
    quoted: bool
    header: bool
    layouts: dict[int, tuple[str, ...]]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the shortest line has."""
        return self.layouts[min(self.layouts)]


@dataclass(frozen=True)
class Lines:
    """Lines of a block that are not empty.

    Attributes:
        data: the block's bytes: uint8 [n].
        starts, ends: where each line begins and ends, its line break included: int64 [lines].
        widths: fields per line, 0 where quotes do not close: int64 [lines].
    """

    data: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    widths: np.ndarray

    def text(self, chosen: np.ndarray) -> bytes:
        """The bytes of some lines: chosen is bool [lines]."""
        if chosen.all():
            return self.data.tobytes()
        edges = np.zeros(len(self.data) + 1, np.int8)
        edges[self.starts[chosen]] += 1
        edges[self.ends[chosen]] -= 1
        return self.data[np.cumsum(edges[:-1], dtype=np.int8) > 0].tobytes()


def text_blocks(stream: ByteStream, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Whole lines of valid UTF-8 without a byte order mark; damaged bytes become U+FFFD."""
    rest = stream.read(3).removeprefix(b"\xef\xbb\xbf")
    while block := stream.read(size):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield _repaired(rest + block[:cut])
            rest = block[cut:]
        else:
            rest += block
    if rest:
        yield _repaired(rest + b"\n")


def _repaired(block: bytes) -> bytes:
    try:
        block.decode()
    except UnicodeDecodeError:
        return block.decode(errors="replace").encode()
    return block


def sniff(block: bytes, where: str) -> Dialect:
    """Tell how a file is written from its first lines.

    Raises:
        DataError: it is no event text.
    """
    lines = [line for line in block[: 1 << 20].decode(errors="replace").splitlines()[:_SNIFFED_LINES] if line]
    first = lines[0] if lines else ""
    delimiter = "\t" if first.count("\t") >= 3 else ","
    quoted = delimiter == "," or any(_starts_quoted(line, delimiter) for line in lines[:2])
    header = tuple(field.strip().strip('"') for field in first.split(delimiter))
    names = gdelt.canonical_columns(header)
    if sum(name.lower() in _KNOWN for name in names) >= 3:
        return Dialect(delimiter, quoted, True, _header_layouts(header, names))
    quoted &= delimiter == "," or first.startswith('"')  # GDELT quotes nothing: there, a quote in a field is text
    return Dialect(delimiter, quoted, False, _headless_layouts(block, delimiter, quoted, where))


def _starts_quoted(line: str, delimiter: str) -> bool:
    return line.startswith('"') or f'{delimiter}"' in line


def _header_layouts(header: tuple[str, ...], names: list[str]) -> dict[int, tuple[str, ...]]:
    columns = tuple(name if name not in names[:i] else f"{name}.{i}" for i, name in enumerate(names))
    shortest = 4 if gdelt.is_reduced(header) else len(columns)
    return {width: columns[:width] for width in range(shortest, len(columns) + 1)}


def _headless_layouts(block: bytes, delimiter: str, quoted: bool, where: str) -> dict[int, tuple[str, ...]]:
    widths = split_lines(block, delimiter, quoted).widths[:_SNIFFED_LINES]
    usual = max(gdelt.SAME_FILE, key=lambda together: int(np.isin(widths, together).sum()))
    if np.isin(widths, usual).any():
        return {width: gdelt.LAYOUTS[width] for width in usual}
    raise DataError(
        f"{where}: unknown format; wanted a GDELT export (57, 58 or 61 columns), a header with GDELT's "
        f"column names, or one with {', '.join(PROCESSED_COLUMNS)}"
    )


def split_lines(block: bytes, delimiter: str, quoted: bool) -> Lines:
    """Find the lines of a block that ends with a line break, and count their fields."""
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n")) + 1
    starts = np.concatenate([[0], ends])[:-1]
    separators = np.flatnonzero(data == ord(delimiter))
    closed = np.ones(len(ends), bool)
    if quoted:
        quotes = np.flatnonzero(data == ord('"'))
        before = np.searchsorted(quotes, starts)
        closed = (np.searchsorted(quotes, ends) - before) % 2 == 0
        line = np.searchsorted(ends, separators, side="right")
        separators = separators[(np.searchsorted(quotes, separators) - before[line]) % 2 == 0]
    widths = np.diff(np.searchsorted(separators, np.concatenate([[0], ends]))) + 1
    content = ends - starts - 1 - ((ends - starts > 1) & (data[ends - 2] == ord("\r")))
    filled = content > 0
    return Lines(data, starts[filled], ends[filled], np.where(closed, widths, 0)[filled])


def parse_block(block: bytes, dialect: Dialect, include: list[str]) -> tuple[list[pa.Table], int]:
    """Tables of strings with the columns asked for, and the number of lines in the block."""
    lines = split_lines(block, dialect.delimiter, dialect.quoted)
    tables = [
        table
        for width, names in dialect.layouts.items()
        for table in _parse_lines(lines, np.flatnonzero(lines.widths == width), names, dialect, include)
    ]
    return tables, len(lines.widths)


def _parse_lines(
    lines: Lines, numbers: np.ndarray, names: tuple[str, ...], dialect: Dialect, include: list[str]
) -> list[pa.Table]:
    """Tables of the lines with these numbers. A quote that opens a field and does not close takes lines after
    it along; where rows are missing, halves are parsed alone, so that a damaged line is lost and no other.
    """
    if not len(numbers):
        return []
    chosen = np.zeros(len(lines.widths), bool)
    chosen[numbers] = True
    table = _parse(lines.text(chosen), names, dialect, include)
    if len(table) == len(numbers) or len(numbers) == 1:
        return [table]
    halves = np.array_split(numbers, 2)
    return [table for half in halves for table in _parse_lines(lines, half, names, dialect, include)]


def _parse(text: bytes, names: tuple[str, ...], dialect: Dialect, include: list[str]) -> pa.Table:
    return csv.read_csv(
        pa.BufferReader(text),
        read_options=csv.ReadOptions(column_names=names, block_size=1 << 22),
        parse_options=csv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char='"' if dialect.quoted else False,
            invalid_row_handler=lambda _row: "skip",
        ),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(include, pa.string()),
            include_columns=include,
            null_values=list(gdelt.NULL_LITERALS),
            strings_can_be_null=True,
        ),
    )
