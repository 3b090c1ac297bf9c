"""Forecasts from a .pt file: against loops over the facts, from damaged files, and without jax."""

import contextlib
import os
import subprocess
import sys
import time
from datetime import datetime
from types import MappingProxyType

import numpy as np
import pytest
from small_world import LAST, N, R, visible

pytest.importorskip("torch")
import torch

from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import CheckpointError, DataError, GeopolTkgError
from geopol_tkg.models.recurrency import Frequency
from geopol_tkg.torch import TKGPredictor
from geopol_tkg.torch.clock import Clock
from geopol_tkg.torch.modules import Queries, build_network

ALL = np.stack(np.meshgrid(np.arange(N), np.arange(2 * R)), axis=-1).reshape(-1, 2).T
BLOCKED = MappingProxyType(dict.fromkeys(["jax", "flax", "optax", "pandas", "pyarrow", "scipy", "typer", "rich"]))


@pytest.fixture(scope="module")
def predictor(pt_file):
    return TKGPredictor(pt_file, device="cpu")


FORECASTS = {
    "object": lambda predictor, **options: predictor.predict("COUNTRY A", "042", **options),
    "subject": lambda predictor, **options: predictor.predict_subjects("042", "COUNTRY A", **options),
    "relation": lambda predictor, **options: predictor.predict_relations("COUNTRY A", "COUNTRY C", **options),
}


@pytest.mark.parametrize("asked", FORECASTS)
@pytest.mark.parametrize("baseline", [False, True])
def test_probabilities_are_ranked_and_sum_to_one(predictor, asked, baseline):
    rows = FORECASTS[asked](predictor, top=N, baseline=baseline)
    probabilities = [row["probability"] for row in rows]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert probabilities == sorted(probabilities, reverse=True)
    assert {row[asked] for row in rows} == set(
        predictor.relation_to_id if asked == "relation" else predictor.entity_to_id
    )


def test_top_cuts_the_list(predictor):
    full = predictor.predict("COUNTRY B", "010", top=N)
    assert predictor.predict("COUNTRY B", "010", top=3) == full[:3]
    assert len(predictor.predict("COUNTRY B", "010")) == 10
    with pytest.raises(DataError, match="top is 0"):
        predictor.predict("COUNTRY B", "010", top=0)


def test_a_subject_is_the_object_of_the_inverse_relation(predictor):
    scores = np.exp(predictor.log_probabilities(np.array([2]), np.array([1 + R]))[0])
    for row in predictor.predict_subjects("042", "COUNTRY C", top=N):
        assert row["probability"] == pytest.approx(scores[predictor.entity_to_id[row["subject"]]])


def test_a_relation_s_probability_is_the_network_s_among_those_of_its_direction(predictor, dataset):
    seen = torch.zeros(1, 2 * R, dtype=torch.bool)
    for subject, relation, object_ in visible(dataset, LAST + 1, predictor.config.history_window):
        if (subject, object_) == (0, 2):
            seen[0, relation] = True
    queries = Queries(torch.tensor([0]), torch.tensor([2]), LAST + 1, seen)
    with torch.no_grad():
        both = predictor.network.relation_log_probabilities(predictor.evolved(), queries)[0].exp()
    for row in predictor.predict_relations("COUNTRY A", "COUNTRY C"):
        expected = both[predictor.relation_to_id[row["relation"]]] / both[:R].sum()
        assert row["probability"] == pytest.approx(float(expected), abs=1e-6)


def test_score_is_the_probability_of_the_object(predictor):
    for row in predictor.predict("COUNTRY A", "042", top=N):
        assert predictor.score("COUNTRY A", "042", row["object"]) == pytest.approx(row["probability"], rel=1e-5)
    ids = np.array([0, 3]), np.array([1, 1 + R]), np.array([2, 5])
    expected = predictor.log_probabilities(*ids[:2])[[0, 1], ids[2]]
    np.testing.assert_array_equal(predictor.scores(*ids), expected)


@pytest.mark.parametrize(("asked", "shift"), [("object", 0), ("subject", R)])
def test_last_seen_looks_at_all_facts(predictor, dataset, asked, shift):
    both = [(0, 1, o, t) for s, r, o, t in dataset.facts.tolist() if (s, r) == (0, 1)]
    both += [(0, 1 + R, s, t) for s, r, o, t in dataset.facts.tolist() if (r, o) == (1, 0)]
    for row in FORECASTS[asked](predictor, top=N):
        times = [t for _, r, other, t in both if (r, other) == (1 + shift, predictor.entity_to_id[row[asked]])]
        assert row["seen_before"] is bool(times)
        assert row["last_seen"] == (dataset.time_axis.label(max(times)) if times else None)


def test_the_baseline_is_that_of_eval(predictor, dataset):
    queries = np.stack(np.meshgrid(np.arange(N), np.arange(2 * R)), axis=-1).reshape(-1, 2)
    found = predictor.log_probabilities(*queries.T, baseline=True)
    scores = Frequency(dataset).at(LAST + 1)(*queries.T)
    expected = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-6)


def test_relations_of_the_baseline_are_counted(predictor, dataset):
    scores = np.zeros(R)
    for subject, relation, object_, _ in dataset.facts.tolist():
        scores[relation] += ((subject, object_) == (0, 2)) + 0.5 / len(dataset.facts)
    found = predictor.relation_log_probabilities(np.array([0]), np.array([2]), baseline=True)[0]
    np.testing.assert_allclose(np.exp(found), scores / scores.sum(), rtol=1e-6)


@pytest.mark.parametrize("asked", FORECASTS)
def test_unknown_labels_can_bring_zero(predictor, asked):
    assert FORECASTS[asked](predictor, top=3, unknown="zero") == FORECASTS[asked](predictor, top=3)
    assert predictor.predict("ATLANTIS", "042", unknown="zero") == []
    assert predictor.predict_subjects("999", "COUNTRY A", unknown="zero") == []
    assert predictor.predict_relations("COUNTRY A", "ATLANTIS", unknown="zero") == []
    assert predictor.score("COUNTRY A", "042", "ATLANTIS", unknown="zero") == 0


def test_a_later_time_is_forecast_from_the_same_facts(predictor):
    """The clock goes on, and the history window with it: after its length nothing is in it."""
    assert predictor.predict("COUNTRY A", "042", at="1970-01-12") == predictor.predict("COUNTRY A", "042")
    later = predictor.log_probabilities(np.array([0]), np.array([1]), at="1970-03-01T05:00")
    queries = Queries(torch.tensor([0]), torch.tensor([1]), 31 + 28, torch.zeros(1, N, dtype=torch.bool))
    with torch.no_grad():
        expected = predictor.network.entity_log_probabilities(predictor.evolved(), queries)
    np.testing.assert_allclose(later, expected, atol=1e-6)


def test_the_past_is_not_forecast(predictor):
    with pytest.raises(DataError, match="1970-01-11 is not after the last facts known, those of 1970-01-11T00:00:00Z"):
        predictor.predict("COUNTRY A", "042", at="1970-01-11")
    with pytest.raises(DataError, match="time 'soon' is not an ISO time"):
        predictor.predict("COUNTRY A", "042", at="soon")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (([N], [0]), "subject id 12 is unknown to the model: it has 0 to 11"),
        (([0], [2 * R]), "relation id 8"),
        (([-1], [0]), "subject id -1"),
        (([0.5], [0]), "subject ids are float64"),
        ((0, 0), "wanted integers"),
    ],
)
def test_ids_that_there_are_not_are_refused(predictor, ids, message):
    with pytest.raises(DataError, match=message):
        predictor.log_probabilities(*ids)


def test_queries_stand_alone(predictor):
    subjects, relations = np.arange(N), np.arange(N) % (2 * R)
    together = predictor.log_probabilities(subjects, relations)
    alone = [predictor.log_probabilities(subjects[i : i + 1], relations[i : i + 1])[0] for i in range(N)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_next_step_is_named(predictor):
    assert (predictor.time_index, predictor.time) == (LAST + 1, "1970-01-12T00:00:00Z")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("country b", "042"), "entity 'country b' is unknown to the model; did you mean COUNTRY B"),
        (("zzz", "042"), "entity 'zzz' is unknown to the model$"),
        (("COUNTRY A", "043"), "relation '043' is unknown to the model; did you mean 042"),
        (("COUNTRY A", "04"), "relation '04' is unknown to the model; did you mean 042"),
        (("COUNTRY A", 42), "relation 42 is unknown to the model; did you mean 042"),
    ],
)
def test_unknown_labels_get_the_nearest_ones(predictor, arguments, message):
    with pytest.raises(DataError, match=message):
        predictor.predict(*arguments)


def test_a_device_that_is_not_there_is_refused(pt_file):
    with pytest.raises(GeopolTkgError, match="device 'nonsense' is not there"):
        TKGPredictor(pt_file, device="nonsense")


def test_the_default_is_what_was_written_last(pt_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="run geopol-tkg convert"):
        TKGPredictor()
    folder = tmp_path / "models" / "tkg"
    folder.mkdir(parents=True)
    for age, name in ((20, "tirgn_trained.pt"), (10, "regcn_trained.pt")):
        (folder / name).write_bytes(pt_file.read_bytes())
        os.utime(folder / name, (time.time() - age,) * 2)
        assert TKGPredictor(device="cpu").path.name == name


@pytest.mark.parametrize(
    "content", [b"", b"no model", b"PK\x03\x04 nothing", b"\x80\x02}q\x00.", bytes(range(256)), b"<html></html>"]
)
def test_foreign_bytes_are_refused(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt: (damaged|not written by)"):
        TKGPredictor(path, device="cpu")


def test_a_cut_file_is_refused(pt_file, tmp_path):
    content = pt_file.read_bytes()
    for size in (100, len(content) // 2, len(content) - 10):
        (tmp_path / "x.pt").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="damaged"):
            TKGPredictor(tmp_path / "x.pt", device="cpu")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_flipped_bit_changes_no_forecast(pt_file, tmp_path):
    content = pt_file.read_bytes()
    expected = TKGPredictor(pt_file, device="cpu").log_probabilities(*ALL)
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(content), 60):
        broken = bytearray(content)
        broken[place] ^= 64
        (tmp_path / "x.pt").write_bytes(broken)
        try:
            found = TKGPredictor(tmp_path / "x.pt", device="cpu").log_probabilities(*ALL)
        except CheckpointError:
            refused += 1
        else:
            np.testing.assert_array_equal(found, expected)
    assert refused


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_flipped_bytes_load_or_are_refused(pt_file, tmp_path):
    rng = np.random.default_rng(0)
    content = np.frombuffer(pt_file.read_bytes(), np.uint8)
    for _ in range(60):
        broken = content.copy()
        broken[rng.integers(0, 6000, 5)] = rng.integers(0, 256, 5)
        (tmp_path / "x.pt").write_bytes(broken.tobytes())
        with contextlib.suppress(CheckpointError):
            TKGPredictor(tmp_path / "x.pt", device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "format_version 1, wanted 2; convert the checkpoint again"),
        ({"temperature": {}}, "temperature has no value"),
        ({"temperature": {"value": -1.0}}, "temperature -1.0, wanted a number above 0"),
        ({"context": None}, "lacks context"),
        ({"context": {"snapshots": []}}, "context lacks snapshot_times"),
        ({"triple_frequency": {}}, "triple_frequency lacks triples"),
        ({"entity_to_id": {"A": 5}}, "entity_to_id does not number 12 labels"),
        ({"model_config": {"model_type": "tirgn"}}, "do not fit"),
        ({"model_state_dict": {}}, "do not fit: .*Missing key"),
    ],
)
def test_other_files_of_torch_are_refused(pt_file, tmp_path, change, message):
    content = torch.load(pt_file, weights_only=True) | change
    content = {key: value for key, value in content.items() if value is not None}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        TKGPredictor(tmp_path / "x.pt", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.pt: no such file"):
        TKGPredictor(tmp_path / "x.pt")


def test_weights_of_another_type_are_refused(pt_file, tmp_path):
    content = torch.load(pt_file, weights_only=True)
    content["model_state_dict"] = {k: v.double() for k, v in content["model_state_dict"].items()}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"entity_embedding\.weight is torch\.float64, wanted torch\.float32"):
        TKGPredictor(tmp_path / "x.pt", device="cpu")


def test_facts_of_other_ids_are_refused(pt_file, tmp_path):
    content = torch.load(pt_file, weights_only=True)
    content["context"]["snapshots"][0][0, 2] = N
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="a fact names an id that there is not"):
        TKGPredictor(tmp_path / "x.pt", device="cpu")


def test_the_clock_is_the_time_axis():
    for axis in (TimeAxis(0, 86400, "1d"), TimeAxis(1510012800, 900, "15min"), TimeAxis(3, 24, None)):
        clock = Clock(axis.origin, axis.step, axis.granularity)
        for index in (-3, 0, 1, 35_000):
            assert clock.label(index) == axis.label(index)
            assert clock.index(axis.label(index)) == index == axis.index(clock.label(index))
    assert Clock(0, 3600, "1h").index(datetime(1970, 1, 1, 5, 30)) == 5
    assert Clock(0, 3600, "1h").index("1970-01-01T05:30+02:00") == 3
    assert Clock(0, 3600, "1h").index(19700101053000) == 5


def test_a_fine_tuned_network_forecasts_anew(pt_file, dataset):
    """Autograd works on what the file holds, and the state dict goes round."""
    predictor = TKGPredictor(pt_file, device="cpu")
    before = predictor.predict("COUNTRY A", "042", top=N)
    network, snapshots = predictor.network.train(), [torch.as_tensor(s).long() for s in predictor.facts.snapshots]
    queries = Queries(torch.tensor([0, 1]), torch.tensor([1, 2]), LAST + 1, torch.ones(2, N, dtype=torch.bool))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.manual_seed(0)
    torch.nn.functional.nll_loss(network(snapshots, queries), torch.tensor([3, 4])).backward()
    optimiser.step()
    network.eval()
    assert predictor.predict("COUNTRY A", "042", top=N) != before
    predictor.update([])
    after = predictor.predict("COUNTRY A", "042", top=N)
    copied = build_network(predictor.config).eval()
    copied.load_state_dict(network.state_dict())
    predictor.network = copied
    predictor.update([])
    assert predictor.predict("COUNTRY A", "042", top=N) == after


def test_forecasts_need_torch_and_numpy_alone(pt_file, predictor):
    code = (
        f"import sys; sys.modules.update({dict(BLOCKED)!r})\n"
        "from geopol_tkg.torch import REGCN, TKGPredictor, TiRGN\n"
        f"predictor = TKGPredictor({str(pt_file)!r}, device='cpu')\n"
        "predictor.predict_relations('COUNTRY A', 'COUNTRY B', baseline=True)\n"
        "print(predictor.predict('COUNTRY A', '042', top=1)[0]['object'])\n"
        "predictor.update([('COUNTRY A', '042', 'COUNTRY B', '1970-01-13')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == predictor.predict("COUNTRY A", "042", top=1)[0]["object"]
