import gzip
import io
import os
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopol_tkg.config import IngestConfig
from geopol_tkg.data import delimited, gdelt
from geopol_tkg.data.events import SCHEMA, mock_events, read_events
from geopol_tkg.data.sources import find_files
from geopol_tkg.errors import DataError, UsageError

CONFIG = IngestConfig()


def read(path: Path | str, config: IngestConfig = CONFIG) -> tuple[pa.Table, int, dict[str, int]]:
    """All usable events of a source, rows read, rows dropped by reason."""
    batches = [batch for file in find_files([str(path)]) for batch in read_events(file, config)]
    dropped: dict[str, int] = {}
    for batch in batches:
        for reason, count in batch.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    events = pa.concat_tables([batch.events for batch in batches]) if batches else SCHEMA.empty_table()
    return events, sum(batch.rows for batch in batches), dropped


def export(table: pa.Table, width: int = 61) -> bytes:
    """The rows as GDELT exports them: tabs, no header, no quotes."""
    lines = []
    for row in table.to_pylist():
        fields = [str(row.get(name, "") or "") for name in gdelt.LAYOUTS[width]]
        if width < 61:
            fields[gdelt.LAYOUTS[width].index("DATEADDED")] = str(row["DATEADDED"])[:8]
        lines.append("\t".join(fields))
    return ("\n".join(lines) + "\n").encode()


def test_parquet_gives_the_schema(event_file, events):
    found, rows, dropped = read(event_file())
    same = pc.sum(pc.equal(events["Actor1Name"], events["Actor2Name"])).as_py()
    assert found.schema == SCHEMA
    assert rows == len(events) == len(found) + same
    assert dropped == {"same_entity": same}


@pytest.mark.parametrize("name", ["a.CSV", "a.csv.gz", "a.export.CSV.zip", "a.csv.ZIP"])
def test_exports_in_every_wrapping_read_alike(tmp_path, events, event_file, name):
    path = tmp_path / name
    content = export(events)
    if name.lower().endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.EXPORT.csv", content)
    else:
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read(path) == read(event_file())


def test_zip_with_several_members(tmp_path, events):
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("a.CSV", export(events[:100]))
        archive.writestr("empty.csv", b"")
        archive.writestr("B.csv", export(events[100:]))
    assert read(path)[1] == len(events)


def test_57_and_58_columns_in_one_file(tmp_path, events):
    path = tmp_path / "mixed.csv"
    path.write_bytes(export(events[:7], 57) + export(events[7:20], 58) + b"1\t2\t3\n" + export(events[20:], 57))
    found, rows, dropped = read(path, IngestConfig(keep_self_pairs=True))
    assert (rows, len(found), dropped) == (401, 400, {"malformed_row": 1})
    assert {second % 86400 for second in found["timestamp"].to_pylist()} == {0}


def with_header(table: pa.Table, delimiter: str, quote: str) -> str:
    rows = [table.column_names, *([str(v) for v in row.values()] for row in table.to_pylist())]
    return "\r\n".join(delimiter.join(f"{quote}{field}{quote}" for field in row) for row in rows)


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
def test_headers_delimiters_and_quotes(tmp_path, events, event_file, delimiter, quote, spelling):
    table = events.rename_columns([spelling(name) for name in events.column_names])
    path = tmp_path / "x.tsv"
    path.write_text("\ufeff" + with_header(table, delimiter, quote), encoding="utf-8")
    assert read(path) == read(event_file())


def test_quoted_fields_may_hold_commas_and_doubled_quotes(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('entity1,relation,entity2,timestamp\n"Smith, ""J""",meets,"B, C",20171101\n')
    found, _, _ = read(path)
    assert found.to_pylist() == [
        {"entity1": 'Smith, "J"', "relation": "meets", "entity2": "B, C", "timestamp": 1509494400}
    ]


def test_literal_quotes_in_tab_exports_are_text(tmp_path, events):
    names = events["Actor1Name"].to_pylist()
    names[3], names[5] = '"HALF QUOTED', 'FIVE" PIPE'
    table = events.set_column(events.column_names.index("Actor1Name"), "Actor1Name", pa.array(names))
    path = tmp_path / "x.csv"
    path.write_bytes(export(table))
    found, rows, _ = read(path, IngestConfig(keep_self_pairs=True))
    assert rows == len(found) == len(events)
    assert {'"HALF QUOTED', 'FIVE" PIPE'} <= set(found["entity1"].to_pylist())
    names[0], names[1] = '"HALF QUOTED', '"QUOTED"'
    path.write_bytes(export(events.set_column(events.column_names.index("Actor1Name"), "Actor1Name", pa.array(names))))
    assert read(path, IngestConfig(keep_self_pairs=True))[2] == {}


def test_damaged_lines_are_counted(tmp_path):
    path = tmp_path / "x.csv"
    lines = [
        "entity1,relation,entity2,timestamp",
        "A,r,B,20171101",
        'A,"r,B,20171101',
        "A,r,B",
        "",
        "A,r,B,x,y",
    ]
    path.write_text("\n".join([*lines, "NULL,r,B,20171101", "A,NA,B,20171101", "A,r,B,20171399"]))
    found, rows, dropped = read(path)
    wanted = {"malformed_row": 3, "missing_actor": 1, "missing_relation": 1, "bad_time": 1}
    assert (rows, len(found), dropped) == (7, 1, wanted)


def test_a_quote_that_does_not_close_costs_its_line_only(tmp_path):
    lines = [f"A{i},x,B,20171101" for i in range(1000)]
    lines[3] = 'A,5" x,"B,20171101,extra'
    (tmp_path / "x.csv").write_text("\n".join(["entity1,relation,entity2,timestamp", *lines]) + "\n")
    found, rows, dropped = read(tmp_path / "x.csv")
    assert (len(found), rows, dropped) == (999, 1000, {"malformed_row": 1})
    assert found["entity1"].to_pylist() == [f"A{i}" for i in range(1000) if i != 3]


def test_of_columns_with_one_name_the_first_counts(tmp_path):
    columns = [["A"], ["x"], ["B"], ["20171101"], ["Z"]]
    names = ["entity1", "relation", "entity2", "timestamp", "entity1"]
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], names), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet")[0]["entity1"].to_pylist() == ["A"]


def test_carriage_returns_alone_are_refused(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"entity1,relation,entity2,timestamp\rA,x,B,20171101\r")
    with pytest.raises(DataError, match="carriage returns alone"):
        read(tmp_path / "x.csv")


def test_damaged_utf8_is_replaced(tmp_path, events):
    path = tmp_path / "x.csv"
    path.write_bytes(export(events).replace(b"ENTITY 1", b"ENTIT\xff 1"))
    found, rows, _ = read(path)
    assert rows == len(events)
    assert "ENTIT\ufffd 1" in found["entity1"].to_pylist()


def test_blocks_end_at_lines_whatever_their_size(events):
    content = b"\xef\xbb\xbf" + export(events)[:-1]
    for size in (1 << 10, 777, len(content)):
        blocks = list(delimited.text_blocks(io.BytesIO(content), size))
        assert all(block.endswith(b"\n") for block in blocks)
        assert b"".join(blocks) == export(events)


@given(st.lists(st.lists(st.text('ab", é', max_size=4), min_size=1, max_size=5), max_size=12))
def test_fields_are_counted_like_csv_does(rows):
    quoted = [",".join('"' + field.replace('"', '""') + '"' for field in row) for row in rows]
    block = "".join(line + "\n" for line in quoted).encode()
    assert delimited.split_lines(block, ",", True).widths.tolist() == [len(row) for row in rows]


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"entity1,relation,entity2,timestamp\n"])
def test_files_without_rows_are_no_failure(tmp_path, content):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    assert read(path)[1] == 0


def test_reduced_files_hold_codes_only(tmp_path):
    path = tmp_path / "MASTERREDUCED.TXT"
    header = "Date Source Target CAMEOCode NumEvents NumArts QuadClass Goldstein SourceGeoType".split()  # noqa: SIM905
    rows = ["19790101\tAFR\tFRA\t043\t1\t4\t1\t2.8", "19790101\tUSA\tRUS\t---", "19790102\tUSA"]
    path.write_text("\n".join(["\t".join(header), *rows]))
    found, rows_read, dropped = read(path, IngestConfig(entity="code"))
    assert (rows_read, dropped) == (3, {"malformed_row": 1, "missing_relation": 1})
    assert found.to_pylist() == [{"entity1": "AFR", "relation": "043", "entity2": "FRA", "timestamp": 283996800}]
    with pytest.raises(DataError, match="use --entity code"):
        read(path)


def test_settings_without_effect_on_processed_events_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("entity1,relation,entity2,timestamp\nA,x,B,20171101\n")
    assert read(path, IngestConfig(granularity="1h", min_entity_count=0))[1] == 1
    with pytest.raises(UsageError, match=r"x\.csv: .*; leave out --entity, --relation, --time, --min-mentions$"):
        read(path, IngestConfig(entity="code", relation="root-code", time="event", min_mentions=1))


def test_few_mentions(event_file, events):
    found, _, dropped = read(event_file(), IngestConfig(min_mentions=10, keep_self_pairs=True))
    few = pc.sum(pc.less(events["NumMentions"], 10)).as_py()
    assert (len(found), dropped) == (len(events) - few, {"few_mentions": few})


@pytest.mark.parametrize("name", ["x.parquet", "x.zip", "x.csv.gz"])
def test_truncated_files_are_named(tmp_path, events, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(events, path)
    elif name.endswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.csv", export(events))
    else:
        path.write_bytes(gzip.compress(export(events)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"{name}: cannot be read .*fetch it again") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_sources_are_found_once_and_in_order(tmp_path, event_file):
    first, second = event_file("b.parquet"), event_file("a.parquet")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.CSV").touch()
    for name in ("notes.md", ".hidden.csv", "_SUCCESS"):
        (tmp_path / name).touch()
    inside = [str(second), str(first), str(tmp_path / "deep" / "c.CSV")]
    assert [file.path for file in find_files([str(tmp_path)])] == inside
    assert [file.path for file in find_files([str(first), f"{tmp_path}/*.parquet"])] == [
        str(first),
        str(second),
    ]
    assert len(find_files([f"{tmp_path}/**/*.CSV"])) == 1
    (tmp_path / "again.parquet").symlink_to(first)
    ways = [str(first), f"{tmp_path}/deep/../b.parquet", first.as_uri(), f"{tmp_path}/again.parquet"]
    assert [file.path for file in find_files(ways)] == [str(first)]


def test_a_folder_is_read_whole_and_without_what_is_hidden(tmp_path, event_file):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "events"
    for name in (elsewhere, folder / "_temporary", folder / ".ipynb_checkpoints"):
        name.mkdir(parents=True)
        shutil.copy(event_file(), name / "x.parquet")
    for source in (str(folder), folder.as_uri()):
        with pytest.raises(DataError, match="no event files here"):
            find_files([source])
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "around").symlink_to(folder)
    assert [file.path for file in find_files([str(folder)])] == [str(folder / "linked" / "x.parquet")]
    (folder / "gone.csv").symlink_to(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        find_files([str(folder)])


def test_a_pipe_cannot_be_read_twice(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(DataError, match="not a regular file"):
        find_files([str(tmp_path / "x.csv")])


def test_addresses_go_through_arrow_file_systems(tmp_path, event_file):
    path = event_file()
    for address in (f"file://{path}", f"file://{tmp_path}", f"file://{tmp_path}/*.parquet"):
        (file,) = find_files([address])
        assert file.path == f"file://{path}"
        assert file.size == path.stat().st_size
        assert read(address) == read(path)
    with pytest.raises(DataError, match="cannot be read"):
        find_files([f"file://{tmp_path}/nothing"])


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_files([str(tmp_path / "nothing.csv")])
    for source in (str(tmp_path), f"{tmp_path}/*.csv"):
        with pytest.raises(DataError, match="no event files here"):
            find_files([source])


@pytest.mark.parametrize("content", [b"hello\nworld\n", b"a,b,c,d\n1,2,3,4\n", bytes(range(256))])
def test_unknown_formats_are_refused(tmp_path, content):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.csv: unknown format"):
        read(path)


def test_mock_events_are_seeded_and_valid():
    assert mock_events(seed=3) == mock_events(seed=3) != mock_events(seed=4)
    quads = mock_events().select(["EventCode", "QuadClass"]).to_pylist()
    assert all(
        row["QuadClass"] == (4 if row["EventCode"] == "190" else 3 if row["EventCode"] == "112" else 1) for row in quads
    )


REAL = [  # rows, usable by name, dropped; counted with awk from the files
    ("20170217.export.head.CSV.gz", 10000, 5518, {"missing_actor": 4223, "same_entity": 259}),
    ("mixed-57-58-columns.CSV.gz", 710, 444, {"missing_actor": 239, "same_entity": 27}),
    ("usa-chn-2018.no-header-null-literals.csv.gz", 3340, 3340, {}),
    ("20171108204500.export.CSV", 0, 0, {}),
]


@pytest.mark.parametrize(("name", "rows", "usable", "dropped"), REAL)
def test_real_raw_files(shared_data, name, rows, usable, dropped):
    found, rows_read, dropped_by = read(shared_data / "gdelt" / "raw" / name)
    assert (rows_read, len(found), dropped_by) == (rows, usable, dropped)


def test_real_reduced_file(shared_data):
    path = shared_data / "gdelt" / "raw" / "MASTERREDUCEDV2.head.TXT.gz"
    found, rows, dropped = read(path, IngestConfig(entity="code"))
    assert (rows, len(found), dropped) == (999, 994, {"same_entity": 5})


def test_real_zip_equals_its_rows_in_parquet(shared_data):
    """The same quarter of an hour from the raw export and from the parquet of its day."""
    raw, _, _ = read(shared_data / "gdelt" / "raw" / "20171101001500.export.CSV.zip")
    day, _, _ = read(shared_data / "gdelt" / "events" / "gdelt-20171101.parquet")
    slot = day.filter(pc.equal(day["timestamp"], 1509494400 + 900))
    order = [(name, "ascending") for name in SCHEMA.names]
    assert raw.sort_by(order).to_pylist() == slot.sort_by(order).to_pylist()
