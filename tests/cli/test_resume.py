"""Stopping by signals and by time, and going on as if nothing had happened."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import PROGRAM, call, listing, run_in_copy
from filelock import FileLock
from test_train import BEST, LAST, TRAIN, records, scalars

from geopol_tkg.cli._progress import TrainDisplay


def arrays_of(path):
    with np.load(path) as arrays:
        return dict(arrays)


def assert_same_arrays(first, other):
    assert first.keys() == other.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def signal_at(monkeypatch, number, *, step, epoch=1):
    """Send this process a signal once so many steps of an epoch are done."""
    told = TrainDisplay.step

    def tell(display, done):
        told(display, done)
        if (display._epoch, done) == (epoch, step):
            signal.raise_signal(number)

    monkeypatch.setattr(TrainDisplay, "step", tell)


@pytest.fixture(scope="module")
def finished_run(trained, tmp_path_factory):
    """A folder with a run of three epochs, and what it told; not to be changed."""
    folder, (done,) = run_in_copy(trained, tmp_path_factory.mktemp("finished"), (*TRAIN, "--epochs", "3", "--json"))
    return folder, done.json()


@pytest.fixture
def finished(finished_run, tmp_path, monkeypatch):
    """What the run told; its folder's copy to work in."""
    shutil.copytree(finished_run[0], tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return finished_run[1]


def test_interrupted_inside_epochs_and_resumed_is_the_same_run(finished, monkeypatch):
    arrays, metrics = [arrays_of(path) for path in (LAST, BEST)], records()
    for path in (LAST, BEST):
        path.unlink()
        path.with_suffix(".json").unlink()
    with monkeypatch.context() as context:
        signal_at(context, signal.SIGTERM, step=2, epoch=1)
        assert_interrupted(call(*TRAIN, "--epochs", "3", "--overwrite", "--json"), 143, epochs=0)
    with monkeypatch.context() as context:
        signal_at(context, signal.SIGINT, step=3, epoch=2)
        stopped = call(*TRAIN, "--epochs", "3", "--resume", "--json")
        assert_interrupted(stopped, 130, epochs=1)
        assert "resuming after epoch 0, step 2 of the next" in stopped.err
    done = call(*TRAIN, "--epochs", "3", "--resume", "--json").json()
    for path, before in zip((LAST, BEST), arrays, strict=True):
        assert_same_arrays(before, arrays_of(path))
    assert [steady(record) for record in records()] == [steady(record) for record in metrics]
    assert [event.step for event in scalars()["eval/mrr"]] == [1, 2, 3]
    assert {**done, "total_time": 0} == {**finished, "total_time": 0}


def assert_interrupted(done, code, *, epochs):
    content = json.loads(done.out)
    assert (done.code, content["status"], content["epochs_trained"]) == (code, "interrupted", epochs)
    assert LAST.exists()


def steady(record):
    """Without what the clock and the machine decide."""
    return {name: value for name, value in record.items() if name.startswith(("train", "eval", "epoch", "model"))}


def test_interrupted_during_validation_and_resumed(finished, monkeypatch):
    before, metrics = arrays_of(LAST), records()
    told = TrainDisplay.evaluating
    with monkeypatch.context() as context:
        context.setattr(TrainDisplay, "evaluating", lambda *args: signal.raise_signal(signal.SIGTERM) or told(*args))
        assert_interrupted(call(*TRAIN, "--epochs", "3", "--overwrite", "--json"), 143, epochs=0)
    assert records() == []
    call(*TRAIN, "--epochs", "3", "--resume")
    assert_same_arrays(before, arrays_of(LAST))
    assert [steady(record) for record in records()] == [steady(record) for record in metrics]
    assert all(record["system/rss_mb"] > 0 for record in records())  # of the first, whose steps were done before, too


def test_a_signal_between_epochs_doubles_none(world, monkeypatch):
    told = TrainDisplay.epoch
    with monkeypatch.context() as context:
        context.setattr(TrainDisplay, "epoch", lambda *args: told(*args) or signal.raise_signal(signal.SIGTERM))
        stopped = call(*TRAIN, "--epochs", "3", "--json")
    assert_interrupted(stopped, 143, epochs=1)
    assert [line.split(" | ")[0] for line in stopped.err.splitlines() if "loss" in line] == ["epoch 1/3"]
    assert call(*TRAIN, "--epochs", "3", "--resume", "--json").json()["epochs_trained"] == 3
    assert [record["epoch"] for record in records()] == [1, 2, 3]
    assert [event.step for event in scalars()["train/loss"]] == [1, 2, 3]


def test_stopped_by_time_and_resumed(world):
    stopped = call(*TRAIN, "--epochs", "2", "--max-time", "1e-9", "--json")
    assert stopped.json()["status"] == "max_time"
    assert stopped.json()["checkpoint"] is None
    assert "epoch " not in stopped.err.replace("an epoch", "")
    done = call(*TRAIN, "--epochs", "2", "--resume", "--json").json()
    assert (done["status"], done["epochs_trained"]) == ("completed", 2)
    again = call(*TRAIN, "--epochs", "2", "--resume", "--json").json()
    assert (again["status"], again["early_stopped"], again["best_mrr"]) == ("completed", False, done["best_mrr"])
    assert [record["epoch"] for record in records()] == [1, 2]


class Killed(BaseException):
    """As by SIGKILL, but that the test goes on."""


def die(*_args):
    raise Killed


def die_at(monkeypatch, *, step, epoch):
    told = TrainDisplay.step

    def tell(display, done):
        told(display, done)
        if (display._epoch, done) == (epoch, step):
            die()

    monkeypatch.setattr(TrainDisplay, "step", tell)


def standing():
    return json.loads(LAST.with_suffix(".json").read_text())["resume"]


def test_killed_inside_epochs_and_resumed_is_the_same_run(finished, monkeypatch):
    saving = (*TRAIN, "--epochs", "3", "--checkpoint-seconds", "1e-9")
    before, best, metrics, losses = arrays_of(LAST), arrays_of(BEST), records(), scalars()["train/loss"]
    with monkeypatch.context() as context:
        die_at(context, step=1, epoch=1)
        with pytest.raises(Killed):
            call(*saving, "--overwrite")
    assert (standing()["epoch"], standing()["step_in_epoch"]) == (0, 0)
    with monkeypatch.context() as context:
        die_at(context, step=3, epoch=2)
        with pytest.raises(Killed):
            call(*saving, "--resume")
    assert (standing()["epoch"], standing()["step_in_epoch"]) == (1, 2)
    with monkeypatch.context() as context:  # the logs have the epoch, the last checkpoint has it not
        context.setattr("geopol_tkg.training.run.TrainingRun._save_last", die)
        with pytest.raises(Killed):
            call(*saving, "--resume")
    assert (standing()["epoch"], standing()["step_in_epoch"]) == (1, 2)
    call(*TRAIN, "--epochs", "3", "--resume")
    assert_same_arrays(before, arrays_of(LAST))
    assert_same_arrays(best, arrays_of(BEST))
    assert [steady(record) for record in records()] == [steady(record) for record in metrics]
    assert [(e.step, e.value) for e in scalars()["train/loss"]] == [(e.step, e.value) for e in losses]


def test_two_runs_never_write_in_one_place(world):
    for folder in ("models/tkg", "runs/regcn"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        before = listing(world).keys() | {"runs/regcn/.lock"}
        with FileLock(f"{folder}/.lock"):
            refused = call(*TRAIN, "--epochs", "1")
        assert refused.code == 1
        assert f"{folder}: another run is writing here; wait for it, or choose another --model-dir" in refused.error()
        assert listing(world).keys() <= before
    assert call(*TRAIN, "--epochs", "1").code == 0


def test_what_is_not_finite_names_the_step_the_time_and_the_last_good_checkpoint(finished):
    settings = ("--lr", "1e30", "--grad-clip", "0", "--json")
    failed = call(*TRAIN, "--overwrite", *settings)
    assert failed.code == 1
    assert re.search(
        r"not finite at step \d+ of 15 in epoch 1, with the facts of 2017-11-01T\d\d:00:00Z \(time index \d+\); the "
        r"last good checkpoint is models/tkg/regcn_last \(epoch 0, step 0 of the next\): lower --lr or --grad-clip",
        failed.error(),
    ), failed.error()
    assert np.isfinite(arrays_of(LAST)["encoder/entity_embedding"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["compiling", "epoch 2/"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_to_the_program(world, program, number, code, moment):
    process = started(program, moment)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    content = json.loads(out)
    assert (process.returncode, content["status"]) == (code, "interrupted"), err
    done = program(
        *TRAIN, "--epochs", content["epochs_trained"] + 1, "--patience", "100000", "--resume", "--json", cwd=world
    )
    assert done.json()["epochs_trained"] == content["epochs_trained"] + 1
    assert [record["epoch"] for record in records()] == list(range(1, content["epochs_trained"] + 2))


def started(program, moment):
    """A long training that has come so far; SIGINT is ignored at its start, as in background jobs of a script."""
    ignoring = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    process = subprocess.Popen(
        [*ignoring, PROGRAM, *TRAIN, "--epochs", "100000", "--patience", "100000", "--json"],
        env=program.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith(moment):
            break
    return process


@pytest.mark.slow
def test_a_log_that_nobody_reads_stops_nothing(world, program):
    process = started(program, "compiling")
    process.stderr.close()
    process.stderr = None
    while not BEST.exists() or json.loads(BEST.with_suffix(".json").read_text())["epoch"] < 2:
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    content = json.loads(process.communicate(timeout=60)[0])
    assert (process.returncode, content["status"]) == (143, "interrupted")
    assert content["epochs_trained"] >= 2


@pytest.mark.slow
def test_a_reader_that_goes_with_the_run_changes_no_exit_code(world, program):
    process = started(program, "compiling")
    process.stdout.close()
    process.stdout = None
    os.kill(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130, err
    assert "Error" not in err


@pytest.mark.slow
def test_closed_streams(world, program):
    for closed, out in (("2>&-", True), (">&- 2>&-", False)):
        line = f'exec "$@" {closed}'
        done = subprocess.run(
            ["sh", "-c", line, "sh", PROGRAM, "predict", "ENTITY 1", "042", "--json"],
            env=program.environment(),
            stdout=subprocess.PIPE,
            check=True,
        )
        assert done.stdout.count(b"\n") == int(out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(world, program, number):
    process = started(program, "compiling")
    os.kill(process.pid, number)
    while process.poll() is None:
        time.sleep(0.05)
        os.kill(process.pid, number)
    process.communicate()
    assert process.returncode == -number


@pytest.mark.slow
def test_sigterm_of_other_commands_leaves_no_temporary_files(world, program):
    process = subprocess.Popen([PROGRAM, "convert"], env=program.environment(), stderr=subprocess.PIPE, text=True)
    threading.Timer(3, process.terminate).start()
    started = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode in (0, 143, -15)  # -15 while Python itself starts or ends: 143 to a shell
    assert time.monotonic() - started < 30
    assert [name for name in listing(world) if Path(name).name.startswith(".")] == []


def test_an_overwritten_run_leaves_no_best_checkpoint_of_the_old_one(finished, monkeypatch):
    assert BEST.exists()
    with monkeypatch.context() as context:
        signal_at(context, signal.SIGTERM, step=2, epoch=1)
        assert_interrupted(call(*TRAIN, "--overwrite", "--json"), 143, epochs=0)
    assert LAST.exists()
    assert not BEST.exists()
    assert not BEST.with_suffix(".json").exists()


def test_an_overwritten_run_that_is_killed_leaves_nothing_of_the_old_one_to_resume(finished, monkeypatch):
    old = arrays_of(LAST)

    def die(_display, result):
        if result.standing.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(TrainDisplay, "epoch", die)
        assert call(*TRAIN, "--overwrite", "--epochs", "5", "--seed", "1").code == 130
    assert json.loads(LAST.with_suffix(".json").read_text())["settings"]["seed"] == 1
    assert not np.array_equal(arrays_of(LAST)["encoder/entity_embedding"], old["encoder/entity_embedding"])


def test_a_resumed_run_that_stops_at_once_keeps_its_best_checkpoint(finished):
    """As after a kill between the save of the best checkpoint and that of the last one."""
    shutil.rmtree("models")
    assert call(*TRAIN, "--overwrite", "--max-time", "1e-9", "--json").json()["epochs_trained"] == 0
    ahead = {suffix: BEST.with_suffix(suffix) for suffix in (".npz", ".json")}
    for suffix, path in ahead.items():
        shutil.copy(LAST.with_suffix(suffix), path)
    assert call(*TRAIN, "--resume", "--max-time", "1e-9", "--json").json()["epochs_trained"] == 0
    assert all(path.exists() for path in ahead.values())


def test_a_resumed_run_that_stops_at_once_changes_nothing_of_the_last(finished):
    before = arrays_of(LAST), json.loads(LAST.with_suffix(".json").read_text())
    assert before[1]["metrics"]["valid"]["mrr"] > 0
    done = call(*TRAIN, "--resume", "--epochs", "9", "--max-time", "1e-9", "--json").json()
    assert (done["epochs_trained"], done["status"]) == (3, "max_time")
    assert json.loads(LAST.with_suffix(".json").read_text()) == before[1]
    assert_same_arrays(arrays_of(LAST), before[0])


def test_logs_of_another_run_are_not_replaced_unasked(finished):
    before = sorted(Path("runs/regcn").iterdir())
    refused = call(*TRAIN, "--epochs", "1", "--model-dir", "elsewhere")
    assert refused.code == 1
    assert "--overwrite" in refused.error()
    assert sorted(Path("runs/regcn").iterdir()) == before


def test_resuming_what_patience_has_ended_trains_no_more(world):
    settings = ("--epochs", "40", "--patience", "1", "--json")
    first = call(*TRAIN, "--overwrite", *settings).json()
    assert first["early_stopped"]
    before = arrays_of(LAST)
    again = call(*TRAIN, "--resume", *settings).json()
    assert (again["status"], again["epochs_trained"]) == ("early_stopped", first["epochs_trained"])
    assert_same_arrays(before, arrays_of(LAST))


def temperature():
    return json.loads(BEST.with_suffix(".json").read_text())["temperature"]


def test_interrupted_while_the_temperature_is_fitted_and_resumed(finished, monkeypatch):
    wanted = temperature()
    assert finished["temperature"] == wanted["value"]
    with monkeypatch.context() as context:
        context.setattr(
            "geopol_tkg.evaluation.temperature.default_block_size",
            lambda _: signal.raise_signal(signal.SIGTERM) or 256,
        )
        stopped = call(*TRAIN, "--epochs", "3", "--overwrite", "--json")
    assert_interrupted(stopped, 143, epochs=3)
    assert temperature() is None
    assert call("eval", "models/tkg/regcn_best", "--json").json()["calibration"]["temperature"] == 1
    again = call(*TRAIN, "--epochs", "3", "--resume", "--json").json()
    assert ({**again, "total_time": 0}, temperature()) == ({**finished, "total_time": 0}, wanted)
    kept = call(*TRAIN, "--epochs", "3", "--resume")
    assert "temperature" not in kept.err
