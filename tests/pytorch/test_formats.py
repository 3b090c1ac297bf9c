"""What convert writes besides the .pt: read in a fresh process, without pickle, by other runtimes; and the card."""

import json
import re
import struct
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from small_world import LAST, N, R, make_checkpoint, make_config, random_arrays

pytest.importorskip("torch")
import torch

from geopol_tkg.convert import SUFFIXES, convert
from geopol_tkg.data.history import build_for
from geopol_tkg.errors import CheckpointError, GeopolTkgError
from geopol_tkg.torch import TKGPredictor
from geopol_tkg.torch.card import model_card
from geopol_tkg.torch.facts import KnownFacts
from geopol_tkg.torch.program import ScoringProgram

QUERIES = np.stack(np.meshgrid(np.arange(N), np.arange(2 * R)), axis=-1).reshape(-1, 2).T.copy()


def write(dataset, folder, file_format, **changes):
    config = make_config(num_layers=1, **changes)
    output = folder / f"model{SUFFIXES[file_format]}"
    checkpoint = make_checkpoint(config, dataset, random_arrays(config))
    history = build_for(dataset, window=config.history_window)
    result = convert(checkpoint, dataset, history, output=output, file_format=file_format)
    assert result["passed"]
    assert result["format"] == file_format
    assert sorted(path.name for path in folder.iterdir()) == sorted([output.name, "model.md"])
    return output


@pytest.fixture(scope="module")
def safetensors_file(dataset, tmp_path_factory):
    pytest.importorskip("safetensors")
    return write(dataset, tmp_path_factory.mktemp("safetensors"), "safetensors")


def test_safetensors_hold_what_the_pt_holds(safetensors_file, dataset, tmp_path):
    other = TKGPredictor(write(dataset, tmp_path, "pt"), device="cpu")
    predictor = TKGPredictor(safetensors_file, device="cpu")
    np.testing.assert_array_equal(predictor.log_probabilities(*QUERIES), other.log_probabilities(*QUERIES))
    assert predictor.predict("COUNTRY A", "042") == other.predict("COUNTRY A", "042")
    assert predictor.config == other.config == make_config(num_layers=1)


def test_safetensors_name_the_weights_as_the_state_dict_does(safetensors_file):
    size = struct.unpack("<Q", safetensors_file.read_bytes()[:8])[0]
    header = json.loads(safetensors_file.read_bytes()[8 : 8 + size])
    described = json.loads(header["__metadata__"]["geopol_tkg"])
    assert described["model_config"] == json.loads(json.dumps(asdict(make_config(num_layers=1))))
    assert set(described["model_state_dict"]) < set(header)
    assert header["encoder.entity_embedding.weight"]["shape"] == [N, 8]


def test_damaged_and_foreign_safetensors_are_refused(safetensors_file, tmp_path):
    path, content = tmp_path / "x.safetensors", safetensors_file.read_bytes()
    for size in (9, 100, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="damaged, or no safetensors file"):
            TKGPredictor(path, device="cpu")
    for place in range(8, len(content), len(content) // 40):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            TKGPredictor(path, device="cpu")
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(CheckpointError, match="not written by geopol-tkg convert"):
        TKGPredictor(path, device="cpu")


def test_without_safetensors_the_extra_is_named(safetensors_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(GeopolTkgError, match=r"pip install 'geopol-tkg\[safetensors\]'"):
        TKGPredictor(safetensors_file, device="cpu")


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("mode", ["multiply", "exclude"])
def test_the_program_is_the_predictor(pt_file, window, mode):
    predictor = TKGPredictor(pt_file, device="cpu")
    changes = {"history_window": window, "history_mask_mode": mode}
    predictor.config = type(predictor.config)(**{**asdict(predictor.config), **changes})
    predictor.network.history_mask_mode = mode
    with torch.no_grad():
        found = ScoringProgram(predictor).eval()(*map(torch.from_numpy, QUERIES))
    np.testing.assert_allclose(found, predictor.log_probabilities(*QUERIES), atol=1e-6)


def test_the_program_without_any_history(pt_file):
    predictor = TKGPredictor(pt_file, device="cpu")
    nothing = np.zeros((0, 4), np.int32)
    predictor.facts = KnownFacts.build(nothing, num_entities=N, num_relations=R, history_length=3, time_index=5)
    with torch.no_grad():
        found = ScoringProgram(predictor).eval()(*map(torch.from_numpy, QUERIES))
    np.testing.assert_allclose(found, predictor.log_probabilities(*QUERIES), atol=1e-6)


@pytest.mark.slow
def test_a_torch_export_needs_torch_alone(dataset, tmp_path):
    path = write(dataset, tmp_path, "torch-export")
    code = (
        "import json, sys, torch\n"
        "extra = {'geopol_tkg.json': ''}\n"
        f"program = torch.export.load({str(path)!r}, extra_files=extra).module()\n"
        "labels = json.loads(extra['geopol_tkg.json'])['entity_to_id']\n"
        "ids = torch.tensor([labels['COUNTRY B']])\n"
        "scores = program(ids, torch.tensor([2]))\n"  # one query, and then many
        "many = program(ids.repeat(50), torch.tensor([2] * 50))\n"
        "assert torch.allclose(many, scores, atol=1e-6) and many.shape[0] == 50\n"
        "assert not [name for name in sys.modules if name.startswith(('geopol', 'jax'))]\n"
        "print(json.dumps(scores[0].tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    other = TKGPredictor(write(dataset, tmp_path / "pt", "pt"), device="cpu")
    expected = other.log_probabilities(np.array([1]), np.array([2]))[0]
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"history_mask_mode": "exclude"}, {"model_type": "regcn"}])
@pytest.mark.parametrize("file_format", ["torch-export", "onnx"])
def test_programs_of_every_model(dataset, tmp_path, file_format, changes):
    if file_format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    write(dataset, tmp_path, file_format, **changes)


def test_an_unusable_file_is_not_kept(dataset, tmp_path, monkeypatch):
    """The fresh process fails: its reason is the error, and nothing stays."""
    from geopol_tkg.torch import files

    pytest.importorskip("safetensors")
    monkeypatch.setattr(files, "write_safetensors", lambda contents, file: file.write(b"nothing"))
    with pytest.raises(GeopolTkgError, match=r"a fresh process cannot use it: .*damaged"):
        write(dataset, tmp_path, "safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def content(pt_file):
    return torch.load(pt_file, weights_only=True)


RESULT = {"num_parameters": 1234, "num_queries": 256, "max_abs_difference": 2.4e-06, "tolerance": 1e-4}


def test_every_number_of_the_card_is_in_the_file_or_measured(content, dataset):
    card = model_card(content, RESULT, "x.pt")
    counts, config = content["training"]["dataset"]["counts"], content["model_config"]
    known = {*counts.values(), *config.values(), *RESULT.values(), content["epoch"], N, R, 0.25}
    numbers = [value for value in known if isinstance(value, int | float)]
    texts = {f"{value:,}" if isinstance(value, int) else f"{value:g}" for value in numbers}
    times = (dataset.split.valid_start, dataset.split.test_start, LAST, LAST + 1)
    removed = [dataset.content_hash, *map(dataset.time_axis.label, times), "0.2500"]
    citation = card.index("## Citation")
    text = card[:citation]
    for name in removed:
        text = text.replace(name, "")
    found = re.findall(r"(?<![\w.])\d[\d,.]*(?:e-\d+)?", re.sub(r"hits_at_\d+|`1d`|steps of 1d", "", text))
    assert {number.rstrip(".,") for number in found} <= texts | {"2.4e-06"}
    assert "Test metrics were not measured" in card


def test_the_card_cites_gdelt_only_for_gdelt(content):
    assert "GDELT" not in model_card(content, RESULT, "x.pt")
    gdelt = content | {"context": content["context"] | {"entity_kind": "name"}}
    assert "https://www.gdeltproject.org/" in model_card(gdelt, RESULT, "x.pt")


def test_the_card_has_the_test_split_where_it_was_measured(content):
    metrics = {"num_queries": 736, "mrr": 0.4321, "hits_at_1": 0.3, "hits_at_3": 0.5, "hits_at_10": 0.7, "mean_rank": 9}
    full = {"num_queries": 736, "max_relative_difference": 3e-7, "rank_differences": 2, "beyond_ties": 0}
    full |= {"mrr": 0.4321, "mrr_jax": 0.4321, "metrics": metrics}
    card = model_card(content, RESULT | {"full": full}, "x.pt")
    assert "| test, by PyTorch at conversion | 736 | 0.4321 | 0.3000 | 0.5000 | 0.7000 | 9 |" in card
    assert "not measured" not in card
