"""Forecasts from a .pt file: against loops over the facts, from damaged files, and without jax."""

import contextlib
import subprocess
import sys
from types import MappingProxyType

import numpy as np
import pytest
from small_world import LAST, N, R, visible

pytest.importorskip("torch")
import torch

from geopol_tkg.errors import CheckpointError, DataError, GeopolTkgError
from geopol_tkg.torch import TKGPredictor
from geopol_tkg.torch.predictor import SeenObjects

BLOCKED = MappingProxyType(dict.fromkeys(["jax", "flax", "optax", "pandas", "pyarrow", "scipy", "typer", "rich"]))


@pytest.fixture(scope="module")
def predictor(pt_file):
    return TKGPredictor(pt_file, device="cpu")


def test_probabilities_are_ranked_and_sum_to_one(predictor):
    for direction in ("object", "subject"):
        rows = predictor.predict("COUNTRY A", "042", top=N, direction=direction)
        probabilities = [row["probability"] for row in rows]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
        assert {row[direction] for row in rows} == set(predictor.entity_to_id)


def test_top_cuts_the_list(predictor):
    full = predictor.predict("COUNTRY B", "010", top=N)
    assert predictor.predict("COUNTRY B", "010", top=3) == full[:3]
    assert len(predictor.predict("COUNTRY B", "010")) == 10


def test_a_subject_is_the_object_of_the_inverse_relation(predictor):
    scores = np.exp(predictor.log_probabilities(np.array([2]), np.array([1 + R]))[0])
    for row in predictor.predict("COUNTRY C", "042", top=N, direction="subject"):
        assert row["probability"] == pytest.approx(scores[predictor.entity_to_id[row["subject"]]])


def test_seen_before_looks_at_all_facts(predictor, dataset):
    seen = visible(dataset, LAST + 1, 0)
    for direction, shift in (("object", 0), ("subject", R)):
        for row in predictor.predict("COUNTRY A", "042", top=N, direction=direction):
            assert row["seen_before"] is ((0, 1 + shift, predictor.entity_to_id[row[direction]]) in seen)


def test_queries_stand_alone(predictor):
    subjects, relations = np.arange(N), np.arange(N) % (2 * R)
    together = predictor.log_probabilities(subjects, relations)
    alone = [predictor.log_probabilities(subjects[i : i + 1], relations[i : i + 1])[0] for i in range(N)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_next_step_is_named(predictor):
    assert (predictor.time_index, predictor.time) == (LAST + 1, "1970-01-12T00:00:00Z")


def test_seen_objects_of_no_facts():
    empty = SeenObjects(torch.zeros(0, 3, dtype=torch.int32), num_entities=N, num_relations=R)
    assert not empty.mask(torch.tensor([0, 5]), torch.tensor([1, 7])).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("country b", "042"), "entity 'country b' is unknown to the model; did you mean COUNTRY B, "),
        (("zzz", "042"), "entity 'zzz' is unknown to the model$"),
        (("COUNTRY A", "043"), "relation '043' is unknown to the model; did you mean 042"),
    ],
)
def test_unknown_labels_get_the_nearest_ones(predictor, arguments, message):
    with pytest.raises(DataError, match=message):
        predictor.predict(*arguments)


def test_an_unknown_direction_is_refused(predictor):
    with pytest.raises(DataError, match="neither object nor subject"):
        predictor.predict("COUNTRY A", "042", direction="both")


def test_a_device_that_is_not_there_is_refused(pt_file):
    with pytest.raises(GeopolTkgError, match="device 'nonsense' is not there"):
        TKGPredictor(pt_file, device="nonsense")


def test_the_default_is_tirgn_then_regcn(pt_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="run geopol-tkg convert"):
        TKGPredictor()
    folder = tmp_path / "models" / "tkg"
    folder.mkdir(parents=True)
    (folder / "regcn_trained.pt").write_bytes(pt_file.read_bytes())
    assert TKGPredictor(device="cpu").path.name == "regcn_trained.pt"
    (folder / "tirgn_trained.pt").write_bytes(pt_file.read_bytes())
    assert TKGPredictor(device="cpu").path.name == "tirgn_trained.pt"


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
        ({"format_version": 2}, "format_version 2, wanted 1"),
        ({"context": None}, "lacks context"),
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
    with pytest.raises(CheckpointError, match=r"no \.pt file here"):
        TKGPredictor(tmp_path / "x.pt")


def test_forecasts_need_torch_and_numpy_alone(pt_file, predictor):
    code = (
        f"import sys; sys.modules.update({dict(BLOCKED)!r})\n"
        "from geopol_tkg.torch import REGCN, TKGPredictor, TiRGN\n"
        f"print(TKGPredictor({str(pt_file)!r}, device='cpu').predict('COUNTRY A', '042', top=1)[0]['object'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == predictor.predict("COUNTRY A", "042", top=1)[0]["object"]
