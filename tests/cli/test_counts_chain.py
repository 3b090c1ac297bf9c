"""The counting model, and a network that begins with it, from the command line."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import SETTINGS, SMALL, call, even_events, listing, run_in_copy
from test_resume import arrays_of, assert_same_arrays, signal_at

from geopol_tkg.checkpoint import load_checkpoint, save_checkpoint
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.paths import PathIndex

COUNTS = ("train", "--model", "counts", "--batch-size", "0", "--epochs", "2")
OWN = ("--model-dir", "own", "--run-name", "own")
PRIOR = "models/tkg/counts_best"
BESIDE = ("train", "--model", "regcn", *SMALL, "--epochs", "2", "--count-prior", PRIOR)
REFIT, REFITTED = ("train", "--refit", PRIOR, "--lr", "9", "--model-dir", "refit"), "refit/counts_best"


@pytest.fixture(scope="module")
def counted(trained, tmp_path_factory):
    """A folder in which both have been trained, and the first one refitted; what training said; not to be changed."""
    commands = ((*args, "--overwrite", "--json") for args in (COUNTS, BESIDE, (*REFIT, "--run-name", "refit")))
    return run_in_copy(trained, tmp_path_factory.mktemp("counted"), *commands)


@pytest.fixture
def here(counted, monkeypatch):
    monkeypatch.chdir(counted[0])
    return counted[0]


@pytest.fixture
def copy(counted, tmp_path, monkeypatch):
    shutil.copytree(counted[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def manifest(stem):
    return json.loads(Path(f"{stem}.json").read_text())


def test_both_are_trained(counted, here):
    counts, beside, _ = (done.json() for done in counted[1])
    assert [part["status"] for part in (counts, beside)] == ["completed"] * 2
    assert [part["model_type"] for part in (counts, beside)] == ["counts", "regcn"]
    assert counts["checkpoint"] == PRIOR
    assert manifest(PRIOR)["config"]["count_prior"] is False
    config = manifest("models/tkg/regcn_best")["config"]
    assert config["count_prior"] is True
    assert config["half_lives"] == manifest(PRIOR)["config"]["half_lives"]
    own = {name.removeprefix("counts/") for name in arrays_of(f"{beside['checkpoint']}.npz") if name[:7] == "counts/"}
    assert own == arrays_of(f"{PRIOR}.npz").keys() - {"trained_entities"}


@pytest.mark.parametrize("name", [PRIOR, "models/tkg/regcn_best"])
def test_both_are_evaluated_and_asked(here, name):
    valid = call("eval", name, "--split", "valid", "--json").json()
    assert valid["mrr"] == pytest.approx(manifest(name)["metrics"]["valid"]["mrr"], rel=1e-4)
    test, hidden = (call("eval", name, "--protocol", kind, "--json").json() for kind in ("single-step", "multi-step"))
    assert (test["num_queries"], hidden["protocol"]) == (hidden["num_queries"], "multi-step")
    assert test["mrr"] != hidden["mrr"]
    asked = call("predict", "ENTITY 1", "042", "--checkpoint", name, "--top", "8", "--json").json()["predictions"]
    assert sum(row["probability"] for row in asked) == pytest.approx(1, abs=1e-5)


def test_a_refit_takes_as_many_epochs_with_the_same_settings(counted, here):
    first, done = counted[1][0].json(), counted[1][2].json()
    assert (done["status"], done["model_type"], done["checkpoint"]) == ("completed", "counts", REFITTED)
    assert done["epochs_trained"] == done["best_epoch"] == first["best_epoch"]
    assert (done["best_mrr"], done["temperature"]) == (None, first["temperature"])
    before, after = manifest(PRIOR), manifest(REFITTED)
    changed = {name for name, value in after["settings"].items() if value != before["settings"][name]}
    assert changed == {"through", "refit_epochs"}
    assert after["metrics"]["valid"] is None
    told = counted[1][2].err
    assert "no effect with --refit: --lr" in told
    assert "valid MRR" not in told
    assert "patience" not in told


def test_a_refit_learns_from_later_facts_and_no_test_facts(here):
    first, second = (arrays_of(f"{name}.npz") for name in (PRIOR, REFITTED))
    assert first.keys() == second.keys()
    assert not np.array_equal(first["history_net/output"], second["history_net/output"])
    facts, test_start = Dataset.load(Path("data/gdelt")).facts, load_checkpoint(Path(PRIOR)).split.test_start
    learned = facts[facts[:, 3] < test_start]
    np.testing.assert_array_equal(np.flatnonzero(second["trained_entities"]), np.unique(learned[:, [0, 2]]))
    assert load_checkpoint(Path(REFITTED)).trained_until == test_start


@pytest.mark.parametrize(
    ("name", "learned"),
    [(PRIOR, {"train"}), (REFITTED, {"train", "valid"}), (f"{PRIOR}+{REFITTED}", {"train", "valid"})],
)
def test_figures_of_what_was_learned_are_no_forecasts(here, name, learned):
    for split in ("train", "valid", "test"):
        done = call("eval", name, "--split", split, "--json")
        assert done.json().get("overlaps_training", False) is (split in learned)
        assert ("these figures are no forecasts" in done.err) is (split in learned)
    shown = call("eval", name, "--split", "valid", "-q").out
    assert ("its figures are no forecasts" in shown) is ("valid" in learned)


def test_a_report_says_what_was_learned(here, tmp_path):
    told = "was trained on times of this split: its figures are no forecasts"
    args = ("--split", "valid", "--examples", "0", "--output", tmp_path / "x.html", "-q")
    assert told in call("report", f"{PRIOR}+{REFITTED}", *args).out
    page = (tmp_path / "x.html").read_text()
    assert told in page
    assert "it was trained on times of this split, so that these figures are no forecasts" in page


def test_a_stopped_refit_goes_on(here, tmp_path, monkeypatch):
    command = (*REFIT[:-1], tmp_path / "own", "--logdir", tmp_path / "runs", "--json")
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGTERM, step=2)
        assert call(*command).code == 143
    assert not (tmp_path / "own" / "counts_best.json").exists()
    without = ("train", "--model", "counts", "--model-dir", tmp_path / "own", "--resume")
    assert "counts_last.json: of a refit; resume it with its --refit and --through" in call(*without).error()
    assert call(*command, "--resume").json()["status"] == "completed"
    assert_same_arrays(arrays_of(f"{REFITTED}.npz"), arrays_of(tmp_path / "own" / "counts_best.npz"))
    assert call(*command, "--overwrite", "--max-time", "1e-3").json()["status"] == "max_time"
    assert_same_arrays(arrays_of(f"{REFITTED}.npz"), arrays_of(tmp_path / "own" / "counts_best.npz"))  # still there


def test_what_was_trained_before_there_were_refits_goes_on(copy):
    stem = Path("models/tkg/counts_last")
    old = load_checkpoint(stem)
    settings = {name: value for name, value in old.settings.items() if name not in ("through", "refit_epochs")}
    save_checkpoint(stem, replace(old, settings=settings))
    assert call(*COUNTS[:-1], "3", "--resume", "--json").json()["epochs_trained"] == 3


def test_settings_of_a_refit_come_from_what_it_refits(here):
    options = json.loads(Path("runs/refit/config.json").read_text())["options"]
    first = manifest(PRIOR)["settings"]
    assert options["lr"] == {"value": first["lr"], "origin": "refit"}
    assert options["model"] == {"value": "counts", "origin": "refit"}
    assert options["run_name"]["origin"] == "command line"


def test_a_card_says_what_was_learned(here, tmp_path):
    pytest.importorskip("torch")
    assert call("convert", REFITTED, "--output", tmp_path / "x.pt", "--json").json()["passed"]
    card = (tmp_path / "x.md").read_text()
    assert "Weights were fitted to train and valid, by a refit." in card
    assert "The checkpoint holds no validation." in card


@pytest.mark.slow
def test_a_network_learns_from_all_facts(world):
    args = ("--refit", "models/tkg/tirgn_best", "--through", "test", *OWN, "--json")
    done = call("train", *args).json()
    assert (done["model_type"], done["epochs_trained"]) == ("tirgn", done["best_epoch"])
    assert load_checkpoint(Path("own/tirgn_best")).trained_until == Dataset.load(Path("data/gdelt")).timestamps[-1] + 1
    assert call("eval", "own/tirgn_best", "--json").json()["overlaps_training"] is True
    pytest.importorskip("torch")
    assert call("convert", "own/tirgn_best", "--full", "--json").json()["full"]["overlaps_training"] is True
    card = Path("own/tirgn_trained.md").read_text()
    assert "It has learned from all facts, by a refit only." in card
    assert "The model was trained on times of the test split: its figures there are no forecasts." in card


@pytest.mark.slow
def test_half_lives_are_the_users(here):
    given = ("--dropout", "0.1", "--embedding-dim", "8", "--precision", "bf16", "--remat")
    args = ("train", "--half-lives", "2,8.5", *given, "--epochs", "1", *OWN)
    done = call(*args, "--json")
    assert done.code == 0
    assert manifest("own/counts_best")["config"]["half_lives"] == [2.0, 8.5]
    assert "no effect on --model counts: --embedding-dim, --dropout, --precision, --remat" in done.err
    assert "f32, remat off" in done.err


def test_other_models_options_are_told(here):
    given = ("--dropout", "0.1", "--embedding-dim", "8", "--precision", "bf16", "--remat")
    done = call("train", *given, *OWN, "--through", "test", "--count-prior", "models/none")  # refused after it has told
    assert "no effect without --refit: --through" in done.err
    assert "no effect on --model counts: --embedding-dim, --dropout, --precision, --remat" in done.err
    given = ("--half-lives", "2", "--countries", "--history-rate", "0.9", "--static-angle", "3")
    done = call("train", "--model", "regcn", *given, "--count-prior", "models/none", "--dry-run")
    assert "no effect on --model regcn: --half-lives, --countries, --history-rate" in done.err
    assert "no effect without --static-graph: --static-angle" in done.err


def test_a_step_of_counts_has_no_neighbours_and_no_options_of_networks(here, monkeypatch):
    done = call(*COUNTS, "--overwrite", "--dry-run", "--json").json()
    assert [shape["neighbours"] for shape in done["shapes"]] == [None]
    monkeypatch.setattr("geopol_tkg.training.run.free_bytes", lambda _device: 1000)
    assert call(*COUNTS, "--overwrite").error().endswith(" are free: lower --batch-size or --block-size")
    with_paths = call(*COUNTS, "--num-paths", "2", "--overwrite")
    assert with_paths.error().endswith(" are free: lower --batch-size, --num-paths or --block-size")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_paths_are_followed_ends_it_at_once(here, tmp_path, monkeypatch, number, code):
    times = []
    followed = PathIndex.of

    def follow(index, time, subjects):
        times.append(time)
        signal.raise_signal(number)
        return followed(index, time, subjects)

    monkeypatch.setattr(PathIndex, "of", follow)
    own = ("--model-dir", tmp_path / "models", "--logdir", tmp_path / "runs")
    stopped = call(*COUNTS, "--num-paths", "2", *own, "--json")
    assert (stopped.code, stopped.out, len(times)) == (code, "", 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_a_network_with_a_prior_is_converted(here, tmp_path):
    pytest.importorskip("torch")
    done = call("convert", "models/tkg/regcn_best", "--output", tmp_path / "x.pt", "--full", "--json").json()
    assert done["passed"]
    assert done["full"]["mrr"] == pytest.approx(call("eval", "models/tkg/regcn_best", "--json").json()["mrr"], abs=5e-5)


def test_they_are_compared(here, tmp_path):
    names = (PRIOR, "models/tkg/regcn_best", "recurrency")
    report = tmp_path / "report.json"
    content = call("compare", *names, "--pass-threshold", "-100", "--output", report, "--json").json()
    mrrs = {row["name"]: row["mrr"] for row in content["models"]}
    assert list(mrrs) == list(names)
    assert mrrs[PRIOR] == pytest.approx(call("eval", PRIOR, "--json").json()["mrr"], rel=1e-6)


def test_both_are_averaged(here, tmp_path):
    name = f"{PRIOR}+models/tkg/regcn_best"
    found = call("eval", name, "--json").json()
    assert found["model"] == "counts_best+regcn_best"
    assert found["calibration"]["temperature"] == 1
    rows = call("compare", name, PRIOR, "--pass-threshold", "-100", "--output", tmp_path / "x.json", "--json").json()
    assert [row["name"] for row in rows["models"]] == [name, PRIOR]
    assert rows["models"][0]["mrr"] == found["mrr"]
    asked = call("predict", "ENTITY 1", "042", "--checkpoint", name, "--top", "8", "--json").json()["predictions"]
    assert sum(row["probability"] for row in asked) == pytest.approx(1, abs=1e-5)
    reported = call("report", name, PRIOR, "--output", tmp_path / "x.html", "--examples", "1", "--json").json()
    assert [row["run"] for row in reported["models"]][:2] == [name, PRIOR]
    page = (tmp_path / "x.html").read_text()
    assert "counts_best+regcn_best, the mean of their probabilities" in page
    assert page.count("ensemble") == 1


def ingest_codes():
    """Three actors of each of four countries."""
    events = even_events(num_entities=12)
    for i in (1, 2):
        names = events[f"Actor{i}Name"].to_pylist()
        numbers = [int(name.removeprefix("ENTITY ")) for name in names]
        codes = [f"E{number % 4:02}" + ("", "GOV", "COP")[number // 4] for number in numbers]
        column = f"Actor{i}Code"
        events = events.set_column(events.column_names.index(column), column, pa.array(codes))
    pq.write_table(events, "codes.parquet")
    assert call("ingest", "codes.parquet", *SETTINGS, "--entity", "code", "--out", "data/codes").code == 0


@pytest.mark.slow
def test_countries_from_codes_to_pytorch(world):
    ingest_codes()
    trained = call("train", "data/codes", "--countries", "--batch-size", "0", "--epochs", "1", "--json")
    assert trained.json()["model_type"] == "counts"
    assert "5 relations, 4 countries; " in trained.err
    assert manifest(PRIOR)["config"]["num_countries"] == 4
    assert call("eval", PRIOR, "--json").json()["mrr"] > 0
    done = call("predict", "E00", "042", "--explain", "--top", "12", "--json").json()["predictions"]
    assert {row["object"]: row["explanation"]["country"] for row in done} == {
        f"E{number:02}{role}": "E00" if number == 0 else None for number in range(4) for role in ("", "GOV", "COP")
    }
    pytest.importorskip("torch")
    assert call("convert", PRIOR, "--full", "--json").json()["passed"]


def test_paths_from_training_to_pytorch(here, tmp_path):
    followed = f"{tmp_path}/counts_best"
    own = ("--model-dir", tmp_path, "--logdir", tmp_path / "runs")
    trained = call(*COUNTS, "--num-paths", "3", "--epochs", "1", *own, "--json")
    assert trained.json()["model_type"] == "counts"
    assert manifest(followed)["config"]["num_paths"] == 3
    for split in ("valid", "test"):
        assert call("eval", followed, "--split", split, "--json").json()["mrr"] > 0
    assert call("eval", f"{followed}+{PRIOR}", "--json").code == 0
    done = call("predict", "ENTITY 0", "042", "--checkpoint", followed, "--explain", "--json")
    assert all("path" in row["explanation"] for row in done.json()["predictions"])
    beside = call(*BESIDE[:-1], followed, *own)
    refused = f"error: {followed}: follows paths, which counts beside a network do not; train it with --num-paths 0"
    assert (beside.code, beside.error()) == (1, refused)
    pytest.importorskip("torch")
    assert call("convert", followed, "--full", "--output", tmp_path / "x.pt", "--json").json()["passed"]


REFUSED = {
    "an ensemble with a baseline": (
        ("eval", f"{PRIOR}+recurrency"),
        (2, f"{PRIOR}+recurrency: recurrency has no probabilities; an ensemble is one of checkpoints"),
    ),
    "an ensemble with nothing": (("eval", f"{PRIOR}+models/none"), (1, "models/none: no checkpoint here")),
    "an ensemble in PyTorch": (
        ("convert", f"{PRIOR}+models/tkg/regcn_best"),
        (2, "an ensemble has no file of its own; convert its members one by one"),
    ),
    "a network as prior": (
        (*BESIDE[:-1], "models/tkg/regcn_best", "--overwrite"),
        (1, "models/tkg/regcn_best: is a regcn; --count-prior wants one of --model counts"),
    ),
    "no such prior": ((*BESIDE[:-1], "models/none", "--overwrite"), (1, "models/none")),
    "another dataset": (
        ("train", "data/other", *BESIDE[1:], "--overwrite"),
        (1, f"{PRIOR}: trained on another dataset; train --model counts on this one first"),
    ),
    "counts with a prior": (
        (*COUNTS, "--count-prior", PRIOR, "--overwrite"),
        (2, "--count-prior is for networks: use --model tirgn or regcn"),
    ),
    "a sample": (
        (*BESIDE, "--num-negatives", "4", "--overwrite"),
        (2, "--count-prior scores every entity: it cannot be used with --num-negatives"),
    ),
    "counts with a sample": (
        (*COUNTS, "--num-negatives", "4", "--overwrite"),
        (2, "--num-negatives concerns networks: --model counts sums over all entities at no cost"),
    ),
    "counts with smoothing": (
        (*COUNTS, "--label-smoothing", "0.1", "--overwrite"),
        (2, "--label-smoothing concerns networks"),
    ),
    "countries that no label names": (
        (*COUNTS, "--countries", "--overwrite"),
        (2, "--countries: no two labels name one country, as Role (Country) or CAMEO codes do"),
    ),
    "refitted without its prior": (
        ("train", "--refit", "models/tkg/regcn_best", *OWN),
        (2, "--refit needs --count-prior: models/tkg/regcn_best was trained beside one"),
    ),
    "a prior that knows the answers": (
        (*BESIDE[:-1], REFITTED, "--overwrite"),
        (1, f"{REFITTED}: learned from facts after train; name one that did not"),
    ),
    "a refit of another dataset": (
        ("train", "data/other", "--refit", PRIOR, *OWN),
        (1, f"{PRIOR}: trained on another dataset; --refit learns from its own"),
    ),
    "a refit with a prior that was not there": (
        ("train", "--refit", "models/tkg/tirgn_best", "--count-prior", PRIOR, *OWN),
        (2, "--refit takes no --count-prior: models/tkg/tirgn_best was trained without one"),
    ),
    "a refit over its own model": (
        ("train", "--refit", f"{PRIOR}.json", "--overwrite"),
        (2, f"--refit {PRIOR}.json: would be replaced by its refit; name another --model-dir"),
    ),
    "a refit of where a run stands": (
        ("train", "--refit", "models/tkg/counts_last", *OWN),
        (1, "models/tkg/counts_last: is where a run stands; --refit wants its best model"),
    ),
    "a refit of a folder": (
        ("train", "--refit", "refit", *OWN),
        (1, "refit: a folder; name a checkpoint in it, such as refit/counts_best"),
    ),
    "a refit of this folder": (("train", "--refit", ".", *OWN), (1, ".: no checkpoint here")),
    "a refit beside other counts": (
        ("train", "--refit", "models/tkg/regcn_best", "--count-prior", "other/counts_best", *OWN),
        (2, "--count-prior other/counts_best: counts other things than that beside models/tkg/regcn_best"),
    ),
    "a refit over another": (REFIT, (1, "exists: --resume goes on with it, --overwrite replaces it")),
    "a refit of nothing": (("train", "--refit", "models/none", *OWN), (1, "models/none")),
    "resumed without its prior": (
        ("train", "--model", "regcn", *SMALL, "--epochs", "3", "--resume"),
        (1, "trained with count_prior True, not False"),
    ),
}


@pytest.mark.parametrize(("args", "expected"), REFUSED.values(), ids=REFUSED)
def test_wrong_use_is_refused(here, args, expected):
    if "data/other" in args and not Path("data/other").exists():
        call("ingest", "events.parquet", "--granularity", "2h", "--out", "data/other")
    if "other/counts_best" in args:
        prior = load_checkpoint(Path(PRIOR))
        save_checkpoint(Path("other/counts_best"), replace(prior, config=replace(prior.config, half_lives=(1.0,) * 4)))
    before = {name: content for name, content in listing(here).items() if not name.endswith(".lock")}
    done = call(*args)
    assert (done.code, done.out) == (expected[0], ""), done.err
    assert expected[1] in done.error()
    assert {name: content for name, content in listing(here).items() if not name.endswith(".lock")} == before


@pytest.mark.parametrize(("args", "model"), [(COUNTS, "counts"), (BESIDE, "regcn")])
def test_interrupted_and_resumed_is_the_same_run(copy, monkeypatch, args, model):
    last, best = (Path(f"models/tkg/{model}_{name}.npz") for name in ("last", "best"))
    whole = [arrays_of(path) for path in (last, best)]
    with monkeypatch.context() as context:
        signal_at(context, signal.SIGTERM, step=3, epoch=1)
        assert call(*args, "--overwrite").code == 143
    stopped = manifest(last.with_suffix(""))
    assert (stopped["resume"]["epoch"], stopped["resume"]["step_in_epoch"]) == (0, 3)
    assert call(*args, "--resume", "--json").json()["status"] == "completed"
    for path, before in zip((last, best), whole, strict=True):
        assert_same_arrays(before, arrays_of(path))
