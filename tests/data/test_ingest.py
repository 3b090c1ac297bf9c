import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geopol_tkg.config import SAMPLE_CONFIG, IngestConfig, RelationKind
from geopol_tkg.data import selection
from geopol_tkg.data.cameo_words import relation_meaning
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.events import mock_events
from geopol_tkg.data.ingest import ingest
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import DataError, UsageError

HOURLY = IngestConfig(granularity="1h")
START = 1509494400  # 2017-11-01


def write_csv(path: Path, rows: list[tuple]) -> str:
    """A processed events file."""
    lines = ["entity1,relation,entity2,timestamp", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def labelled(dataset: Dataset) -> list[tuple[str, str, str, str]]:
    """Facts as labels, in order."""
    names = dataset.entities, dataset.relations
    return [(names[0][s], names[1][r], names[0][o], dataset.time_axis.label(int(t))) for s, r, o, t in dataset.facts]


def test_small_example_by_hand(tmp_path):
    rows = [
        ("B", "r", "A", "2017-11-01 00:10:00"),
        ("B", "r", "A", "2017-11-01 00:50:00"),  # repeats within the hour
        ("A", "r", "C", "2017-11-01 00:20:00"),
        ("A", "q", "A", "2017-11-01 01:00:00"),  # the same entity twice
        ("C", "q", "B", "2017-11-01 04:00:00"),
        ("A", "q", "B", "2017-11-01 05:59:59"),
        ("", "q", "B", "2017-11-01 05:00:00"),
    ]
    dataset = ingest([write_csv(tmp_path / "x.csv", rows)], HOURLY)
    assert dataset.entities == ("A", "B", "C")
    assert dataset.relations == ("q", "r")
    assert dataset.facts.tolist() == [[0, 1, 2, 0], [1, 1, 0, 0], [2, 0, 1, 4], [0, 0, 1, 5]]
    assert dataset.facts.dtype == np.int32
    assert dataset.time_axis == TimeAxis(START, 3600, "1h")
    assert (dataset.split.valid_start, dataset.split.test_start) == (4, 5)
    assert (dataset.entity_kind, dataset.relation_kind) == ("given", "given")
    assert dataset.details["rows"] == {
        "read": 7,
        "kept": 4,
        "dropped": {"duplicate": 1, "missing_actor": 1, "same_entity": 1},
    }
    assert dataset.details["gaps"]["missing_steps"] == 3


def test_self_pairs_can_stay(tmp_path):
    source = write_csv(tmp_path / "x.csv", [("A", "r", "A", day) for day in (20171101, 20171102, 20171103)])
    config = IngestConfig(keep_self_pairs=True, min_entity_count=3)
    assert len(ingest([source], config).facts) == 3  # a fact counts once for its entity
    with pytest.raises(DataError, match=r"no facts left of 3 rows; most were dropped as same_entity \(3\)"):
        ingest([source], IngestConfig())


def test_the_last_days_count_back_from_the_last_event(event_file):
    source = str(event_file(num_hours=24 * 6))
    dataset = ingest([source], IngestConfig(granularity="1h", num_days=2))
    everything = ingest([source], IngestConfig(granularity="1h", num_days=0))
    first_day = [fact for fact in labelled(everything) if fact[3] >= "2017-11-05"]
    assert labelled(dataset) == first_day
    assert dataset.details["rows"]["dropped"]["outside_num_days"] > 0


def test_order_of_files_changes_nothing(event_file):
    files = [str(event_file(f"{day}.parquet", seed=day, first_day=20171100 + day)) for day in (1, 2, 3, 4)]
    config = IngestConfig(granularity="1h", num_days=3, max_events=500, min_entity_count=2)
    one, other = ingest(files, config), ingest(files[::-1], config)
    assert one.content_hash == other.content_hash
    assert one.details["rows"] == other.details["rows"]


def test_week_steps_begin_on_mondays(event_file):
    dataset = ingest([str(event_file(num_hours=24 * 21))], IngestConfig(granularity="1w", num_days=0))
    assert dataset.time_axis.label(0) == "2017-10-30T00:00:00Z"
    assert dataset.timestamps.tolist() == [0, 1, 2, 3]


def test_rare_entities_go_in_one_pass(tmp_path):
    chain = [("A", "r", "B"), ("B", "r", "C"), ("A", "q", "B"), ("A", "p", "B")]
    days = [20171101, 20171102, 20171103]
    source = write_csv(tmp_path / "x.csv", [(*fact, day) for fact in chain for day in days])
    dataset = ingest([source], IngestConfig(min_entity_count=4))
    assert dataset.entities == ("A", "B")
    assert dataset.details["rows"]["dropped"] == {"rare_entity": 3}


def test_gaps_are_reported(tmp_path):
    days = [20171101, 20171102, 20171105, 20171106]
    source = write_csv(tmp_path / "x.csv", [("A", "r", "B", day) for day in days] + [("", "r", "B", 20171103)])
    (tmp_path / "empty.csv").touch()
    dataset = ingest([source, str(tmp_path / "empty.csv")], IngestConfig())
    assert dataset.details["gaps"] == {
        "missing_steps": 2,
        "missing_days": ["2017-11-04"],  # on the third there are rows, if no facts
        "num_missing_days": 1,
        "empty_files": [str(tmp_path / "empty.csv")],
    }


def test_a_week_begun_before_the_events_has_no_gap(tmp_path):
    days = [f"2017-11-{day:02}" for day in range(1, 14)]  # from a Wednesday on
    path = write_csv(tmp_path / "x.csv", [("A", "r", "B", day) for day in days])
    dataset = ingest([path], IngestConfig(granularity="1w", split=(0.4, 0.3, 0.3)))
    assert dataset.time_axis.label(0).startswith("2017-10-30")
    assert dataset.details["gaps"]["num_missing_days"] == 0


def test_details_survive_saving(tmp_path, event_file):
    path = event_file()
    dataset = ingest([str(path)], HOURLY)
    dataset.save(tmp_path / "out")
    loaded = Dataset.load(tmp_path / "out")
    assert loaded.details == dataset.details
    assert loaded.content_hash == dataset.content_hash
    assert json.loads(json.dumps(dataset.details)) == dataset.details
    (source,) = loaded.details["sources"]
    assert source["path"] == str(path)
    assert (source["rows"], source["size"], len(source["sha256"])) == (400, path.stat().st_size, 64)
    assert (loaded.entity_kind, loaded.relation_kind) == ("name", "event-code")
    with pytest.raises(DataError, match="a dataset already"):
        ingest([str(tmp_path / "out")], HOURLY)


def test_progress_is_told_per_file(event_file):
    lines: list[str] = []
    ingest([str(event_file())], HOURLY, progress=lines.append)
    assert len(lines) == 1
    assert "400 rows" in lines[0]


@pytest.mark.parametrize(
    "config",
    [IngestConfig(split=(0.9, 0.1, 0.0)), IngestConfig(split=(0.5, 0.1, 0.1)), IngestConfig(num_days=-1)],
)
def test_impossible_options_are_refused(event_file, config):
    with pytest.raises(UsageError, match="wanted"):
        ingest([str(event_file(num_hours=24 * 5))], config)


def test_too_few_timestamps(event_file):
    with pytest.raises(DataError, match=r"1 timestamp\(s\) cannot be split"):
        ingest([str(event_file())], IngestConfig())


def test_a_time_far_ahead_leaves_nothing_unsaid(tmp_path):
    rows = [("A", "r", "B", f"2017-11-01T00:0{i}") for i in range(3)]
    source = write_csv(tmp_path / "far.csv", [*rows, ("B", "r", "A", "9999-12-31")])
    with pytest.raises(DataError, match=r"--num-days 30 before 9999-12-31 left out 3 rows$"):
        ingest([source], IngestConfig(granularity="1min"))
    with pytest.raises(DataError, match=r"times span 4,198,212,000 steps of 1min"):
        ingest([source], IngestConfig(granularity="1min", num_days=0))


def test_file_names_need_not_be_utf8(tmp_path):
    source = write_csv(tmp_path / os.fsdecode(b"\xe9.csv"), [("A", "r", "B", f"2017-11-0{i}") for i in range(1, 5)])
    dataset = ingest([source], IngestConfig())
    place = tmp_path / os.fsdecode(b"d\xe9")
    dataset.save(place)
    loaded = Dataset.load(place)
    assert loaded.content_hash == dataset.content_hash
    assert loaded.details["sources"][0]["path"] == source


@pytest.mark.parametrize("kind", get_args(RelationKind))
def test_every_relation_of_the_sample_means_something(kind):
    dataset = ingest(["sample"], replace(SAMPLE_CONFIG, relation=kind))
    meanings = [relation_meaning(dataset.relation_kind, label) for label in dataset.relations]
    assert all(meanings)
    assert len(set(meanings)) > 15


def test_only_empty_files(tmp_path):
    (tmp_path / "x.csv").touch()
    with pytest.raises(DataError, match="no rows in the 1 file"):
        ingest([str(tmp_path)], IngestConfig())


actors = st.sampled_from(["A", "B", "C", "D", " A ", "NULL", ""])
times = st.one_of(st.integers(20171101, 20171135), st.just("x"), st.just("2017-11-09T10:00:00"))
rows = st.lists(st.tuples(actors, st.sampled_from(["r", "q", "NA"]), actors, times), min_size=1, max_size=60)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows, st.sampled_from([0, 3, 9]), st.sampled_from([0, 15, 40]), st.integers(1, 6), st.booleans())
def test_every_row_is_accounted_for(tmp_path, rows, num_days, max_events, minimum, self_pairs):
    rows = [*rows, *((a, r, "E", day) for a in "AB" for r in "qr" for day in (20171128, 20171129, 20171130))]
    source = write_csv(tmp_path / "x.csv", [*rows, ("too", "few", "fields")])
    config = IngestConfig(
        num_days=num_days, max_events=max_events, min_entity_count=minimum, keep_self_pairs=self_pairs
    )
    dataset = ingest([source], config)
    counts = dataset.details["rows"]
    assert counts["read"] == len(rows) + 1
    assert counts["kept"] == len(dataset.facts) == len(np.unique(dataset.facts, axis=0))
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["dropped"]["malformed_row"] == 1
    assert set(np.unique(dataset.facts[:, [0, 2]])) == set(range(dataset.num_entities))
    assert list(dataset.entities) == sorted(dataset.entities)


@given(
    st.lists(st.integers(0, 10**6), min_size=3, max_size=200, unique=True).map(sorted),
    st.floats(0.01, 0.98),
    st.floats(0.01, 0.98),
)
def test_splits_are_whole_timestamps_in_order(timestamps, first, second):
    shares = np.array([first, second, 0.5]) / (first + second + 0.5)
    times = np.array(timestamps)
    split = selection.split_timestamps(times, tuple(shares))
    train, valid = (times < split.valid_start).sum(), (times < split.test_start).sum()
    assert 1 <= train < valid < len(times)
    assert {split.valid_start, split.test_start} <= set(timestamps)
    assert abs(train - len(times) * shares[0]) <= 2 or min(train, valid - train, len(times) - valid) == 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 300), st.integers(0, 3))
def test_thinning_is_in_proportion_and_seeded(counts, maximum, seed):
    times = np.repeat(np.arange(len(counts)), counts)
    kept = selection.thinned(times, maximum, seed)
    assert kept.sum() == min(maximum, len(times))
    assert (kept == selection.thinned(times, maximum, seed)).all()
    exact = np.array(counts) * (kept.sum() / len(times))
    assert (np.abs(np.bincount(times[kept], minlength=len(counts)) - exact) < 1).all()


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), max_size=40))
def test_distinct_facts_like_a_set(facts):
    columns = tuple(np.array(facts, np.int64).reshape(-1, 4).T)
    assert [tuple(fact) for fact in selection.distinct_facts(columns).tolist()] == sorted(set(facts))
    wide = tuple(column * 2**30 for column in columns)  # too wide for one integer
    assert (selection.distinct_facts(wide) == selection.distinct_facts(columns) * 2**30).all()


def test_bundled_sample():
    dataset = ingest(["sample"], HOURLY)
    assert dataset.counts() == {
        "facts": 3449,
        "entities": 133,
        "relations": 112,
        "timestamps": 72,
        "train": 2572,
        "valid": 509,
        "test": 368,
    }
    assert dataset.details["sources"][0]["path"].startswith("sample/")
    assert {"SAUDI ARABIA", "LEBANON"} <= set(dataset.entities)
    for entity in ("code", "country"):
        assert ingest(["sample"], IngestConfig(granularity="1h", entity=entity)).entity_kind == entity


def write_folder(folder: Path, **files: str) -> str:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return str(folder)


@pytest.mark.parametrize("time", ["5000000001", "12345678901234567890123"])
def test_quadruple_times_that_do_not_fit_are_refused(tmp_path, time):
    source = write_folder(tmp_path, train="0 0 1 0\n1 0 0 1\n", valid=f"0 0 1 {time}\n", stat="2 1\n")
    with pytest.raises(DataError, match=r"times span|as integers"):
        ingest([source], IngestConfig())


def test_quadruple_ids_may_be_large(tmp_path):
    lines = "".join(f"{10**12 + i % 2}\t0\t7\t{i}\n" for i in range(4))
    folder = write_folder(tmp_path / "q", train=lines[:40], valid=lines[40:])
    dataset = ingest([folder], IngestConfig())
    assert dataset.entities == ("1000000000000", "1000000000001", "7")
    assert dataset.facts[:, [0, 2]].tolist() == [[0, 2], [1, 2], [0, 2], [1, 2]]


def test_quadruple_folder_by_hand(tmp_path):
    source = write_folder(
        tmp_path,
        train="0\t0\t1\t0\t-1\n2 1 0 24\n2 1 0 24\n1 0 1 0\n",
        valid="0\t0\t2\t72\n",
        test="1\t1\t2\t96\n",
        stat="4\t2\n",
        entity2id="Zed Smith\t0\nBeta\t1\tx\ty\nAlpha\t2\nNobody\t3\n",
        relation2id="visit 1\nmeet 0\n",
    )
    dataset = ingest([source], IngestConfig())
    assert dataset.entities == ("Alpha", "Beta", "Nobody", "Zed Smith")
    assert dataset.relations == ("meet", "visit")
    assert dataset.time_axis == TimeAxis(0, 24, None)
    assert labelled(dataset) == [
        ("Beta", "meet", "Beta", "0"),
        ("Zed Smith", "meet", "Beta", "0"),
        ("Alpha", "visit", "Zed Smith", "24"),
        ("Zed Smith", "meet", "Alpha", "72"),
        ("Beta", "visit", "Alpha", "96"),
    ]
    assert (dataset.split.valid_start, dataset.split.test_start) == (3, 4)
    assert dataset.details["rows"] == {"read": 6, "kept": 5, "dropped": {"duplicate": 1}}
    assert dataset.details["gaps"]["missing_steps"] == 1
    dataset.save(tmp_path / "out")
    assert Dataset.load(tmp_path / "out").details == dataset.details


def test_labels_that_stand_twice_are_told_apart(tmp_path):
    files = {"train": "0 0 1 0\n2 0 1 1\n", "valid": "0 0 1 2\n", "entity2id": "X\t0\nX\t1\nX (1)\t2\n"}
    assert ingest([write_folder(tmp_path, **files)], IngestConfig()).entities == ("X", "X (1)", "X (1) (1)")


def test_quadruples_without_labels_and_without_test(tmp_path):
    source = write_folder(tmp_path, train="0 0 1 3\n", valid="10 0 2 4\n", stat="11 2")
    dataset = ingest([source], IngestConfig())
    assert dataset.entities == tuple(sorted(map(str, range(11))))
    assert labelled(dataset) == [("0", "0", "1", "3"), ("10", "0", "2", "4")]
    assert dataset.counts()["test"] == 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train": "0 0 1 0\n0 0 1 1\n", "valid": "0 0 1 1\n"},
            "valid.txt begins at time 1, train.txt ends at 1",
        ),
        ({"train": "0 0 1 5\n", "valid": "0 0 1 6\n", "test": "0 0 1 1\n"}, "test.txt begins at time 1"),
        ({"train": "0 0 1 x\n", "valid": "0 0 1 6\n"}, "as integers"),
        ({"train": "0 0 1\n", "valid": "0 0 1 6\n"}, "as integers"),
        ({"train": "", "valid": "0 0 1 6\n"}, "missing or empty"),
        ({"train": "0 -1 1 1\n", "valid": "0 0 1 6\n"}, "negative ids"),
        ({"train": "0 0 1 1\n", "valid": "0 0 1 6\n", "entity2id": "a\tb\n"}, "lines of label and id"),
    ],
)
def test_quadruple_folders_that_are_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message) as caught:
        ingest([write_folder(tmp_path, **files)], IngestConfig())
    assert "\n" not in str(caught.value)


def test_quadruple_folders_stand_alone_and_stay_as_given(tmp_path, event_file):
    source = write_folder(tmp_path / "quadruples", train="0 0 1 0\n", valid="0 0 1 1\n")
    with pytest.raises(UsageError, match="alone"):
        ingest([source, str(event_file())], IngestConfig())
    with pytest.raises(UsageError, match="leave out --granularity, --max-events"):
        ingest([source], IngestConfig(granularity="1h", max_events=5))
    assert len(ingest([source], IngestConfig(num_days=0, keep_self_pairs=True, seed=3)).facts) == 2


def test_eight_real_days(shared_data):
    config = IngestConfig(granularity="1h", num_days=0, min_entity_count=10)
    dataset = ingest([str(shared_data / "gdelt" / "events")], config)
    assert dataset.details["rows"] == {
        "read": 1498959,
        "kept": 651600,
        "dropped": {"duplicate": 249996, "missing_actor": 539006, "rare_entity": 9804, "same_entity": 48553},
    }
    assert (dataset.num_entities, dataset.num_relations, len(dataset.timestamps)) == (2855, 228, 192)


@pytest.mark.parametrize(
    ("name", "sizes", "step"),
    [
        ("ICEWS14s", (7128, 230, 365, 74845, 8514, 7371), 1),
        ("ICEWS14", (7128, 230, 365, 63685, 13823, 13222), 24),
        ("YAGO", (10623, 10, 189, 161540, 19523, 20026), 1),
    ],
)
def test_benchmarks_have_their_published_sizes(shared_data, tmp_path, name, sizes, step):
    with tarfile.open(shared_data / "benchmarks" / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    dataset = ingest([str(tmp_path / name)], IngestConfig())
    counts = dataset.counts()
    found = [counts[key] for key in ("entities", "relations", "timestamps", "train", "valid", "test")]
    assert (tuple(found), dataset.time_axis.step) == (sizes, step)
    assert dataset.details["rows"]["dropped"] == {}


def test_two_decades_of_west_africa(shared_data):
    config = IngestConfig(granularity="1w", num_days=0)
    dataset = ingest([str(shared_data / "gdelt" / "west-africa-1979-1997")], config)
    assert dataset.details["rows"]["read"] == 83659
    assert dataset.time_axis.label(0) == "1979-01-01T00:00:00Z"
    assert "malformed_row" not in dataset.details["rows"]["dropped"]
    assert dataset.details["gaps"]["missing_steps"] == 3


def test_real_quarters_of_an_hour(shared_data):
    raw = shared_data / "gdelt" / "raw"
    dataset = ingest([f"{raw}/*.zip", f"{raw}/20171108204500.export.CSV"], IngestConfig(granularity="15min"))
    assert dataset.timestamps.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(dataset.details["gaps"]["empty_files"]) == 1


def test_mixed_kinds_of_parquet(tmp_path):
    """Integer codes and dates, a category column, large strings: what pandas and Polars write."""
    table = mock_events(num_hours=72)
    codes = pa.array([float(code) for code in table["EventCode"].to_pylist()])
    odd = table.set_column(table.column_names.index("EventCode"), "eventcode", codes)
    odd = odd.set_column(odd.column_names.index("Actor1Name"), "ACTOR1NAME", table["Actor1Name"].dictionary_encode())
    odd = odd.set_column(
        odd.column_names.index("Actor2Name"), "Actor2Name", table["Actor2Name"].cast(pa.large_string())
    )
    pq.write_table(table, tmp_path / "plain.parquet")
    pq.write_table(odd, tmp_path / "odd.parquet")
    hashes = {ingest([str(tmp_path / f"{name}.parquet")], HOURLY).content_hash for name in ("plain", "odd")}
    assert len(hashes) == 1
