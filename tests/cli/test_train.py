"""Training from the command line: what it writes and prints, how it stops and goes on."""

import json
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from cli_helpers import SMALL, call, listing
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from geopol_tkg.cli._app import Output
from geopol_tkg.cli._progress import TrainDisplay
from geopol_tkg.cli._sources import _place_for, open_or_ingest
from geopol_tkg.cli._training import _history, _start_wandb
from geopol_tkg.config import IngestConfig
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.errors import DataError, UsageError
from geopol_tkg.training.trackers import TrainingLogger

TRAIN = ("train", "--model", "regcn", *SMALL)
LAST, BEST = (Path(f"models/tkg/regcn_{name}.npz") for name in ("last", "best"))
EVAL = {"eval/mrr", "eval/hits_at_1", "eval/hits_at_3", "eval/hits_at_10"}
SCALARS = EVAL | {"train/loss", "train/lr", "system/vram_used_mb", "system/epoch_duration_s"}


def records(model="regcn"):
    lines = Path("models/tkg/metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["model"] == model and record["epoch"] > 0]


def scalars(folder="runs/regcn"):
    found = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    return {name: found.Scalars(name) for name in found.Tags()["scalars"]}


def test_what_a_run_writes(world):
    before = Path("models/tkg/metrics.jsonl").read_text()
    content = call(*TRAIN, "--epochs", "3", "--json").json()
    found = scalars()
    assert found.keys() >= SCALARS
    assert all([event.step for event in found[name]] == [1, 2, 3] for name in SCALARS)
    assert [event.step for event in found["system/total_params"]] == [0]
    assert found["system/total_params"][0].value > 0
    assert all(event.value > 0 for event in found["system/rss_mb"] + found["system/rss_epoch_high_mb"])
    assert Path("models/tkg/metrics.jsonl").read_text().startswith(before)
    assert [record["epoch"] for record in records()] == [1, 2, 3]
    first = [json.loads(line) for line in Path("models/tkg/metrics.jsonl").read_text().splitlines()]
    assert [r["system/total_params"] for r in first if r["epoch"] == 0 and r["model"] == "regcn"] == [
        found["system/total_params"][0].value
    ]
    assert all(record.keys() >= SCALARS for record in records())
    mrrs = [record["eval/mrr"] for record in records()]
    assert content["best_mrr"] == max(mrrs)
    assert content["best_epoch"] == 1 + int(np.argmax(mrrs))
    assert [event.value for event in found["eval/mrr"]] == pytest.approx(mrrs)
    assert Path(f"{content['checkpoint']}.npz").exists()
    assert Path(f"{content['last']}.json").exists()
    assert call(*TRAIN, "--epochs", "1", "--overwrite", "--quiet").err == ""
    assert [record["epoch"] for record in records()] == [1]
    assert [event.step for event in scalars()["eval/mrr"]] == [1]
    assert Path("models/tkg/metrics.jsonl").read_text().startswith(before)


def test_lines_without_a_terminal(world):
    done = call(*TRAIN, "--epochs", "2", "--checkpoint-interval", "1")
    lines = done.err.splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert lines[0].startswith("regcn: ")
    assert "on cpu" in lines[0]
    assert done.out.splitlines()[0] == "Trained regcn: completed"
    assert "\x1b" not in done.out + done.err


def test_early_stopping(world):
    content = call(*TRAIN, "--epochs", "200", "--patience", "1", "--json").json()
    assert (content["status"], content["early_stopped"]) == ("early_stopped", True)
    assert content["epochs_trained"] == content["best_epoch"] + 1


def test_a_torn_line_of_metrics_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = '{"model": "tirgn", "epoch": 7}\n'
    path.write_text(whole + '{"model": "regcn", "epoch": 1}\n{"model": "tirgn", "epo')
    TrainingLogger(tmp_path / "run", path, model="regcn", first_epoch=1, wandb_run=None).close({})
    assert path.read_text() == whole


def test_dry_run_writes_no_model(world):
    before = listing(world)
    content = call(*TRAIN, "--dry-run", "--json").json()
    assert content["status"] == "dry_run"
    assert content["shapes"][0]["temporary_bytes"] > 0
    assert content["shapes"][0]["temporary_bytes"] < content["needed_bytes"] < content["free_bytes"]
    assert listing(world) == before


def test_a_step_that_cannot_fit_is_refused_before_anything_is_written(world, monkeypatch):
    """In a container whose memory is nearly used up."""
    files = {"memory.max": "1000000", "memory.current": "950000", "memory.stat": "anon 900000\ninactive_file 1000\n"}
    Path("cgroup").mkdir()
    for name, text in files.items():
        Path("cgroup", name).write_text(text)
    monkeypatch.setattr("geopol_tkg.training.memory._CGROUP", Path("cgroup").absolute())
    before = {name for name in listing(world) if not name.endswith(".lock")}
    assert call(*TRAIN, "--dry-run", "--json").json()["free_bytes"] == 51_000
    refused = call(*TRAIN, "--remat", "--overwrite")
    assert refused.code == 1
    assert re.search(
        r"too little memory on cpu: a step of \d+ queries needs \d+ MB beside the \d+ MB of the network and the data, "
        r"and 0 MB are free: lower --batch-size, .*, or use --num-negatives or --precision bf16$",
        refused.error(),
    ), refused.error()
    assert {name for name in listing(world) if not name.endswith(".lock")} == before


def test_running_out_of_memory_says_what_was_asked_for_and_what_lowers_it(world, monkeypatch):
    monkeypatch.setattr(TrainDisplay, "step", lambda *_args: jnp.zeros(1 << 45).block_until_ready())
    error = call(*TRAIN, "--epochs", "1").error()
    wanted = r"out of memory on cpu: 131,072.0 GB more were asked for, [\d,.]+ .B are free: lower --batch-size, "
    assert re.search(wanted, error), error
    assert "use --remat or --num-negatives or --precision bf16" in error


def test_the_settings_and_where_they_are_from_are_kept(world, monkeypatch):
    Path("options.toml").write_text("[train]\nlr = 0.01\npatience = 4\nbatch-size = 7\n")
    monkeypatch.setenv("GEOPOL_TKG_TRAIN_PATIENCE", "5")
    call("--config", "options.toml", *TRAIN, "--epochs", "1")
    content = json.loads(Path("runs/regcn/config.json").read_text())
    wanted = {
        "lr": (0.01, "config file"),
        "patience": (5, "environment"),
        "batch_size": (0, "command line"),
        "seed": (0, "default"),
        "precision": ("f32", "default"),
        "num_entities": (8, "dataset"),
        "num_channels": (50, "default"),
        "model_dir": ("models/tkg", "default"),
        "preset": (None, "default"),
    }
    assert {name: tuple(content["options"][name].values()) for name in wanted} == wanted
    assert content["dataset"]["content_hash"] == Dataset.load(Path("data/gdelt")).content_hash
    assert content["system"]["device"] == "cpu"
    texts = EventAccumulator("runs/regcn").Reload()
    kept, summary = (
        json.loads(texts.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()[8:-4])
        for name in ("config", "summary")
    )
    assert kept == content
    assert summary["status"] == "completed"


def test_unwritable_dataset_directories_do(world, monkeypatch, capsys):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("geopol_tkg.data.history.HistoryVocabulary.save", refuse)
    assert _history(Dataset.load(Path("data/gdelt")), 3, Output()).window == 3
    assert "history.npz: not kept (Permission denied)" in capsys.readouterr().err


def warnings(text):
    return [line for line in text.splitlines() if line.startswith("warning: ")]


def test_wandb_that_is_not_installed_changes_nothing(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as Python has it for a module that is not there
    done = call(*TRAIN, "--epochs", "1", "--wandb", "--json")
    assert done.json()["status"] == "completed"
    (warning,) = warnings(done.err)
    assert warning.startswith("warning: no Weights & Biases for this run: ")
    assert warning.endswith("; install 'geopol-tkg[wandb]'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "No API key configured"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "connection refused"),
    ],
)
def test_wandb_that_cannot_log_in_changes_nothing(world, program, variables, reason):
    """By the real package: no key, and a network on which nobody listens."""
    pytest.importorskip("wandb")
    done = program(*TRAIN, "--epochs", "2", "--wandb", "--json", cwd=world, env={"HOME": str(world), **variables})
    assert done.json()["status"] == "completed"
    (warning,) = warnings(done.err)
    assert warning.startswith("warning: no Weights & Biases for this run: ")
    assert reason in warning
    assert [record["epoch"] for record in records()] == [1, 2]


@pytest.mark.slow
def test_what_wandb_is_told(world, program):
    """The real package, offline; its file is read back with its own reader."""
    pytest.importorskip("wandb")
    variables = {"WANDB_MODE": "offline", "WANDB_TAGS": "spring,small", "WANDB_RUN_GROUP": "sweep"}
    done = program(*TRAIN, "--epochs", "2", "--run-name", "first", "--json", cwd=world, env=variables)
    content = done.json()
    assert warnings(done.err) == []
    told = told_to_wandb("runs/first")
    assert (told["run"].display_name, told["run"].project) == ("first", "geopol-tkg")
    assert (list(told["run"].tags), told["run"].run_group) == (["spring", "small"], "sweep")
    assert (told["config"]["embedding_dim"], told["config"]["epochs"]) == (8, 2)
    assert told["config"]["system"]["device"] == "cpu"
    assert [row["eval/mrr"] for row in told["history"]] == [record["eval/mrr"] for record in records()]
    assert [row["_step"] for row in told["history"]] == [1, 2]
    assert (told["summary"]["best_epoch"], told["summary"]["status"]) == (content["best_epoch"], "completed")
    assert told["summary"]["system/total_params"] > 0
    program(*TRAIN, "--epochs", "3", "--run-name", "first", "--resume", "--json", cwd=world, env=variables)
    again = told_to_wandb("runs/first")
    assert again["run"].run_id == told["run"].run_id
    assert [row["_step"] for row in again["history"]] == [3]


def records_of_a_log(content, *, block=32768, header=7):
    """Of a file in LevelDB's log format, which wandb writes behind a header of its own."""
    place, record = header, b""
    while place + header <= len(content):
        if (left := block - place % block) < header:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        place += header + length
        record += content[place - length : place]
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def told_to_wandb(folder):
    """What the latest offline run in a folder has recorded."""
    from wandb.proto.wandb_internal_pb2 import Record

    told = {"config": {}, "history": [], "summary": {}}
    path = next((Path(folder) / "wandb/latest-run").glob("run-*.wandb"))
    for data in records_of_a_log(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            told["run"] = record.run
            told["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            items = record.history.item
            told["history"].append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
        elif kind == "summary":
            told["summary"] |= {
                i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update
            }
    return told


FAKE_WANDB = """
class Run:
    summary = {}
    def log(self, metrics, step):
        raise ConnectionError("the network\\nis down")
    def finish(self, exit_code):
        raise AssertionError("finished although it failed")
def Settings(**_options):
    return None
def init(**_options):
    return Run()
"""


def pretend_wandb(monkeypatch, module):
    Path("fake").mkdir()
    Path("fake/wandb.py").write_text(module)
    monkeypatch.syspath_prepend(str(Path("fake").absolute()))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def test_wandb_that_fails_later_changes_nothing(world, monkeypatch):
    pretend_wandb(monkeypatch, FAKE_WANDB)
    monkeypatch.setenv("WANDB_API_KEY", "x")
    done = call(*TRAIN, "--epochs", "2", "--json")
    monkeypatch.delitem(sys.modules, "wandb")
    assert done.json()["status"] == "completed"
    assert warnings(done.err) == ["warning: Weights & Biases failed, going on without it: the network is down"]
    assert [record["epoch"] for record in records()] == [1, 2]


def test_wandb_that_fails_at_once_changes_nothing(world, monkeypatch, capsys):
    pretend_wandb(monkeypatch, "raise OSError('broken')")
    run = SimpleNamespace(files=SimpleNamespace(run_dir=Path("runs/x")))
    assert _start_wandb(True, run, {}, Output(), resume=False) is None
    assert capsys.readouterr().err == "warning: no Weights & Biases for this run: broken\n"


def test_events_are_ingested_on_the_way(world, capsys):
    data = open_or_ingest("events.parquet", IngestConfig(granularity="1h"), {"granularity"}, Output())
    assert "events.parquet: not a dataset; ingesting it into data/events" in capsys.readouterr().err
    assert data.path == Path("data/events")
    assert data.content_hash == Dataset.load(Path("data/gdelt")).content_hash


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("a/events.csv.gz", "data/events"),
        ("a/2017/*.csv", "data/2017"),
        ("s3://bucket/gdelt/*.parquet", "data/gdelt"),
        ("*.csv", "data/events"),
        ("data/raw", "data/raw-dataset"),
        ("data/old", "data/old"),
    ],
)
def test_places_for_datasets_never_are_their_source(tmp_path, monkeypatch, source, place):
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    Path("data/old").mkdir()
    Path("data/old/dataset.json").touch()
    assert _place_for(Path(source)) == Path(place)


def write_quadruples():
    Path("folder").mkdir()
    rng = np.random.default_rng(0)
    for name, times in (("train", range(0, 8)), ("valid", range(8, 10)), ("test", range(10, 12))):
        rows = [f"{s} {r} {o} {24 * t}" for t in times for s, r, o in rng.integers(0, [8, 5, 8], (16, 3))]
        Path("folder", f"{name}.txt").write_text("\n".join(rows) + "\n")


def test_a_quadruple_folder_is_taken_with_the_defaults(world):
    write_quadruples()
    done = call("train", "folder", "--model", "regcn", "--batch-size", "-1")
    assert done.code == 2
    assert not Path("data/folder").exists()
    assert open_or_ingest("folder", IngestConfig(), (), Output(quiet=True)).time_axis.granularity is None
    with pytest.raises(UsageError, match="leave out --granularity"):
        open_or_ingest("folder", IngestConfig(granularity="1h"), {"granularity"}, Output(quiet=True))


@pytest.mark.slow
def test_a_quadruple_folder_is_trained_on_with_the_defaults(world):
    write_quadruples()
    content = call("train", "folder", "--model", "regcn", *SMALL, "--epochs", "1", "--json").json()
    assert content["status"] == "completed"
    assert call("predict", "1", "2", "--checkpoint", content["checkpoint"], "--json").json()["time"] == "288"


def test_events_never_replace_a_dataset_of_other_events(world):
    write_quadruples()
    first = open_or_ingest("folder", IngestConfig(), (), Output(quiet=True))
    assert first.path == Path("data/folder")
    assert open_or_ingest("folder", IngestConfig(), (), Output(quiet=True)).content_hash == first.content_hash
    other = Path("elsewhere/folder")
    other.mkdir(parents=True)
    for file in Path("folder").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="a dataset of other events"):
        open_or_ingest(str(other), IngestConfig(), (), Output(quiet=True))


@pytest.mark.slow
def test_the_bundled_sample_is_the_last_resort(tmp_path, program):
    done = program("train", "--model", "regcn", *SMALL, "--epochs", "1", "--json", cwd=tmp_path)
    assert done.json()["status"] == "completed"
    assert "BUNDLED SAMPLE" in done.err
    assert (tmp_path / "data/gdelt-sample/dataset.json").exists()
    assert program("eval", "models/tkg/regcn_best", "--json", cwd=tmp_path).json()["num_queries"] > 0
