"""GDELT event rows: names of columns, and which of them make an entity, a relation and a time.

Everything that knows a column name of GDELT is in this file.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geopol_tkg.config import EntityKind, IngestConfig
from geopol_tkg.data.cameo import clean_event_code, clean_root_code, quad_class
from geopol_tkg.data.times import NO_TIME, parse_times
from geopol_tkg.errors import DataError

_ACTOR = (
    *("Code", "Name", "CountryCode", "KnownGroupCode", "EthnicCode"),
    *("Religion1Code", "Religion2Code", "Type1Code", "Type2Code", "Type3Code"),
)
_HEAD = (
    *("GLOBALEVENTID", "SQLDATE", "MonthYear", "Year", "FractionDate"),
    *(f"Actor{i}{part}" for i in (1, 2) for part in _ACTOR),
    *("IsRootEvent", "EventCode", "EventBaseCode", "EventRootCode", "QuadClass", "GoldsteinScale"),
    *("NumMentions", "NumSources", "NumArticles", "AvgTone"),
)
_GEO = ("Type", "FullName", "CountryCode", "ADM1Code", "Lat", "Long", "FeatureID")
_PLACES = ("Actor1Geo", "Actor2Geo", "ActionGeo")


def _columns(geo: Sequence[str]) -> tuple[str, ...]:
    return (*_HEAD, *(f"{place}_{part}" for place in _PLACES for part in geo), "DATEADDED", "SOURCEURL")


COLUMNS_1 = _columns(_GEO)  # daily files; until March 2013 without the last one
COLUMNS_2 = _columns((*_GEO[:4], "ADM2Code", *_GEO[4:]))
LAYOUTS = {57: COLUMNS_1[:57], 58: COLUMNS_1, 61: COLUMNS_2}
SAME_FILE = ((57, 58), (61,))  # widths that occur together

_SPELLINGS = {name.lower().replace("_", ""): name for name in COLUMNS_2} | {"day": "SQLDATE"}
_REDUCED = {
    "date": "SQLDATE",
    "source": "Actor1Code",
    "target": "Actor2Code",
    "cameocode": "EventCode",
}
_PARTS: dict[EntityKind, str] = {"name": "Name", "code": "Code", "country": "CountryCode"}
_CODE_COLUMNS = {
    "event-code": ("EventCode",),
    "event-quad": ("EventCode",),
    "base-code": ("EventCode", "EventBaseCode"),
    "root-code": ("EventCode", "EventBaseCode", "EventRootCode"),
}
_ADDED_IS_TIME = 1_364_774_400  # 2013-04-01: rows before came in one bulk load

NULL_LITERALS = ("", "NULL", "null", "NA", "N/A", "NaN", "nan", "None", "<NA>", r"\N")
_NO_CODE = ("--", "---")


def is_reduced(header: Iterable[str]) -> bool:
    """Whether a header is that of the reduced event file: codes only, trailing empty fields cut."""
    return "cameocode" in {name.strip().lower() for name in header}


def canonical_columns(header: Collection[str]) -> list[str]:
    """GDELT's own spelling of each column; unknown ones as they are."""
    spellings = _SPELLINGS | _REDUCED if is_reduced(header) else _SPELLINGS
    return [spellings.get(name.strip().lower().replace("_", ""), name.strip()) for name in header]


def entity_columns(kind: EntityKind) -> tuple[str, str]:
    """The two actor columns that name entities of a kind."""
    return f"Actor1{_PARTS[kind]}", f"Actor2{_PARTS[kind]}"


def needed_columns(available: Collection[str], config: IngestConfig, where: str) -> list[str]:
    """Columns to read, out of the canonical names a file has.

    Raises:
        DataError: the file lacks what the options ask for.
    """
    _require_entities(available, config.entity, where)
    code = next((name for name in _CODE_COLUMNS[config.relation] if name in available), None)
    if code is None:
        raise DataError(f"{where}: no column {_CODE_COLUMNS[config.relation][0]}; choose another --relation")
    if config.min_mentions and "NumMentions" not in available:
        raise DataError(f"{where}: no column NumMentions, so --min-mentions cannot apply; leave it out")
    mentions = ["NumMentions"] if config.min_mentions else []
    return [*entity_columns(config.entity), code, *_time_columns(available, config, where), *mentions]


def _require_entities(available: Collection[str], kind: EntityKind, where: str) -> None:
    if set(entity_columns(kind)) <= set(available):
        return
    others = [other for other in _PARTS if set(entity_columns(other)) <= set(available)]
    advice = f"use --entity {' or '.join(others)}" if others else "it is no GDELT event file"
    raise DataError(f"{where}: no columns {' and '.join(entity_columns(kind))}; {advice}")


def _time_columns(available: Collection[str], config: IngestConfig, where: str) -> list[str]:
    wanted = {"auto": ["SQLDATE", "DATEADDED"], "added": ["DATEADDED"], "event": ["SQLDATE"]}[config.time]
    found = [name for name in wanted if name in available]
    if not found:
        raise DataError(f"{where}: no column {' or '.join(wanted)}; choose another --time")
    return found


def choose(table: pa.Table, config: IngestConfig) -> pa.Table:
    """Entities, relation and time of rows with canonical columns; null where a row has none."""
    first, second = entity_columns(config.entity)
    code = next(name for name in _CODE_COLUMNS[config.relation] if name in table.column_names)
    seconds = _times(table, config)
    columns = {
        "entity1": clean_labels(table[first], *_NO_CODE),
        "relation": _relations(table[code], code, config),
        "entity2": clean_labels(table[second], *_NO_CODE),
        "timestamp": pa.array(seconds, mask=seconds == NO_TIME),
    }
    if "NumMentions" in table.column_names:
        columns["mentions"] = clean_counts(table["NumMentions"])
    return pa.table(columns)


def clean_labels(column: pa.ChunkedArray, *nulls: str) -> pa.ChunkedArray:
    """Text without space around it; null for NULL, NA and the like."""
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    missing = pc.is_in(text, value_set=pa.array([*NULL_LITERALS, *nulls]))
    return pc.if_else(missing, pa.scalar(None, pa.string()), text)


def clean_counts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers, 0 where there is none."""
    text = clean_labels(column)
    usable = pc.match_substring_regex(text, r"^\d{1,15}(\.\d*)?$")
    numbers = pc.if_else(usable, text, "0").cast(pa.float64())
    return pc.fill_null(numbers, 0).cast(pa.int64(), safe=False)


def _relations(column: pa.ChunkedArray, name: str, config: IngestConfig) -> pa.Array:
    """Relation labels; cleaned once per distinct code."""
    clean = clean_root_code if name == "EventRootCode" else clean_event_code
    encoded = pa.concat_arrays(column.cast(pa.string()).chunks or [pa.array([], pa.string())])
    encoded = encoded.dictionary_encode()
    codes = [clean(text) for text in encoded.dictionary.to_pylist()]
    labels = [None if code is None else _relation_label(code, config) for code in codes]
    return pa.array(labels, pa.string()).take(encoded.indices)


def _relation_label(code: str, config: IngestConfig) -> str:
    if config.relation == "event-quad":
        return f"{code}_{quad_class(code)}"
    return code[: {"event-code": 4, "base-code": 3, "root-code": 2}[config.relation]]


def _times(table: pa.Table, config: IngestConfig) -> np.ndarray:
    """Epoch seconds by ``config.time``; ``auto`` takes SQLDATE where a file has no DATEADDED."""
    read = {name: parse_times(table[name]) for name in ("SQLDATE", "DATEADDED") if name in table.column_names}
    nothing = np.full(len(table), NO_TIME)
    added, event = read.get("DATEADDED", nothing), read.get("SQLDATE", nothing)
    if config.time == "added" or config.time == "event":
        return added if config.time == "added" else event
    if "DATEADDED" not in read:
        return event
    return np.where((added >= _ADDED_IS_TIME) | (added == NO_TIME), added, event)
