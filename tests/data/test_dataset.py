"""The dataset directory: what is written is read, what is damaged is refused."""

import dataclasses
import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopol_tkg.data import dataset as dataset_module
from geopol_tkg.data.dataset import FILES, Dataset, Split, inverse_relation, is_dataset, with_inverses
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import DataError

FACTS = [(0, 0, 1, 0), (2, 1, 0, 0), (0, 0, 1, 2), (1, 1, 2, 3), (1, 0, 2, 4), (0, 1, 2, 5)]


def make_dataset(**changes):
    values = {
        "entities": ("CHINA", "IRAN", "ÖSTERREICH"),
        "relations": ("010", "042"),
        "facts": np.array(FACTS, np.int32),
        "split": Split(3, 5),
        "time_axis": TimeAxis(1509494400, 3600, "1h"),
        "entity_kind": "name",
        "relation_kind": "event-code",
        "details": {"gaps": 1, "sources": [{"path": "x.parquet", "size": 3}]},
    }
    return Dataset(**values | changes)


def test_what_is_saved_is_loaded(tmp_path):
    dataset = make_dataset()
    dataset.save(tmp_path / "new" / "data")
    loaded = Dataset.load(tmp_path / "new" / "data")
    np.testing.assert_array_equal(loaded.facts, dataset.facts)
    assert loaded.facts.dtype == np.int32
    same = {"facts": 0, "path": None}
    assert dataclasses.replace(loaded, **same) == dataclasses.replace(dataset, **same)
    assert loaded.path == tmp_path / "new" / "data"
    assert loaded.content_hash == dataset.content_hash


def test_manifest_golden():
    manifest = make_dataset().manifest()
    assert manifest["first_time"] == "2017-11-01T00:00:00Z"
    assert manifest["split"] == {
        "valid_start": 3,
        "test_start": 5,
        "valid_start_time": "2017-11-01T03:00:00Z",
        "test_start_time": "2017-11-01T05:00:00Z",
    }
    sizes = {"facts": 6, "entities": 3, "relations": 2, "timestamps": 5, "train": 3, "valid": 2, "test": 1}
    assert manifest["counts"] == sizes
    assert manifest["gaps"] == 1


CHANGES = {
    "entity label": {"entities": ("CHINA", "IRAN", "AUSTRIA")},
    "relation order": {"relations": ("042", "010")},
    "one fact": {"facts": np.array([(0, 0, 2, 0), *FACTS[1:]], np.int32)},
    "fewer facts": {"facts": np.array(FACTS[:-1], np.int32)},
    "valid start": {"split": Split(2, 5)},
    "test start": {"split": Split(3, 4)},
    "origin": {"time_axis": TimeAxis(1509494401, 3600, "1h")},
    "step": {"time_axis": TimeAxis(1509494400, 7200, "2h")},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_content_hash_notices(change):
    assert make_dataset(**change).content_hash != make_dataset().content_hash


def test_content_hash_ignores_where_it_came_from():
    assert make_dataset(details={}).content_hash == make_dataset().content_hash


def test_a_dataset_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    make_dataset().save(tmp_path)

    def full(file, labels, counts):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dataset_module, "_write_labels", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}"):
        make_dataset(facts=np.array(FACTS[:4], np.int32)).save(tmp_path)
    assert Dataset.load(tmp_path).content_hash == make_dataset().content_hash
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", ["facts.parquet", "entities.parquet", "relations.parquet"])
def test_missing_and_damaged_files_are_refused(tmp_path, name):
    make_dataset().save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged dataset"):
        Dataset.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match="damaged dataset"):
        Dataset.load(tmp_path)


@pytest.mark.parametrize("name", ["facts.parquet", "entities.parquet", "relations.parquet"])
def test_files_of_another_dataset_are_refused(tmp_path, name):
    make_dataset().save(tmp_path / "a")
    swapped = np.array([(2, 1, 1, 0), *FACTS[1:]], np.int32)
    make_dataset(entities=("A", "B", "C"), relations=("1", "2"), facts=swapped).save(tmp_path / "b")
    (tmp_path / "b" / name).replace(tmp_path / "a" / name)
    with pytest.raises(DataError, match="do not belong together"):
        Dataset.load(tmp_path / "a")


def test_no_dataset_and_bad_manifests_are_refused(tmp_path):
    assert not is_dataset(tmp_path)
    with pytest.raises(DataError, match="no dataset here"):
        Dataset.load(tmp_path)
    make_dataset().save(tmp_path)
    assert is_dataset(tmp_path)
    manifest = tmp_path / "dataset.json"
    whole = json.loads(manifest.read_text(encoding="utf-8"))
    for text, message in [
        ("{", "not valid JSON"),
        (json.dumps(whole | {"format_version": 99}), "format_version 99, wanted 1"),
        ("[]", "format_version None"),
        (json.dumps({"format_version": 1}), "damaged dataset"),
    ]:
        manifest.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            Dataset.load(tmp_path)


@given(st.integers(-50, 50), st.integers(0, 50), st.lists(st.integers(-100, 150), min_size=1))
def test_every_time_is_in_exactly_one_split(valid_start, width, times):
    split = Split(valid_start, valid_start + width)
    for time in times:
        found = [name for name in ("train", "valid", "test") if split.bounds(name)[0] <= time < split.bounds(name)[1]]
        wanted = "train" if time < valid_start else "valid" if time < valid_start + width else "test"
        assert found == [wanted]


def test_facts_of_a_split():
    dataset = make_dataset()
    parts = [dataset.facts_of(name) for name in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [3, 2, 1]
    np.testing.assert_array_equal(np.concatenate(parts), dataset.facts)


def test_inverses():
    facts = np.array([(0, 1, 2, 7)], np.int32)
    assert with_inverses(facts, 3).tolist() == [[0, 1, 2, 7], [2, 4, 0, 7]]
    assert with_inverses(facts, 3).dtype == np.int32
    relations = np.arange(6)
    assert inverse_relation(relations, 3).tolist() == [3, 4, 5, 0, 1, 2]
    np.testing.assert_array_equal(inverse_relation(inverse_relation(relations, 3), 3), relations)
