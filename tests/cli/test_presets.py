"""Published settings: what the files say, and that train takes them below every other option."""

import json
import tomllib
from pathlib import Path

import pytest
import typer
from cli_helpers import call

from geopol_tkg.cli import _presets, app

TRAIN = typer.main.get_command(app).commands["train"]
PUBLISHED = {  # history length, layers, static angle; MRR
    "regcn-icews14s": (3, 2, 10, 0.420),
    "tirgn-icews14s": (9, 2, 14, 0.440),
    "tirgn-icews14": (9, 2, 14, None),
    "tirgn-icews18": (10, 2, 10, 0.337),
    "tirgn-icews05-15": (15, 2, 10, 0.500),
    "tirgn-gdelt": (7, 2, None, 0.217),
    "tirgn-wiki": (2, 2, None, 0.817),
    "tirgn-yago": (1, 1, None, 0.880),
}
COMMON = {
    "embedding_dim": 200,
    "dropout": 0.2,
    "history_window": 0,
    "task_weight": 0.7,
    "batch_size": 0,
    "num_negatives": 0,
    "label_smoothing": 0,
    "optimiser": "adam",
    "lr": 1e-3,
    "weight_decay": 1e-5,
    "grad_clip": 1.0,
    "schedule": "constant",
    "warmup_epochs": 0,
    "precision": "f32",
}
OWN = {  # of no paper
    "counts-gdelt": {"epochs": 1, "train_window": 240, "lr": 0.003, "schedule": "cosine"},
    "counts-icews14s": {"epochs": 15, "countries": True, "train_window": 0, "lr": 0.003, "schedule": "cosine"},
    "counts-yago": {
        "num_paths": 64,
        "epochs": 10,
        "train_window": 10,
        "batch_size": 512,
        "lr": 0.01,
        "schedule": "cosine",
    },
}
BESIDE = "regcn-counts-icews14s"
NAMES = sorted((*OWN, *PUBLISHED, BESIDE))
TIRGN = {"history_rate": 0.3, "history_mask_mode": "multiply"}


def test_there_is_one_for_each_model_and_dataset():
    assert _presets.preset_names() == NAMES


@pytest.mark.parametrize("name", PUBLISHED)
def test_train_takes_the_published_settings(name):
    length, layers, angle, _ = PUBLISHED[name]
    model = name.partition("-")[0]
    wanted = COMMON | {
        "model": model,
        "history_length": length,
        "num_layers": layers,
        "static_graph": angle is not None,
    }
    wanted |= TIRGN if model == "tirgn" else {}
    wanted |= {"static_angle": angle, "static_weight": 0.5} if angle is not None else {}
    assert set(_presets.load_preset(name).train) == {key.replace("_", "-") for key in wanted}
    taken = TRAIN.make_context("train", ["--preset", name]).params
    assert {key: taken[key] for key in wanted} == wanted


@pytest.mark.parametrize("name", OWN)
def test_the_programs_own_name_what_could_change(name):
    wanted = {"model": "counts", "batch_size": 1024, "half_lives": "1,4,16,64"}
    wanted |= {key: COMMON[key] for key in ("optimiser", "lr", "weight_decay", "grad_clip", "schedule")}
    wanted |= OWN[name]
    taken = TRAIN.make_context("train", ["--preset", name]).params
    assert {key: taken[key] for key in wanted} == wanted


def test_a_network_beside_counts_is_the_published_one_but_for_its_schedule():
    alone, beside = (_presets.load_preset(name).train for name in ("regcn-icews14s", BESIDE))
    assert beside == alone | {"count-prior": "models/tkg/counts_best", "epochs": 12, "schedule": "cosine"}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_opens_with_what_it_is_about(name):
    preset = _presets.load_preset(name)
    assert preset.text.startswith("[about]\npaper = ")
    assert preset.about.get("published", {}).get("mrr") == PUBLISHED.get(name, (None,))[-1]
    assert ("protocol" in preset.about) == bool(preset.about["published"])
    assert preset.about["version"]
    assert preset.about["time"]
    ingest, *before, train, evaluate = (line.split() for line in preset.about["commands"] if "+" not in line)
    prior = ["geopol-tkg", "train", ingest[-1], "--preset", "counts-icews14s", "--no-countries"]
    assert before == ([prior] if name == BESIDE else [])
    assert ingest[:3] == ["geopol-tkg", "ingest", preset.about["dataset"]]
    assert train == ["geopol-tkg", "train", ingest[-1], "--preset", name]
    own_split = ["--split", "valid"] if name == "counts-gdelt" else []  # what its result was read on
    assert evaluate == ["geopol-tkg", "eval", f"models/tkg/{preset.train['model']}_best", *own_split]


def test_each_place_of_an_option_wins_over_the_one_before(world, monkeypatch):
    """The preset turns the static graph on, for which an odd size is refused; the message names the size that won."""

    def refused(*more):
        done = call("--config", "options.toml", "train", *more)
        assert done.code == 2
        return done.error().partition(" needs an even --embedding-dim, not ")[2]

    Path("options.toml").write_text("[train]\npreset = 'regcn-icews14s'\nembedding-dim = 7\n")
    assert refused() == "7"
    monkeypatch.setenv("GEOPOL_TKG_TRAIN_EMBEDDING_DIM", "9")
    assert refused() == "9"
    assert refused("--embedding-dim", "11") == "11"


@pytest.mark.slow
def test_every_other_option_wins_over_a_preset(world, monkeypatch):
    Path("options.toml").write_text("[train]\npreset = 'regcn-icews14s'\nhistory_length = 1\ndropout = 0.5\n")
    monkeypatch.setenv("GEOPOL_TKG_TRAIN_DROPOUT", "0.1")
    call("--config", "options.toml", "train", "--embedding-dim", "8", "--epochs", "1", "--json").json()
    saved = json.loads(Path("models/tkg/regcn_best.json").read_text())["config"]
    assert (saved["model_type"], saved["num_layers"], saved["history_window"]) == ("regcn", 2, 0)
    assert saved["num_words"] > 0
    assert (saved["history_length"], saved["dropout"], saved["embedding_dim"]) == (1, 0.1, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_dry_run(world, name):
    model = name.partition("-")[0]
    small = ("--no-countries",) if model == "counts" else ("--embedding-dim", "8")  # its labels name none
    if name == BESIDE:
        assert call("train", "--model", "counts", "--batch-size", "0", "--epochs", "1").code == 0
    done = call("train", "--preset", name, *small, "--dry-run", "--json")
    assert (done.json()["status"], done.json()["model_type"]) == ("dry_run", model)
    assert "no effect" not in done.err


@pytest.mark.parametrize("command", [("train", "--preset"), ("presets",)])
@pytest.mark.parametrize(
    ("name", "hint"),
    [("tirgn-icews05", "did you mean tirgn-icews05-15?"), ("?", "known: counts-gdelt, counts-icews14s")],
)
def test_an_unknown_name(command, name, hint):
    done = call(*command, name)
    assert done.code == 2
    assert f"no preset '{name}'; {hint}" in done.error()
    assert done.error().endswith("(geopol-tkg presets lists them)")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning-rate = 1", "preset broken: train has no option 'learning-rate'"),
        ("history-length = 0", "Invalid value for '--history-length'"),
        ("model = 'regnc'", "Invalid value for '--model'"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, monkeypatch, line, message):
    (tmp_path / "broken.toml").write_text(f"[about]\n[train]\n{line}\n")
    monkeypatch.setattr(_presets, "FOLDER", tmp_path)
    done = call("train", "--preset", "broken")
    assert done.code == 2
    assert message in done.error()


def test_the_list():
    listed = call("presets", "--json").json()["presets"]
    assert [each["name"] for each in listed] == NAMES
    text = call("presets").out
    for name, (*_, mrr) in PUBLISHED.items():
        row = next(line.split() for line in text.splitlines() if line.split()[0] == name)
        assert row[:2] == [name, name.partition("-")[0]]
        assert row[-1] == ("–" if mrr is None else f"{mrr:.3f}")


def test_one_is_shown_as_it_is():
    shown = call("presets", "tirgn-gdelt").out
    assert shown == _presets.load_preset("tirgn-gdelt").text
    assert call("presets", "tirgn-gdelt", "--json").json() == {"name": "tirgn-gdelt", **tomllib.loads(shown)}
