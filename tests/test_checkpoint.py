"""Checkpoints: what is loaded is what was saved, and it is what answers."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from cli_helpers import call
from flax import nnx
from small_world import R, make_checkpoint, make_config, make_dataset, random_arrays

from geopol_tkg.checkpoint import Checkpoint, checkpoint_paths, flatten, load_checkpoint, save_checkpoint
from geopol_tkg.data.history import build_for
from geopol_tkg.errors import CheckpointError
from geopol_tkg.models.forecaster import ForecastContext, NetworkForecaster
from geopol_tkg.models.network import build_network


@pytest.fixture(scope="module", params=["tirgn", "regcn"])
def checkpoint(request) -> Checkpoint:
    config = make_config(request.param)
    return make_checkpoint(config, make_dataset(), random_arrays(config, seed=3))


def json_ready(checkpoint):
    return replace(checkpoint, metrics={"train_loss": 1.5, "valid": {"mrr": 0.25}})


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
    with pytest.raises(CheckpointError, match=r"x\.npz: not plain arrays"):
        load_checkpoint(Path("x"))
    assert not Path("executed").exists()
    with np.load("x.npz", allow_pickle=True) as arrays:
        assert arrays["trap"].shape == (1,)
    assert Path("executed").exists()  # it would have been
    assert pickle.dumps(Trap())


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
