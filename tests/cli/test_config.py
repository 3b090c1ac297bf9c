"""Options from a TOML file and from variables; the command line wins."""

import json
from pathlib import Path

import pytest
from cli_helpers import call


def predictions(*args):
    return len(call(*args, "ENTITY 1", "042", "--json").json()["predictions"])


def test_the_command_line_wins_over_variables_and_these_over_the_file(world, monkeypatch):
    Path("options.toml").write_text("[predict]\ntop = 2\n[eval]\nsplit = 'valid'\n")
    assert predictions("predict") == 8
    assert predictions("--config", "options.toml", "predict") == 2
    assert call("--config", "options.toml", "eval", "frequency", "--json").json()["split"] == "valid"
    monkeypatch.setenv("GEOPOL_TKG_CONFIG", "options.toml")
    assert predictions("predict") == 2
    monkeypatch.setenv("GEOPOL_TKG_PREDICT_TOP", "3")
    assert predictions("predict") == 3
    assert predictions("predict", "--top", "4") == 4


def test_flags_and_dashes(world, monkeypatch):
    Path("options.toml").write_text("[compare]\npass_threshold = -100.0\njson = true\n")
    named = ("recurrency:0.02,0.999", "frequency")
    assert json.loads(call("--config", "options.toml", "compare", *named).out)["pass_threshold"] == -100
    monkeypatch.setenv("GEOPOL_TKG_COMPARE_PASS_THRESHOLD", "-50")
    assert call("compare", *named, "--json").json()["pass_threshold"] == -50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nlearning-rate = 1", "[train] has no option 'learning-rate'"),
        ("[trian]\nlr = 1", "no command 'trian'; did you mean train?"),
        ("train = 3", "wanted a table [train]"),
        ("[train", "not valid TOML"),
        ("[ingest]\nout = ''", "out in [ingest] is empty; leave it out or give it a value"),
        ("[eval]\nsplit = 'tset'", "Invalid value for '--split'"),
    ],
)
def test_wrong_files_are_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("options.toml").write_text(text)
    done = call("--config", "options.toml", "eval", "frequency")
    assert done.code == 2
    assert message in done.error()
    assert call("--config", "none.toml", "eval").error().endswith("none.toml: No such file or directory")


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (
            "GEOPOL_TKG_TRAIN_PATIENC",
            "variable GEOPOL_TKG_TRAIN_PATIENC sets no option; did you mean GEOPOL_TKG_TRAIN_PATIENCE?",
        ),
        ("GEOPOL_TKG_ZZZZZZZZZZZZZZZ", "wanted GEOPOL_TKG_<COMMAND>_<OPTION>"),
    ],
)
def test_variables_that_set_nothing_are_refused(monkeypatch, variable, message):
    monkeypatch.setenv(variable, "1")
    done = call("eval", "frequency")
    assert done.code == 2
    assert message in done.error()
