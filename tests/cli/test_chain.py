"""The whole chain, by the real program and on the files that each command leaves for the next."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_helpers import Finished, call

METRICS = {"num_queries", "mrr", "hits_at_1", "hits_at_3", "hits_at_10", "mean_rank"}
PREDICTION = {"probability", "seen_before", "last_seen"}
INGEST = {"facts", "entities", "relations", "timestamps", "train", "valid", "test"} | {
    "rows_read",
    "rows_dropped",
    "gaps",
    "out",
}
TRAIN = {"status", "epochs_trained", "best_epoch", "best_mrr", "total_time", "early_stopped", "model_type"} | {
    "checkpoint",
    "last",
    "run_dir",
}
COMPARE = {"models", "delta", "delta_pct", "ci_low", "ci_high", "p_value", "pass_threshold", "passed"} | {
    "num_queries",
    "split",
}


def first_steps(trained: Path, name: str) -> Finished:
    return Finished(**json.loads((trained / f"{name}.json").read_text()))


def test_ingest(trained):
    done = first_steps(trained, "ingest")
    assert done.json().keys() >= INGEST
    assert done.json()["rows_read"] == done.json()["facts"] + sum(done.json()["rows_dropped"].values())
    assert {path.name for path in (trained / "data/gdelt").iterdir()} == {
        "dataset.json",
        "facts.parquet",
        "entities.parquet",
        "relations.parquet",
        "history.npz",
    }


def test_the_sample_is_ingested_as_train_does(tmp_path):
    read = {"rows_read": 4161, "facts": 3449, "timestamps": 72}
    assert call("ingest", "sample", "--out", str(tmp_path / "hours"), "--json").json().items() >= read.items()
    days = call("ingest", "sample", "--granularity", "1d", "--out", str(tmp_path / "days"), "--json").json()
    assert days["timestamps"] == 3


def test_vocab(trained):
    content = first_steps(trained, "vocab").json()
    assert content.keys() >= {"rows", "facts", "window", "bytes", "seconds", "out"}
    assert content["bytes"] == (trained / content["out"]).stat().st_size


def test_train(trained):
    done = first_steps(trained, "train")
    content = done.json()
    assert content.keys() >= TRAIN
    assert (content["status"], content["epochs_trained"], content["early_stopped"]) == ("completed", 2, False)
    assert {path.name for path in (trained / "models/tkg").iterdir()} == {
        *(f"tirgn_{kind}.{suffix}" for kind in ("best", "last") for suffix in ("npz", "json")),
        "metrics.jsonl",
        ".lock",
    }
    epochs = [line for line in done.err.splitlines() if line.startswith("epoch ")]
    assert [line.split(" | ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.err)


def assert_evaluation(content, model):
    assert content.keys() >= METRICS | {
        "model",
        "split",
        "protocol",
        "filter",
        "object",
        "subject",
        "strata",
        "calibration",
        "dataset",
    }
    assert [set(content[part]) for part in ("object", "subject")] == [METRICS, METRICS]
    assert set(content["strata"]) == {"seen", "unseen", "unseen_entity"}
    assert content["model"] == model
    said = content["calibration"]
    assert (said is None) == model.startswith(("recurrency", "frequency"))
    if said is not None:
        assert list(said) == ["temperature", "ece", "nll", "num_queries", "num_impossible", "bins", "uncalibrated"]
        assert sum(part["count"] for part in said["bins"]) == said["num_queries"] == content["num_queries"]
        assert 0 <= said["ece"] <= 1
        assert said["uncalibrated"].keys() == {"ece", "nll"}


def test_eval_by_the_program(trained, program, tmp_path):
    done = program("eval", "--json", "--ranks", tmp_path / "ranks.parquet", cwd=trained)
    content = done.json()
    assert_evaluation(content, "tirgn_best")
    table = pq.read_table(tmp_path / "ranks.parquet")
    assert table.column_names[:6] == ["subject", "relation", "object", "time", "direction", "rank"]
    assert set(table.column_names[6:]) == {"score", "num_candidates", "seen_before", "probability"}
    assert content["calibration"]["nll"] == pytest.approx(-np.log(table["probability"].to_numpy()).mean())
    assert len(table) == content["num_queries"]
    assert content["mrr"] == pytest.approx((1 / table["rank"].to_numpy()).mean())
    assert done.err.splitlines() == [
        "checkpoint: models/tkg/tirgn_best",
        f"{len(table)} ranks in {tmp_path / 'ranks.parquet'}",
    ]


@pytest.mark.parametrize(
    ("named", "model"),
    [
        ("models/tkg/tirgn_last", "tirgn_last"),
        ("models/tkg/tirgn_best.npz", "tirgn_best"),
        ("models/tkg/tirgn_best.json", "tirgn_best"),
        ("recurrency", "recurrency"),
        ("recurrency:0.02,0.999", "recurrency:0.02,0.999"),
        ("frequency", "frequency"),
    ],
)
def test_eval_of_each_kind_of_model(world, named, model):
    assert_evaluation(call("eval", named, "--json").json(), model)


@pytest.mark.parametrize(
    "option",
    [("--split", "valid"), ("--protocol", "multi-step"), ("--filter", "raw"), ("--filter", "static")],
)
def test_eval_options_are_in_the_report(world, option):
    content = call("eval", "--json", *option).json()
    assert content[option[0].removeprefix("--")] == option[1]


def test_valid_figures_of_training_are_those_of_eval(world):
    best = first_steps(world, "train").json()["best_mrr"]
    assert call("eval", "--split", "valid", "--json").json()["mrr"] == pytest.approx(best, rel=1e-4)


def test_the_temperature_is_the_checkpoint_s(world):
    stored = json.loads(Path("models/tkg/tirgn_best.json").read_text())["temperature"]
    assert stored["value"] == first_steps(world, "train").json()["temperature"]
    assert stored["nll_after"] <= stored["nll_before"]
    found = call("eval", "--split", "valid", "--json").json()
    assert found["calibration"]["temperature"] == stored["value"]
    assert (stored["split"], stored["num_queries"]) == ("valid", found["num_queries"])
    said = found["calibration"]
    line = call("eval", "--split", "valid").out.splitlines()[-1]
    assert line == (
        f"calibration: ECE {said['ece']:.4f}, NLL {said['nll']:.4f} at temperature {stored['value']:.4f}; "
        f"{said['uncalibrated']['ece']:.4f} and {said['uncalibrated']['nll']:.4f} without it"
    )
    assert "calibration" not in call("eval", "frequency").out


def test_convert(world):
    predictor = pytest.importorskip("geopol_tkg.torch.predictor", reason="torch is an extra").TKGPredictor
    content = call("convert", "--json").json()
    expected = {"output", "model_type", "num_parameters", "max_abs_difference", "tolerance", "passed"}
    assert content.keys() >= expected
    assert content["passed"]
    assert content["output"] == "models/tkg/tirgn_trained.pt"
    label = json.loads(Path("models/tkg/tirgn_best.json").read_text())["relation_to_id"].popitem()[0]
    rows = predictor("models/tkg/tirgn_trained.pt", device="cpu").predict("ENTITY 1", label, top=8)
    wanted = call("predict", "ENTITY 1", label, "--json").json()["predictions"]
    assert [row["object"] for row in rows] == [row["object"] for row in wanted]
    assert [row["probability"] for row in rows] == pytest.approx([row["probability"] for row in wanted], abs=1e-6)


def test_convert_above_its_tolerance_leaves_no_file(world):
    pytest.importorskip("torch", reason="torch is an extra")
    done = call("convert", "--output", "new.pt", "--tolerance", "0", "--json")
    assert done.code == 3
    assert not json.loads(done.out)["passed"]
    assert not Path("new.pt").exists()
    assert "new.pt was not written" in done.err


def test_compare_passes_and_fails(world):
    models = ("tirgn_best", "recurrency:0.02,0.999", "frequency")
    named = (f"models/tkg/{models[0]}", *models[1:])
    content = call("compare", *named, "--pass-threshold", "-100", "--json").json()
    assert content.keys() >= COMPARE
    assert [row["name"] for row in content["models"]] == list(named)
    assert all(row.keys() >= METRICS - {"num_queries"} for row in content["models"])
    assert json.loads(Path("comparison_report.json").read_text()) == content
    failed = call("compare", *named, "--pass-threshold", "1e9", "--output", "report.json")
    assert failed.code == 3
    assert "NOT PASSED" in failed.out
    assert not json.loads(Path("report.json").read_text())["passed"]


def test_predict_both_ways(world):
    content = call("predict", "ENTITY 1", "042", "--json").json()
    assert content.keys() >= {"subject", "relation", "time", "predictions"}
    assert all(set(row) == PREDICTION | {"object"} for row in content["predictions"])
    asked = call("predict", "ENTITY 1", "042", "--object", "--top", "3", "--json").json()
    assert asked["object"] == "ENTITY 1"
    assert [set(row) for row in asked["predictions"]] == [PREDICTION | {"subject"}] * 3
    table = call("predict", "ENTITY 1", "042", "--top", "3").out
    assert table.startswith("(ENTITY 1, 042, ?) at 2017-11-01T20:00:00Z\n")
    assert table.count("ENTITY") == 4
    ahead = call("predict", "ENTITY 1", "042", "--at", "2017-11-02T20:00", "--json")
    assert ahead.json()["steps_ahead"] == 25
    assert "25 time steps after the last facts: what came between is not known here" in ahead.err.splitlines()


@pytest.mark.parametrize(("query", "hint"), [(("ENTITI 1", "042"), "ENTITY 1"), (("entity", "042"), "ENTITY 0")])
def test_predict_suggests_labels(world, query, hint):
    done = call("predict", *query)
    assert done.code == 1
    assert f"did you mean {hint}" in done.error()


def test_predict_suggests_relations(world):
    assert "relation '04' is unknown to the model; did you mean 042?" in call("predict", "ENTITY 1", "04").error()


def test_quiet_json_is_all_there_is(world):
    done = call("eval", "frequency", "--json", "--quiet")
    assert done.json()["model"] == "frequency"
    assert done.err == ""


@pytest.mark.slow
def test_the_rest_of_the_chain_by_the_program(world, program):
    for args in [
        ("eval", "models/tkg/tirgn_last"),
        ("eval", "recurrency"),
        ("compare", "models/tkg/tirgn_best", "frequency", "--pass-threshold", "-100"),
        ("predict", "ENTITY 1", "042"),
        ("convert",),
    ]:
        done = program(*args, "--json", cwd=world)
        assert done.json()
        assert "\x1b" not in done.err
