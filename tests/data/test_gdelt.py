from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopol_tkg.config import IngestConfig
from geopol_tkg.data import gdelt
from geopol_tkg.data.cameo import EVENT_CODES, clean_event_code, clean_root_code, quad_class
from geopol_tkg.data.times import NO_TIME, parse_times
from geopol_tkg.errors import DataError


def seconds(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp())


def choose(config: IngestConfig, **columns: list) -> dict[str, list]:
    base = {"Actor1Name": ["A"], "Actor2Name": ["B"], "EventCode": ["042"], "SQLDATE": ["20171101"]}
    return gdelt.choose(pa.table(base | columns), config).to_pydict()


def test_layouts_have_the_columns_of_the_codebooks():
    assert {width: len(columns) for width, columns in gdelt.LAYOUTS.items()} == {57: 57, 58: 58, 61: 61}
    assert all(columns[26] == "EventCode" and columns[31] == "NumMentions" for columns in gdelt.LAYOUTS.values())
    assert [gdelt.LAYOUTS[width].index("DATEADDED") for width in (57, 58, 61)] == [56, 56, 59]


@pytest.mark.parametrize("code", sorted(EVENT_CODES))
def test_lost_zeros_come_back_on_every_code(code):
    assert clean_event_code(code) == code
    assert clean_event_code(code.lstrip("0")) == code
    assert clean_event_code(f" {int(code)}.0 ") == code


@pytest.mark.parametrize("text", [None, "", "X", "--", "---", "999", "99999", "1.5", "-10", "0", "4a"])
def test_what_is_no_code_is_no_relation(text):
    assert clean_event_code(text) is None


@pytest.mark.parametrize(("text", "root"), [("1", "01"), ("01", "01"), ("20", "20"), ("21", None), (None, None)])
def test_root_codes(text, root):
    assert clean_root_code(text) == root


@pytest.mark.parametrize(("code", "quad"), [("057", 1), ("060", 2), ("090", 2), ("100", 3), ("145", 3), ("150", 4)])
def test_quad_class_follows_from_the_root(code, quad):
    assert quad_class(code) == quad


@pytest.mark.parametrize(
    ("kind", "label"),
    [("event-code", "0211"), ("base-code", "021"), ("root-code", "02"), ("event-quad", "0211_1")],
)
def test_relation_kinds(kind, label):
    assert choose(IngestConfig(relation=kind), EventCode=["211"])["relation"] == [label]


def test_root_code_from_its_own_column_only():
    names = ["Actor1Name", "Actor2Name", "SQLDATE", "EventRootCode"]
    config = IngestConfig(relation="root-code")
    assert "EventRootCode" in gdelt.needed_columns(names, config, "x")
    with pytest.raises(DataError, match=r"x: no column EventCode; choose another --relation"):
        gdelt.needed_columns(names, IngestConfig(), "x")
    table = pa.table({"Actor1Name": ["A"], "Actor2Name": ["B"], "SQLDATE": [20171101], "EventRootCode": [4]})
    assert gdelt.choose(table, config)["relation"].to_pylist() == ["04"]


@pytest.mark.parametrize("literal", ["NULL", "NA", "nan", "", "  ", "---", None])
def test_null_literals_are_no_actor(literal):
    assert choose(IngestConfig(), Actor2Name=[literal])["entity2"] == [None]


def test_actors_of_each_kind():
    columns = {f"Actor{i}{part}": [f"{part}{i}"] for i in (1, 2) for part in ("Code", "Name", "CountryCode")}
    for kind, part in (("name", "Name"), ("code", "Code"), ("country", "CountryCode")):
        chosen = choose(IngestConfig(entity=kind), **columns)
        assert (chosen["entity1"], chosen["entity2"]) == ([f"{part}1"], [f"{part}2"])


@pytest.mark.parametrize(
    ("time", "added", "wanted"),
    [
        ("auto", "20171108001500", seconds(2017, 11, 8, 0, 15)),
        ("auto", "20130401", seconds(2013, 4, 1)),
        ("auto", "20130203", seconds(2007, 11, 11)),  # bulk load: the event's own day
        ("auto", "20130331", seconds(2007, 11, 11)),
        ("auto", "garbage", None),
        ("event", "20171108001500", seconds(2007, 11, 11)),
        ("added", "20130203", seconds(2013, 2, 3)),
    ],
)
def test_which_time_counts(time, added, wanted):
    chosen = choose(IngestConfig(time=time), SQLDATE=["20071111"], DATEADDED=[added])
    assert chosen["timestamp"] == [wanted]


def test_missing_columns_say_what_to_do():
    reduced = gdelt.canonical_columns(["Date", "Source", "Target", "CAMEOCode", "NumEvents"])
    assert reduced[:4] == ["SQLDATE", "Actor1Code", "Actor2Code", "EventCode"]
    with pytest.raises(DataError, match="use --entity code"):
        gdelt.needed_columns(reduced, IngestConfig(), "x")
    with pytest.raises(DataError, match="no column DATEADDED; choose another --time"):
        gdelt.needed_columns(reduced, IngestConfig(entity="code", time="added"), "x")
    with pytest.raises(DataError, match="--min-mentions cannot apply"):
        gdelt.needed_columns(reduced, IngestConfig(entity="code", min_mentions=2), "x")
    with pytest.raises(DataError, match="no GDELT event file"):
        gdelt.needed_columns(["a", "b"], IngestConfig(), "x")


def test_headers_in_any_spelling():
    header = ["globaleventid", "DAY", "actor1_name", "ACTOR1GEO_ADM1CODE", "something"]
    wanted = ["GLOBALEVENTID", "SQLDATE", "Actor1Name", "Actor1Geo_ADM1Code", "something"]
    assert gdelt.canonical_columns(header) == wanted


@pytest.mark.parametrize(
    "column",
    [
        pa.array([20171108, None]),
        pa.array([20171108.0, None]),
        pa.array([20171108000000, None]),
        pa.array([201711080000, None]),
        pa.array(["2017110800", "x"]),
        pa.array(["20171108", None]),
        pa.array([" 20171108000000 ", "20171308"]),
        pa.array(["2.0171108e+13", "20171108250000"]),
        pa.array(["2017-11-08", "x"]),
        pa.array(["2017-11-08 00:00:00 UTC", ""]),
        pa.array(["2017-11-08T01:00:00+01:00", "2017-02-30"]),
        pa.array([seconds(2017, 11, 8), 0]),
        pa.array([seconds(2017, 11, 8) * 1000, 12]),
        pa.array([seconds(2017, 11, 8) * 10**6, -5]),
        pa.array([seconds(2017, 11, 8) * 10**9, None]),
        pa.array([datetime(2017, 11, 8, tzinfo=UTC), None]),
        pa.array([datetime(2017, 11, 8), None]),
        pa.array([datetime(2017, 11, 8, tzinfo=UTC).date(), None]),
    ],
)
def test_times_as_they_come(column):
    for form in (column, pa.chunked_array([column]), column.dictionary_encode()):
        assert parse_times(form).tolist() == [seconds(2017, 11, 8), NO_TIME]


def test_numbers_that_are_no_short_moments_are_epochs():
    assert parse_times(pa.array([2017110824, 201713080000])).tolist() == [2017110824, 201713080]


def test_no_times_at_all():
    assert parse_times(pa.nulls(2)).tolist() == [NO_TIME, NO_TIME]
    assert parse_times(pa.array(["now", "today"])).tolist() == [NO_TIME, NO_TIME]
    assert parse_times(pa.chunked_array([], pa.string())).tolist() == []


@given(st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31)))
def test_digits_are_read_like_the_calendar(moment):
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    digits = np.array([int(f"{moment.year}{moment:%m%d%H%M%S}")])
    assert parse_times(pa.array(digits))[0] == int(moment.timestamp())


def test_mentions_as_numbers():
    column = pa.chunked_array([["3", "4.0", "NULL", "x", None]])
    assert gdelt.clean_counts(column).to_pylist() == [3, 4, 0, 0, 0]
