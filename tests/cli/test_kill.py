"""SIGKILL at any moment: the run that goes on is the run that was never killed."""

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cli_helpers import PROGRAM, SMALL
from test_resume import arrays_of, assert_same_arrays, steady
from test_train import BEST, LAST, records, scalars

SAVES = ("--checkpoint-interval", "7", "--checkpoint-seconds", "0.3")
TRAIN = ("train", "--model", "regcn", *SMALL, *SAVES, "--json")


def start(program, *args):
    return subprocess.Popen(
        [PROGRAM, *map(str, args)],
        env=program.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_and_kill(program, args, *, delay, from_start):
    """Kill the program so long after its start, or after its training's; False if it was done by then."""
    process = start(program, *args)
    if not from_start:
        for line in process.stderr:
            if line.startswith("compiled in"):
                break
    time.sleep(delay)
    done = process.poll()
    process.kill()
    _, err = process.communicate()
    assert done in (None, 0), err
    return done is None


def outcome():
    """All that a run has left, but for what the clock and the machine decide."""
    pairs = [(arrays_of(path), json.loads(path.with_suffix(".json").read_text())) for path in (BEST, LAST)]
    for _, manifest in pairs:
        for name in ("sha256", "json_sha256", "environment"):
            del manifest[name]
        if manifest["resume"]:
            manifest["resume"]["elapsed"] = 0
    series = {
        name: [(event.step, 0 if name.startswith("system/") else event.value) for event in events]
        for name, events in scalars().items()
    }
    return pairs, [steady(record) for record in records()], series


def assert_killed_and_resumed_is_the_same_run(program, kills, epochs, monkeypatch):
    folder = Path.cwd()
    command = (*TRAIN, folder / "data/gdelt", "--epochs", epochs, "--patience", 40, "--lr", "0.01")
    shutil.copytree(folder, folder.parent / "whole")
    whole = program(*command, cwd=folder.parent / "whole").json()
    monkeypatch.chdir(folder.parent / "whole")
    expected = outcome()
    seconds = sum(record["system/epoch_duration_s"] for record in records()[1:])
    monkeypatch.chdir(folder)
    chance = random.Random(0)
    for killed in range(kills):
        from_start = killed % 4 == 3
        delay = chance.uniform(0, 5) if from_start else chance.uniform(0, seconds / kills)
        more = ("--resume",) if LAST.with_suffix(".json").exists() else ()
        assert run_and_kill(program, (*command, *more), delay=delay, from_start=from_start), (
            f"done after {killed} kills"
        )
    done = program(*command, "--resume", cwd=folder).json()
    assert {**done, "total_time": 0} == {**whole, "total_time": 0}
    found = outcome()
    for (arrays, manifest), (expected_arrays, expected_manifest) in zip(found[0], expected[0], strict=True):
        assert_same_arrays(arrays, expected_arrays)
        assert manifest == expected_manifest
    assert found[1:] == expected[1:]
    assert [step for step, _ in found[2]["train/loss"]] == list(range(1, whole["epochs_trained"] + 1))
    assert [path for path in folder.rglob(".*") if path.name != ".lock"] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_twenty_times(world, program, monkeypatch):
    assert_killed_and_resumed_is_the_same_run(program, 20, 400, monkeypatch)
