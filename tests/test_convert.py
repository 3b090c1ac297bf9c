"""A trained checkpoint to a .pt file: what it holds, that it agrees with JAX, and that a wrong one never stays."""

import errno
import os
import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from cli_helpers import call
from small_world import GAP, LAST, N, R, make_checkpoint, make_config, make_dataset, random_arrays, visible

pytest.importorskip("torch")
import torch

import geopol_tkg.convert as convert_module
from geopol_tkg.checkpoint import flatten
from geopol_tkg.config import TrainConfig
from geopol_tkg.convert import convert, sample_queries, torch_state
from geopol_tkg.data.history import build_for
from geopol_tkg.errors import CheckpointError, DataError, GeopolTkgError, UsageError
from geopol_tkg.models.forecaster import ForecastContext, NetworkForecaster
from geopol_tkg.torch import TKGPredictor
from geopol_tkg.torch.files import write_pt
from geopol_tkg.training.step import make_trainer

CONFIG = make_config(num_layers=1)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(3)


@pytest.fixture(scope="module")
def history(dataset):
    return build_for(dataset, window=CONFIG.history_window)


@pytest.fixture(scope="module")
def checkpoint(dataset):
    return make_checkpoint(CONFIG, dataset, random_arrays(CONFIG, seed=1))


@pytest.fixture(scope="module")
def result(checkpoint, dataset, history, tmp_path_factory):
    return convert(checkpoint, dataset, history, output=tmp_path_factory.mktemp("models") / "new" / "x.pt")


@pytest.fixture(scope="module")
def content(result):
    return torch.load(result["output"], weights_only=True)


def test_the_result_is_the_contract_s(result):
    assert result["passed"] is True
    assert 0 < result["max_abs_difference"] < 1e-5
    assert result["num_parameters"] == sum(
        array.size for name, array in random_arrays(CONFIG).items() if not name.endswith(("norm/mean", "norm/var"))
    )
    names = ["output", "model_type", "num_parameters", "max_abs_difference", "tolerance", "passed"]
    assert list(result)[:6] == names


def test_the_card_and_nothing_else_is_left_beside_the_file(result):
    path = Path(result["output"])
    assert set(path.parent.iterdir()) == {path, Path(result["card"])} == {path, path.with_suffix(".md")}


def test_frequencies_count_facts(content, dataset):
    facts = dataset.facts.tolist()
    assert content["relation_frequency"].tolist() == [sum(f[1] == r for f in facts) for r in range(R)]
    expected = [sum((f[0] == e) + (f[2] == e) for f in facts) for e in range(N)]
    assert content["entity_frequency"].tolist() == expected
    triples, counts = content["triple_frequency"]["triples"].tolist(), content["triple_frequency"]["counts"]
    assert counts.tolist() == [sum(f[:3] == triple for f in facts) for triple in triples]
    assert counts.sum() == len(facts)


def test_the_context_is_that_of_the_next_step(content, dataset):
    context = content["context"]
    assert context["time_index"] == LAST + 1
    assert context["snapshot_times"] == [LAST - 2, LAST - 1, LAST]
    assert [len(facts) for facts in context["snapshots"]] == [
        int((dataset.facts[:, 3] == time).sum()) for time in context["snapshot_times"]
    ]
    triples = content["triple_frequency"]
    recent = triples["triples"][triples["last_seen"] > LAST - CONFIG.history_window].tolist()
    forward = {row for row in visible(dataset, LAST + 1, CONFIG.history_window) if row[1] < R}
    assert {tuple(row) for row in recent} == forward
    assert (context["origin"], context["step"], context["granularity"]) == (0, 86400, "1d")
    assert context["dataset"] == dataset.content_hash


def test_settings_and_metrics_are_plain(content, checkpoint):
    assert content["model_config"] == asdict(CONFIG)
    assert content["metrics"] == {"train_loss": 1.5, "valid": {"mrr": 0.25, "strata": [1, None]}}
    assert (content["format_version"], content["model_type"], content["epoch"]) == (2, "tirgn", 3)
    assert content["entity_to_id"] == checkpoint.entity_to_id


def test_tensors_own_their_storage(content):
    tensors = [*content["model_state_dict"].values(), *content["context"]["snapshots"]]
    tensors += content["triple_frequency"].values()
    for tensor in tensors:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        assert tensor.is_contiguous()


def test_weights_are_carried(content, checkpoint):
    _, start = make_trainer(CONFIG, TrainConfig(), compute_dtype=jnp.float32, remat=False)
    fresh = torch_state(flatten(start.parameters) | flatten(start.statistics))
    for name, array in torch_state(checkpoint.arrays).items():
        np.testing.assert_array_equal(content["model_state_dict"][name], array)
        assert not np.array_equal(array, fresh[name]) or name.endswith("num_batches_tracked"), name


def test_probabilities_are_those_of_jax(result, checkpoint, dataset, history):
    predictor = TKGPredictor(result["output"], device="cpu")
    context = ForecastContext.build(dataset, history, CONFIG)
    forecaster = NetworkForecaster(*checkpoint.network(), config=CONFIG, context=context, name="jax")
    expected = np.exp(np.asarray(forecaster.at(LAST + 1)(np.array([4]), np.array([2 + R])))[0])
    rows = predictor.predict_subjects("112", "COUNTRY E", top=N)
    for row in rows:
        assert row["probability"] == pytest.approx(expected[predictor.entity_to_id[row["subject"]]], abs=1e-6)
    assert sum(row["probability"] for row in rows) == pytest.approx(1, abs=1e-5)


def test_the_temperature_is_for_probabilities_of_entities_alone(result, checkpoint, dataset, history, tmp_path):
    entry = {"value": 2.0, "split": "valid", "num_queries": 9, "nll_before": 2.5, "nll_after": 2.0}
    warm = convert(replace(checkpoint, temperature=entry), dataset, history, output=tmp_path / "x.pt")
    plain, found = (TKGPredictor(path, device="cpu") for path in (result["output"], warm["output"]))
    assert (plain.temperature, found.temperature) == (1, 2)
    asked = np.arange(4), np.arange(4)
    np.testing.assert_array_equal(found.log_probabilities(*asked), plain.log_probabilities(*asked))
    assert found.predict_relations("COUNTRY A", "COUNTRY B") == plain.predict_relations("COUNTRY A", "COUNTRY B")
    for baseline in (False, True):
        rows, before = (p.predict("COUNTRY A", "042", top=N, baseline=baseline) for p in (found, plain))
        expected = np.array([row["probability"] for row in before]) ** (1 if baseline else 0.5)
        assert [row["object"] for row in rows] == [row["object"] for row in before]
        assert [row["probability"] for row in rows] == pytest.approx(expected / expected.sum(), rel=1e-5)
        scored = [found.score("COUNTRY A", "042", row["object"], baseline=baseline) for row in rows]
        assert scored == pytest.approx([row["probability"] for row in rows], rel=1e-5)
    assert "temperature 2.0000, fitted on 9 valid queries" in Path(warm["card"]).read_text(encoding="utf-8")
    assert "not calibrated on outcomes" in Path(result["card"]).read_text(encoding="utf-8")


def test_regcn_and_a_short_past(dataset, tmp_path):
    config = make_config("regcn", history_length=GAP, history_window=0, num_layers=1)
    early = replace(dataset, facts=dataset.facts[dataset.facts[:, 3] < 2])
    checkpoint = make_checkpoint(config, early, random_arrays(config))
    result = convert(checkpoint, early, build_for(early, window=0), output=tmp_path / "regcn.pt")
    assert result["passed"]
    assert torch.load(tmp_path / "regcn.pt", weights_only=True)["context"]["snapshot_times"] == [0, 1]


@pytest.mark.parametrize("weight", ["encoder.relation_gru.weight_hh", "raw_entity_decoder.conv_norm.running_var"])
def test_a_wrong_weight_leaves_no_file(checkpoint, dataset, history, tmp_path, monkeypatch, weight):
    def tampered(arrays):
        state = torch_state(arrays)
        return state | {weight: state[weight] + np.float32(0.1)}

    monkeypatch.setattr(convert_module, "torch_state", tampered)
    result = convert(checkpoint, dataset, history, output=tmp_path / "x.pt")
    assert result["passed"] is False
    assert result["max_abs_difference"] > 1e-4
    assert list(tmp_path.iterdir()) == []


def test_queries_are_of_both_directions_and_seeded(dataset):
    queries = sample_queries(dataset, CONFIG, 64, seed=5)
    assert queries.shape == (64, 2)
    assert {True, False} == set((queries[:32, 1] < R).tolist()) == set((queries[32:, 1] < R).tolist())
    np.testing.assert_array_equal(queries, sample_queries(dataset, CONFIG, 64, seed=5))


def test_without_torch_the_extra_is_named(checkpoint, dataset, history, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(GeopolTkgError, match=r"pip install 'geopol-tkg\[torch\]'"):
        convert(checkpoint, dataset, history, output=tmp_path / "x.pt")


def test_what_does_not_fit_is_refused(checkpoint, dataset, history, tmp_path):
    def refused(message, *, checkpoint=checkpoint, dataset=dataset, history=history, error=DataError):
        with pytest.raises(error, match=message):
            convert(checkpoint, dataset, history, output=tmp_path / "x.pt")
        assert list(tmp_path.iterdir()) == []

    refused("ids are not the checkpoint's", dataset=replace(dataset, entities=dataset.entities[::-1]))
    refused("time axis", dataset=replace(dataset, time_axis=replace(dataset.time_axis, origin=86400)))
    refused("history window 0", history=build_for(dataset, window=0))
    refused("no facts", dataset=replace(dataset, facts=dataset.facts[:0]))
    name = "encoder/entity_gru/input_bias"
    broken = replace(checkpoint, arrays={**checkpoint.arrays, name: checkpoint.arrays[name] * np.nan})
    refused(f"{name} is not finite", checkpoint=broken, error=CheckpointError)


def test_the_command_measures_the_test_split_and_writes_other_formats(world):
    pytest.importorskip("safetensors")
    content = call("convert", "--full", "--format", "safetensors", "--json").json()
    assert content["output"] == f"models/tkg/{content['model_type']}_trained.safetensors"
    assert content["full"]["mrr"] == pytest.approx(call("eval", "--json").json()["mrr"], abs=5e-5)
    assert TKGPredictor(content["output"], device="cpu").predict_subjects("042", "ENTITY 1")
    card = Path(content["card"]).read_text(encoding="utf-8")
    assert (
        f"| test, by PyTorch at conversion | {content['full']['num_queries']:,} | {content['full']['mrr']:.4f} |"
        in card
    )
    table = call("convert", "--full").out
    assert "test mrr jax" in table


def test_the_command_says_why_the_test_split_failed(world):
    done = call("convert", "--full", "--tolerance", "1e-9", "--output", "new.pt")
    assert done.code == 3
    assert "new.pt was not written" in done.err
    assert not Path("new.pt").exists()
    assert not Path("new.md").exists()


def test_a_link_stays_and_its_file_is_replaced(checkpoint, dataset, history, tmp_path):
    (tmp_path / "deployed").mkdir()
    link = tmp_path / "x.pt"
    link.symlink_to(tmp_path / "deployed" / "model.pt")
    (tmp_path / "deployed" / "model.pt").write_text("old")
    assert convert(checkpoint, dataset, history, output=link)["passed"]
    assert link.is_symlink()
    assert sorted(path.name for path in (tmp_path / "deployed").iterdir()) == ["model.pt"]
    assert TKGPredictor(tmp_path / "deployed" / "model.pt", device="cpu").predict("COUNTRY A", "042")


def test_a_pipe_is_no_place_for_a_model(checkpoint, dataset, history, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe: is no file"):
        convert(checkpoint, dataset, history, output=tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "x.pt").open("wb") as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                write_pt({"weights": torch.zeros(1 << 16)}, file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
