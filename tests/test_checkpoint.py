"""Checkpoints: what is loaded is what was saved, and it is what answers."""

import collections
import functools
import json
import os
import pickle
import resource
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from cli_helpers import call
from flax import nnx
from small_world import R, make_checkpoint, make_config, make_dataset, random_arrays

from geopol_tkg.checkpoint import (
    Checkpoint,
    checkpoint_paths,
    flatten,
    load_checkpoint,
    save_checkpoint,
    settle_checkpoint,
)
from geopol_tkg.data.history import build_for
from geopol_tkg.errors import CheckpointError
from geopol_tkg.models.forecaster import ForecastContext, NetworkForecaster
from geopol_tkg.models.network import build_network


@pytest.fixture(scope="module", params=["tirgn", "regcn"])
def checkpoint(request) -> Checkpoint:
    config = make_config(request.param)
    return make_checkpoint(config, make_dataset(), random_arrays(config, seed=3))


def json_ready(checkpoint):
    return replace(checkpoint, metrics={"train_loss": 1.5, "valid": {"mrr": 0.25}}, temperature={"value": 1.25})


def scores(graphdef, state, config, time=9):
    dataset = make_dataset()
    context = ForecastContext.build(dataset, build_for(dataset, window=config.history_window), config)
    forecaster = NetworkForecaster(graphdef, state, config=config, context=context, name="x")
    subjects, relations = np.arange(8, dtype=np.int32), np.arange(8, dtype=np.int32) % (2 * R)
    return np.asarray(forecaster.at(time)(subjects, relations))


def test_loaded_is_saved_and_is_not_fresh(checkpoint, tmp_path):
    saved = json_ready(checkpoint)
    save_checkpoint(tmp_path / "new" / "x_best", saved)
    loaded = load_checkpoint(tmp_path / "new" / "x_best")
    assert loaded.arrays.keys() == saved.arrays.keys()
    for name, array in saved.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
        assert loaded.arrays[name].dtype == array.dtype
    ignored = {"arrays": 0, "trained_entities": 0, "source": ""}
    assert replace(loaded, **ignored) == replace(saved, **ignored)
    found = scores(*loaded.network(), saved.config)
    np.testing.assert_array_equal(found, scores(*saved.network(), saved.config))
    fresh = scores(*nnx.split(build_network(saved.config, key=jax.random.key(0))), saved.config)
    assert (found != fresh).any()


def test_a_checkpoint_of_a_time_without_temperatures_has_none(checkpoint, tmp_path):
    path = tmp_path / "x.json"
    save_checkpoint(path, json_ready(checkpoint))
    assert load_checkpoint(path).temperature_value == 1.25
    manifest = json.loads(path.read_text())
    del manifest["temperature"], manifest["json_sha256"]
    path.write_text(json.dumps(manifest))
    loaded = load_checkpoint(path)
    assert (loaded.temperature, loaded.temperature_value) == (None, 1)


@pytest.mark.parametrize("entry", [{}, 1.5, {"value": 0}, {"value": "1"}])
def test_a_temperature_that_is_none_is_refused(checkpoint, tmp_path, entry):
    save_checkpoint(tmp_path / "x", replace(json_ready(checkpoint), temperature=entry))
    assert "x.json: temperature has no value above 0" in refusal(tmp_path / "x")


def test_every_array_reaches_the_network(checkpoint):
    _, state = checkpoint.network()
    placed = flatten(state)
    assert placed.keys() == checkpoint.arrays.keys()
    for name, array in checkpoint.arrays.items():
        np.testing.assert_array_equal(placed[name], array)


@pytest.mark.parametrize("named", ["x", "x.npz", "x.json"])
def test_names(named):
    assert checkpoint_paths(Path("m") / named) == (Path("m/x.npz"), Path("m/x.json"))
    assert checkpoint_paths(Path("m/x.v2")) == (Path("m/x.v2.npz"), Path("m/x.v2.json"))


class Trap:
    """Leaves a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_nothing_in_a_file_is_executed(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(Path("x"), replace(json_ready(checkpoint), arrays={"trap": np.array([Trap()], object)}))
    with pytest.raises(
        CheckpointError, match=r"x\.npz: array trap is not a plain array \(Object arrays cannot be loaded"
    ):
        load_checkpoint(Path("x"))
    assert not Path("executed").exists()
    with np.load("x.npz", allow_pickle=True) as arrays:
        assert arrays["trap"].shape == (1,)
    assert Path("executed").exists()  # it would have been
    assert pickle.dumps(Trap())


def small(checkpoint, epoch):
    return replace(json_ready(checkpoint), epoch=epoch, arrays={"a": np.float32([epoch])})


def seen_at(stem):
    """Epoch of the checkpoint there; 0 if there is none."""
    if not checkpoint_paths(stem)[1].exists():
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            load_checkpoint(stem)
        return 0
    loaded = load_checkpoint(stem)
    assert loaded.arrays["a"] == loaded.epoch
    return loaded.epoch


class Killed(BaseException):
    """As by SIGKILL, but that the test goes on."""


@pytest.mark.parametrize("old", [0, 1])
def test_a_killed_writer_leaves_the_old_pair_or_the_new_one(checkpoint, tmp_path, monkeypatch, old):
    """Cut off at each of its calls to the system in turn; nobody tidies up."""
    system = {name: getattr(os, name) for name in ("replace", "fsync", "chmod")}

    def cut_off(name, *args):
        calls.append(name)
        if len(calls) > number:
            raise Killed
        return system[name](*args)

    seen = []
    for number in range(7):
        stem, calls = tmp_path / str(number) / "x", []
        if old:
            save_checkpoint(stem, small(checkpoint, old))
        with monkeypatch.context() as context:
            for name in system:
                context.setattr(os, name, functools.partial(cut_off, name))
            context.setattr(os, "unlink", lambda _path: None)
            with pytest.raises(Killed):
                save_checkpoint(stem, small(checkpoint, 2))
        seen.append(seen_at(stem))
        settle_checkpoint(stem)
        assert seen_at(stem) == seen[-1]
        assert {path.name for path in stem.parent.iterdir()} <= {"x.npz", "x.json"}
    assert seen == [old] * 6 + [2]
    assert calls == ["fsync", "chmod", "replace"] * 2 + ["replace"]


def test_a_reader_beside_a_writer_sees_whole_pairs(checkpoint, tmp_path):
    stem = tmp_path / "x"
    save_checkpoint(stem, small(checkpoint, 1))

    def write():
        for epoch in range(2, 60):
            save_checkpoint(stem, small(checkpoint, epoch))

    writer = threading.Thread(target=write)
    writer.start()
    seen = [seen_at(stem)]
    while writer.is_alive():
        seen.append(seen_at(stem))
    writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    assert seen_at(stem) == 59


def test_a_full_disk_leaves_the_old_pair(checkpoint, tmp_path):
    """A limit on the size of files is a full disk to the writer."""
    stem = tmp_path / "x"
    save_checkpoint(stem, small(checkpoint, 1))
    large = replace(small(checkpoint, 2), arrays={"a": np.zeros(100_000, np.float32)})
    long = replace(small(checkpoint, 2), settings={"long": "x" * 100_000})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        for too_much in (large, long):
            with pytest.raises(OSError, match="File too large"):
                save_checkpoint(stem, too_much)
            assert seen_at(stem) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    settle_checkpoint(stem)
    assert {path.name for path in tmp_path.iterdir()} == {"x.npz", "x.json"}


def test_each_flipped_byte_and_each_cut_is_found(checkpoint, tmp_path):
    arrays = {"first": np.arange(40, dtype=np.float32), "second": np.arange(30, dtype=np.float32)}
    stem = tmp_path / "x"
    save_checkpoint(stem, replace(json_ready(checkpoint), arrays=arrays))
    npz, manifest = (path.read_bytes() for path in checkpoint_paths(stem))
    rng = np.random.default_rng(0)
    blamed = collections.Counter()
    for place in range(0, len(npz), 3):
        damaged = bytearray(npz)
        damaged[place] ^= 1 << int(rng.integers(8))
        checkpoint_paths(stem)[0].write_bytes(damaged)
        blamed[refusal(stem).partition(";")[0].partition(": ")[2]] += 1
    for name, array in {**arrays, "trained_entities": checkpoint.trained_entities}.items():
        assert blamed[f"array {name} is damaged (its checksum differs)"] >= array.nbytes // 3
    begun = {"trained_entities": npz.index(b"trained"), "first": npz.index(b"first"), "second": npz.index(b"second")}
    for name, place in begun.items():
        checkpoint_paths(stem)[0].write_bytes(npz[: place + 60])
        assert f"truncated in or after array {name};" in refusal(stem)
    checkpoint_paths(stem)[0].write_bytes(npz)
    for place in range(0, len(manifest), 7):
        damaged = bytearray(manifest)
        damaged[place] ^= 1 << int(rng.integers(7))
        checkpoint_paths(stem)[1].write_bytes(damaged)
        try:
            found = load_checkpoint(stem)
        except CheckpointError:
            continue
        damaged_key = b'"json_sha256"' not in damaged  # all else is as it was
        assert damaged_key
        assert found.entity_to_id == checkpoint.entity_to_id


def refusal(stem):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(stem)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_last_checkpoint_resumes_and_the_best_does_not(trained):
    last, best = (load_checkpoint(trained / f"models/tkg/tirgn_{name}") for name in ("last", "best"))
    assert last.resume is not None
    assert {"epoch", "step_in_epoch", "best_mrr", "best_epoch", "elapsed", "step"} <= last.resume.keys()
    assert last.optimiser
    assert (best.resume, best.optimiser) == (None, {})
    assert not [name for name in best.arrays if name.startswith("optimiser")]
    manifest = json.loads((trained / "models/tkg/tirgn_best.json").read_text())
    required = {"format_version", "model_type", "epoch", "metrics", "config", "entity_to_id", "relation_to_id"}
    assert manifest.keys() >= required | {"dataset", "environment", "arrays", "sha256"}
    shapes = {name: entry["shape"] for name, entry in manifest["arrays"].items()}
    assert shapes == {**{name: list(a.shape) for name, a in best.arrays.items()}, "trained_entities": [8]}


def test_commands_use_the_weights_they_name(world):
    best = load_checkpoint(Path("models/tkg/tirgn_best"))
    for name, factor in (("same", 1), ("other", 0.5)):
        save_checkpoint(
            Path(name), replace(best, arrays={k: np.float32(factor) * array for k, array in best.arrays.items()})
        )
    models = ("models/tkg/tirgn_best", "same", "other")
    rows = call("compare", *models, "--pass-threshold", "-100", "--json").json()["models"]
    assert rows[0]["mrr"] == rows[1]["mrr"] != rows[2]["mrr"]
    for row, name in zip(rows, models, strict=True):
        assert row["mrr"] == call("eval", name, "--json").json()["mrr"]
    shutil.copy("other.npz", "models/tkg/tirgn_best.npz")
    shutil.copy("other.json", "models/tkg/tirgn_best.json")
    assert call("eval", "--json").json()["mrr"] == rows[2]["mrr"]
