"""The doctor: tells what there is, trains what can be trained, and survives what is missing."""

import builtins
import json
import os
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from cli_helpers import call

from geopol_tkg import doctor
from geopol_tkg.config import ModelType
from geopol_tkg.errors import TrainingError


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    """An empty folder, and no smoke tests: they have tests of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(doctor, "_one_step", lambda model: 1.0)
    return tmp_path


def test_it_is_ready_to_paste(untrained):
    done = call("doctor")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert (lines[0], lines[-2:]) == ("```text", ["all is well", "```"])
    for name in (
        "python",
        "geopol-tkg",
        "jax",
        "flax",
        "bfloat16",
        "cores",
        "memory",
        "huge",
        "compilation cache",
        "models/tkg",
    ):
        assert [line for line in lines if line.startswith(f"    {name} ")], name
    assert [line.split()[:2] for line in lines[-5:-2]] == [[model, "passed:"] for model in get_args(ModelType)]
    assert os.listdir(untrained) == ["cache"]
    assert done.err.splitlines() == [f"one training step of {model}" for model in get_args(ModelType)]


def test_a_real_training_step():
    found = doctor.smoke_test("regcn")
    assert found.passed, found.value
    loss = float(found.value.rpartition(" ")[2])
    assert 3 < loss < 8  # of a new network: 0.7 ln 133 + 0.3 ln 224 is 5.0


def test_json(untrained):
    content = call("doctor", "--json", "--quiet").json()
    assert (content["passed"], content["failed"]) == (True, [])
    assert content.keys() >= {"versions", "extras", "machine", "devices", "folders", "smoke_tests"}
    assert content["extras"].keys() == {"cuda12", "cuda13", "torch", "safetensors", "onnx", "wandb"}
    assert content["versions"]["python"].startswith("3.")


def test_what_fails_is_told_and_gives_1(untrained, monkeypatch):
    def fail(model):
        if model == "regcn":
            raise ValueError("no\nway")
        raise TrainingError("loss is not finite")

    monkeypatch.setattr(doctor, "_one_step", fail)
    done = call("doctor", "--json")
    assert done.code == 1
    assert done.error() == "error: 3 of what must work does not: counts, tirgn, regcn; stdout says why"
    content = json.loads(done.out)
    assert content["failed"] == list(get_args(ModelType))
    assert content["smoke_tests"]["tirgn"] == "FAILED: TrainingError: loss is not finite"
    assert content["smoke_tests"]["regcn"] == "FAILED: ValueError: no way"


def test_a_missing_extra_is_a_line_and_a_broken_package_fails(untrained, monkeypatch):
    known, real_import = doctor._version, builtins.__import__
    monkeypatch.setattr(doctor, "_version", lambda package: None if package in ("torch", "wandb") else known(package))

    def broken(name):
        if name == "optax":
            raise ImportError("half of it is gone")
        return real_import(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    done = call("doctor", "--json")
    assert done.code == 1
    content = json.loads(done.out)
    assert content["extras"]["torch"] == content["extras"]["wandb"] == "not installed"
    assert content["failed"] == ["optax"]
    assert content["versions"]["optax"] == "FAILED to import: ImportError: half of it is gone"


def test_an_import_interrupted_is_no_broken_package(untrained, monkeypatch):
    def interrupted(name):
        raise ImportError(f"cannot import {name}") from KeyboardInterrupt()

    monkeypatch.setattr(doctor.importlib, "import_module", interrupted)
    assert call("doctor").code == 130


def test_a_gpu_that_is_not_there_is_told_with_all_the_rest(untrained):
    done = call("doctor", "--device", "gpu", "--json")
    assert done.code == 1
    content = json.loads(done.out)
    assert content["failed"] == ["--device gpu"]
    assert "--device gpu was asked for" in content["devices"]["--device gpu"]
    assert "python" in content["versions"]


@pytest.mark.parametrize(
    ("script", "saying"),
    [
        ("echo '580.1, NVIDIA H200, 4 MiB, 143771 MiB'", "580.1, NVIDIA H200, 4 MiB, 143771 MiB"),
        ("echo 'no driver'; exit 9", "nvidia-smi failed with 9: no driver"),
        ("exec sleep 9", "nvidia-smi does not answer: TimeoutExpired"),
    ],
)
def test_the_driver_by_a_real_process(untrained, monkeypatch, script, saying):
    program = untrained / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{untrained}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "_NVIDIA_SMI_S", 1)
    assert doctor._nvidia().startswith(saying)


def test_without_a_driver(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._nvidia() == "none (no nvidia-smi)"


def test_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    assert doctor._writable(Path("there")) == "writable"
    assert doctor._writable(Path("not/there")) == "writable (not there yet)"
    assert doctor._writable(Path("file/below")) == "NOT WRITABLE (not there yet)"
    (tmp_path / "there/large").write_bytes(bytes(3 << 20))
    assert "3.0 MiB in 1 files, writable" in doctor._cache(tmp_path / "there")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor._without_home(tmp_path / "there") == "~/there"
    assert doctor._without_home(Path(f"{tmp_path}-other")) == f"{tmp_path}-other"


def test_memory_where_the_system_tells_nothing(monkeypatch):
    monkeypatch.setattr(doctor, "_lines", lambda path: [])
    assert doctor._memory().endswith("iB")
    assert doctor._processor()


@pytest.mark.slow
def test_each_model_trains_by_the_program(program, tmp_path):
    content = program("doctor", "--json", cwd=tmp_path).json()
    assert all("passed: one training step in " in content["smoke_tests"][model] for model in ("tirgn", "regcn"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_by_the_program_where_jax_is_told_to_use_a_gpu_that_is_not_there(program, tmp_path):
    if subprocess.run(["sh", "-c", "command -v nvidia-smi"], check=False, capture_output=True).returncode == 0:
        pytest.skip("there is a GPU here")
    done = program("doctor", cwd=tmp_path, env={"JAX_PLATFORMS": "cuda"})
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "FAILED" in done.out
