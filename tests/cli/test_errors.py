"""Bad input: the exit code, one line that says what, where and what to do, and nothing half-written."""

import hashlib
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_helpers import PROGRAM, SMALL, call, even_events, listing

BEST = "models/tkg/tirgn_best"


def refused(folder, *args, code, saying):
    """The command fails with one line and leaves the folder as it was."""
    before = listing(folder)
    done = call(*args)
    assert (done.code, done.out) == (code, ""), done.err
    assert saying in done.error()
    assert listing(folder) == before
    return done


WRONG_USAGE = {
    "unknown command": (("foo",), "No such command 'foo'"),
    "unknown option": (("train", "--learning-rate", "1"), "No such option: --learning-rate"),
    "no source": (("ingest",), "Missing argument"),
    "not a number": (("train", "--epochs", "many"), "'--epochs'"),
    "too small": (("train", "--epochs", "0"), "'--epochs'"),
    "NaN": (("train", "--lr", "nan"), "'--lr'"),
    "no learning": (("train", "--lr", "0"), "'--lr': 0.0 is not above 0"),
    "window": (("vocab", "data/gdelt", "--window", "3000000000"), "'--window'"),
    "seed": (("train", "--seed", "99999999999999999999"), "'--seed'"),
    "infinite": (("train", "--max-time", "inf"), "'--max-time': inf is not a finite number"),
    "threshold": (("compare", "frequency", "frequency", "--pass-threshold", "nan"), "'--pass-threshold'"),
    "choice": (("eval", "--split", "tset"), "'--split': 'tset' is not one of"),
    "granularity": (("ingest", "events.parquet", "--granularity", "1 fortnight"), "try 15min, 1h, 1d or 1w"),
    "days": (("ingest", "events.parquet", "--num-days", "-1"), "'--num-days'"),
    "shares": (("ingest", "events.parquet", "--split", "0.5,0.6,0.1"), "three positive shares that sum to 1"),
    "NaN share": (("ingest", "events.parquet", "--split", "nan,0.5,0.5"), "three positive shares"),
    "half-lives": (("train", "--half-lives", "1,0"), "distinct positive numbers of steps"),
    "half-lives of nothing": (("train", "--half-lives", "short"), "wanted numbers of steps like 1,4,16,64"),
    "two shares": (("ingest", "events.parquet", "--split", "0.5,0.5"), "three numbers"),
    "contradiction": (("train", "--resume", "--overwrite"), "--resume and --overwrite contradict each other"),
    "history alone": (
        ("train", "--model", "tirgn", "--history-rate", "1", "--history-mask-mode", "exclude"),
        "--history-rate 1 and --history-mask-mode exclude leave new facts no chance",
    ),
    "one model": (("compare", "frequency"), "two models or more"),
    "baseline values": (("eval", "recurrency:1"), "no baseline 'recurrency:1'"),
    "alpha": (("eval", "recurrency:0.1,7"), "ALPHA 0 to 1"),
    "no effect": (
        ("train", "data/gdelt", "--granularity", "2h", "--overwrite", *SMALL),
        "--granularity changes nothing about data/gdelt",
    ),
    "no effect, though the default of ingest": (
        ("train", "sample", "--granularity", "1d", *SMALL),
        "--granularity changes nothing about the bundled sample",
    ),
    "a card": (("convert", "--output", "x.md"), "the model card has this name"),
    "a folder for ranks": (("eval", "--ranks", "data"), "--ranks data: a folder; name a file"),
    "a folder for a report": (("compare", BEST, "frequency", "--output", "data"), "a folder; name a file"),
    "a folder for weights": (("convert", "--output", "data"), "a folder; name a file"),
    "ranks over a dataset": (("eval", "--ranks", "data/gdelt/facts.parquet"), "belongs to the dataset there"),
    "ranks over a vocabulary": (("eval", "--ranks", "data/gdelt/history.npz"), "belongs to the dataset there"),
    "a report over a dataset": (
        ("compare", BEST, "frequency", "--output", "data/gdelt/dataset.json"),
        "belongs to the dataset there; name another file",
    ),
    "a report over a checkpoint": (
        ("compare", BEST, "frequency", "--output", f"{BEST}.json"),
        f"--output {BEST}.json: belongs to the checkpoint there",
    ),
    "weights over a checkpoint": (("convert", "--output", f"{BEST}.npz"), "belongs to the checkpoint there"),
    "no time": (
        ("predict", "ENTITY 1", "042", "--checkpoint", BEST, "--at", "tomorrow"),
        "--at: time 'tomorrow' is not an ISO time",
    ),
    "no moment": (
        ("predict", "ENTITY 1", "042", "--checkpoint", BEST, "--at", "20171108250000"),
        "'20171108250000' is not an ISO time",
    ),
    "an empty source": (("ingest", "", "--out", "new"), "an argument is empty"),
    "an empty folder": (("ingest", "events.parquet", "--out", ""), "--out is empty; leave it out or give it a value"),
    "an empty folder in one word": (("ingest", "events.parquet", "--out="), "--out is empty"),
    "an empty name": (("train", "--run-name", "", "--overwrite", *SMALL), "--run-name is empty"),
    "too many mentions": (("ingest", "sample", "--min-mentions", "99999999999999999999"), "'--min-mentions'"),
    "centuries": (("ingest", "sample", "--granularity", "99999999999999999999d"), "wider than a hundred years"),
    "after the calendar": (
        ("predict", "ENTITY 1", "042", "--checkpoint", BEST, "--at", "9999-12-31T23:00-05:00"),
        "'9999-12-31T23:00-05:00' is not an ISO time",
    ),
    "mixed sources": (("ingest", "quadruples", "events.parquet", "--out", "new"), "a quadruple folder"),
}


@pytest.mark.parametrize(("args", "saying"), WRONG_USAGE.values(), ids=WRONG_USAGE)
def test_wrong_usage(world, args, saying):
    Path("quadruples").mkdir()
    for name in ("train", "valid"):
        Path("quadruples", f"{name}.txt").write_text(f"0 0 1 {len(name)}\n")
    done = refused(world, *args, code=2, saying=saying)
    assert len(done.err.splitlines()) == 1


EXPECTED = {
    "no dataset": (("vocab", "nowhere"), "nowhere: no dataset here"),
    "no dataset to eval on": (("eval", "frequency", "--data", "nowhere"), "run geopol-tkg ingest first"),
    "no checkpoint": (("eval", "models/other"), "models/other: no checkpoint here"),
    "no checkpoint to compare": (("compare", "models/other", "frequency"), "models/other: no checkpoint here"),
    "no checkpoint to convert": (("convert", "models/other"), "no checkpoint here"),
    "a folder": (("eval", "models/tkg"), "a folder; name a checkpoint in it, such as models/tkg/tirgn_best"),
    "no baseline": (("eval", "recurency"), "no baseline; run geopol-tkg train first, or name one of recurrency"),
    "no events": (("ingest", "folder", "--out", "new"), "folder: no event files here"),
    "its own source": (
        ("ingest", "own/facts.parquet", "--out", "own", "--granularity", "1h", "-q"),
        "give another --out",
    ),
    "no file": (("ingest", "events.csv", "--out", "new"), "events.csv: does not exist"),
    "unknown events": (("train", "events.csv", "--overwrite"), "events.csv: does not exist"),
    "a dataset": (("ingest", "data/gdelt", "--out", "new"), "a dataset already"),
    "a model": (
        ("train", "--model", "tirgn", *SMALL),
        "tirgn_best.npz exists: --resume goes on with it, --overwrite replaces it",
    ),
    "no model": (("train", "--resume", "--model", "regcn", *SMALL), "regcn_last.json: no checkpoint here"),
    "other settings": (
        ("train", "--resume", "--model", "tirgn", "--lr", "0.5", *SMALL),
        "trained with lr 0.001, not 0.5",
    ),
    "no GPU": (("train", "--device", "gpu", "--overwrite", *SMALL), "--device gpu was asked for"),
    "no GPU to eval": (("eval", "--device", "gpu"), "jax sees only cpu"),
    "no GPU to compare": (("compare", BEST, "frequency", "--device", "gpu"), "jax sees only cpu"),
    "no GPU to predict": (("predict", "ENTITY 1", "042", "--device", "gpu"), "jax sees only cpu"),
    "unknown entity": (("predict", "NOBODY", "042"), "entity 'NOBODY' is unknown to the model"),
    "unknown relation": (("predict", "ENTITY 1", "xyz"), "relation 'xyz' is unknown to the model"),
    "too early": (("predict", "ENTITY 1", "042", "--at", "2017-11-01"), "nothing is known before the first facts"),
}


@pytest.mark.parametrize(("args", "saying"), EXPECTED.values(), ids=EXPECTED)
def test_expected_failures(world, args, saying):
    Path("folder").mkdir()
    Path("own").mkdir()
    shutil.copy("events.parquet", "own/facts.parquet")
    refused(world, *args, code=1, saying=saying)


def test_nothing_is_trained_by_default_where_a_default_checkpoint_is_wanted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, "eval", code=1, saying="models/tkg: no checkpoint here; run geopol-tkg train first")
    refused(tmp_path, "eval", "frequency", code=1, saying="data/gdelt: no dataset here")


def rewrite(arrays=None, **manifest):
    """Change a checkpoint and make its digest fit again."""
    content = json.loads(Path(f"{BEST}.json").read_text()) | manifest
    content.pop("json_sha256")
    if arrays is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        Path(f"{BEST}.npz").write_bytes(buffer.getvalue())
        content["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    Path(f"{BEST}.json").write_text(json.dumps(content))


def arrays_of(stem=BEST):
    with np.load(f"{stem}.npz") as arrays:
        return dict(arrays)


def truncate():
    path = Path(f"{BEST}.npz")
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte():
    content = bytearray(Path(f"{BEST}.npz").read_bytes())
    content[len(content) // 2] ^= 1
    Path(f"{BEST}.npz").write_bytes(content)


def flip_in_json():
    path = Path(f"{BEST}.json")
    path.write_text(path.read_text().replace("ENTITY 1", "ENTITY 9", 1))


def change_shape():
    arrays = arrays_of()
    rewrite(arrays | {"encoder/entity_embedding": arrays["encoder/entity_embedding"][:-1]})


def change_type():
    arrays = arrays_of()
    rewrite(arrays | {"encoder/entity_embedding": arrays["encoder/entity_embedding"].astype(np.float64)})


def lose_an_array():
    arrays = arrays_of()
    del arrays["encoder/entity_embedding"]
    rewrite(arrays)


DAMAGE = {
    "truncated": (truncate, "tirgn_best.npz: truncated in or after array "),
    "one bit": (flip_a_byte, " is damaged (its checksum differs)"),
    "other": (
        lambda: shutil.copy(f"{BEST.replace('best', 'last')}.npz", f"{BEST}.npz"),
        "does not belong to its .json",
    ),
    "JSON bit": (flip_in_json, "damaged or changed by hand (json_sha256 differs)"),
    "no npz": (lambda: Path(f"{BEST}.npz").unlink(), "does not exist, though its .json does"),
    "shape": (change_shape, "array encoder/entity_embedding is float32[7, 8], wanted float32[8, 8]"),
    "type": (change_type, "array encoder/entity_embedding is float64[8, 8], wanted float32[8, 8]"),
    "missing": (lose_an_array, "lacks array encoder/entity_embedding (1 missing)"),
    "left over": (lambda: rewrite(arrays_of() | {"extra": np.zeros(2)}), "unexpected array extra (1 left over)"),
    "object": (lambda: rewrite(arrays_of() | {"x": np.array([{}], object)}), "array x is not a plain array"),
    "trained entities": (
        lambda: rewrite(arrays_of() | {"trained_entities": np.ones(3, bool)}),
        "array trained_entities is bool[3], wanted bool[8]",
    ),
    "version": (lambda: rewrite(format_version=99), "format_version 99, wanted 1"),
    "no JSON": (lambda: Path(f"{BEST}.json").write_text("{"), "not valid JSON"),
    "JSON list": (lambda: Path(f"{BEST}.json").write_text("[]"), "format_version None, wanted 1"),
    "incomplete": (lambda: rewrite(config=None), "not a complete checkpoint"),
    "labels": (lambda: rewrite(entity_to_id={"A": 0}), "labels and config differ in number"),
    "newer": (lambda: rewrite(config={"model_type": "tirgn", "depth": 3}), "unknown config entry depth"),
}


@pytest.mark.parametrize(("damage", "saying"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoints(world, damage, saying):
    damage()
    assert BEST in refused(world, "eval", BEST, "--json", code=1, saying=saying).err


def move_the_dataset(world, trained):
    """Let the checkpoint's dataset be the copy, not the one that all tests share."""
    for name in ("best", "last"):
        path = world / f"models/tkg/tirgn_{name}.json"
        content = json.loads(path.read_text().replace(str(trained), str(world)))
        del content["json_sha256"]
        path.write_text(json.dumps(content))


def test_a_dataset_that_changed_since_training(world, trained):
    move_the_dataset(world, trained)
    pq.write_table(even_events(seed=5), "other.parquet")
    assert call("ingest", "other.parquet", "--granularity", "1h").code == 0
    assert call("vocab").code == 0
    for command in (("eval", BEST), ("compare", BEST, "frequency"), ("predict", "ENTITY 1", "042"), ("convert",)):
        refused(world, *command, code=1, saying="has changed since; name one with --data")
    refused(world, "train", "--resume", "--model", "tirgn", *SMALL, code=1, saying="trained on another dataset")
    named = ("eval", BEST, "--data", "data/gdelt", "--json")
    assert not call(*named).json()["overlaps_training"]
    done = call(*named, "--split", "train")
    assert done.json()["overlaps_training"]
    assert "warning: train begins at 2017-11-01T00:00:00Z, tirgn_best was trained on facts up to" in done.err


def test_a_dataset_that_has_gone(world, trained):
    move_the_dataset(world, trained)
    (world / "data/gdelt").rename(world / "data/moved")
    refused(world, "eval", BEST, code=1, saying="is gone; name one with --data")
    assert "overlaps_training" not in call("eval", BEST, "--data", "data/moved", "--json").json()


@pytest.mark.parametrize(
    ("option", "saying"),
    [
        (("--granularity", "2h"), "granularity 2h differs from the checkpoint's 1h"),
        (("--entity", "code"), "entity labels are of kind code, the checkpoint's name: ingest with --entity name"),
        (("--relation", "root-code"), "relation labels are of kind root-code"),
    ],
)
def test_a_dataset_of_another_kind(world, option, saying):
    assert call("ingest", "events.parquet", "--out", "other", "--granularity", "1h", *option).code == 0
    refused(world, "eval", BEST, "--data", "other", code=1, saying=saying)


def test_an_empty_test_split(world):
    Path("folder").mkdir()
    for name, time in (("train", 0), ("valid", 3)):
        Path("folder", f"{name}.txt").write_text("".join(f"0 0 {i} {time + i % 2}\n" for i in range(6)))
    assert call("ingest", "folder", "--out", "quadruples").code == 0
    saying = "the test split is empty"
    for model in ("frequency", "recurrency:0.1,0.9"):
        refused(world, "eval", model, "--data", "quadruples", code=1, saying=saying)
    refused(world, "compare", "frequency", "frequency", "--data", "quadruples", code=1, saying=saying)


def test_models_of_different_datasets_are_not_compared_unasked(world):
    rewrite(dataset=json.loads(Path(f"{BEST}.json").read_text())["dataset"] | {"content_hash": "other"})
    named = (BEST, "models/tkg/tirgn_last")
    refused(world, "compare", *named, code=2, saying="were trained on different datasets; name one")
    assert call("compare", *named, "--data", "data/gdelt", "--json", "--pass-threshold", "-100").json()["passed"]


def test_a_file_in_the_way(world):
    Path("file").write_text("")
    refused(world, "ingest", "events.parquet", "--out", "file", "--granularity", "1h", code=1, saying="File exists")
    for command in (
        ("compare", "frequency", "frequency", "--output", "file/report.json"),
        ("eval", "frequency", "--ranks", "file/ranks.parquet"),
    ):
        before = listing(world)
        done = call(*command)
        assert done.code == 1
        assert "mrr" in done.out, "what was measured is shown, though it could not be written"
        assert command[-1].split("/")[0] in done.error()
        assert listing(world) == before


def test_verbose_shows_the_traceback(world):
    done = call("eval", "models/other", "--verbose")
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: models/other")


def test_a_full_disk_and_a_closed_stdout(world, program):
    for redirection, code, message in ((">/dev/full", 1, "error: No space left on device\n"), (">&-", 0, "")):
        command = f'"{PROGRAM}" eval frequency --json --quiet {redirection}'
        done = subprocess.run(
            ["sh", "-c", command], env=program.environment(), stderr=subprocess.PIPE, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (code, message)


@pytest.mark.slow
def test_by_the_program(world, program):
    done = program("eval", "models/other", cwd=world)
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    done = program("train", "--epochs", "0", cwd=world)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
