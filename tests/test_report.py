"""The report: its figures are those of eval, its page is whole, safe and readable."""

import dataclasses
import html.parser
import itertools
import json
import re
import shlex
import shutil
import struct
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import typer
from cli_helpers import call, listing
from hypothesis import example, given
from hypothesis import strategies as st
from small_world import make_checkpoint, make_config, make_dataset

from geopol_tkg.cli import app
from geopol_tkg.config import ModelConfig, TrainConfig
from geopol_tkg.data.cameo import EVENT_CODES, ROOT_CODES
from geopol_tkg.data.cameo_words import MEANINGS, meaning
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.evaluation.evaluator import evaluate
from geopol_tkg.models.recurrency import Frequency, Recurrency
from geopol_tkg.report import sample
from geopol_tkg.report.chart import linear_axis, probability_axis
from geopol_tkg.report.content import (
    Example,
    Model,
    Report,
    by_relation,
    distinct_names,
    over_time,
    train_command,
    true_answers,
)
from geopol_tkg.report.curves import read_curves
from geopol_tkg.report.page import page, verdict
from geopol_tkg.report.style import DARK, LIGHT, STYLE
from geopol_tkg.report.words import question, relation_words, time_words

MADE = datetime(2017, 11, 8, tzinfo=UTC)
EVIL = "<script>alert('1')</script> & \"Ω\" ]]>"
VOID = {"meta", "line", "circle", "rect", "path", "polyline", "br"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


@pytest.fixture(scope="module")
def ranks(dataset):
    return evaluate(Frequency(dataset), dataset)


class Distributions:
    """A forecaster with given probabilities [r2, n] for each relation; ``unknown`` relations score zero."""

    name, horizon = "distributions", None

    def __init__(self, table, unknown=()):
        self.table, self.unknown = table, unknown

    def at(self, time):
        def score(subjects, relations):
            scores = np.log(self.table[relations])
            scores[np.isin(relations, self.unknown)] = 0
            return scores.astype(np.float32)

        return score


def distributions(dataset, seed=0, **more):
    rng = np.random.default_rng(seed)
    return Distributions(rng.dirichlet(np.full(dataset.num_entities, 0.3), 2 * dataset.num_relations) + 1e-12, **more)


def test_first_answers_are_the_likeliest(dataset, ranks):
    rows = np.arange(len(ranks.rank))
    forecaster = distributions(dataset, unknown=(0,))
    answers, scored = (sample.first_answers(forecaster, ranks, rows, temperature=value) for value in (0.5, None))
    assert [not answer for answer in answers] == (ranks.relation == 0).tolist()
    for answer, score, relation in zip(answers, scored, ranks.relation, strict=True):
        own = forecaster.table[relation]
        best = np.argsort(-own)[:3]
        squared = own**2 / (own**2).sum()
        assert answer == ([(i, pytest.approx(squared[i], rel=1e-4)) for i in best] if relation else [])
        assert score == ([(i, pytest.approx(np.log(own[i]), rel=1e-4)) for i in best] if relation else [])


def test_a_sample_is_seeded_and_within_the_queries(ranks):
    rows = sample.draw(ranks, 7, seed=3)
    assert rows.tolist() == sorted(set(rows.tolist())) == sample.draw(ranks, 7, seed=3).tolist()
    assert rows.tolist() != sample.draw(ranks, 7, seed=4).tolist()
    assert sample.draw(ranks, 10**6, seed=0).tolist() == list(range(len(ranks.rank)))


def test_figures_by_relation_and_over_time_are_those_of_loops(ranks):
    count, mrr = by_relation(ranks)
    for relation in range(ranks.num_relations):
        own = [1 / r for r, q in zip(ranks.rank, ranks.relation, strict=True) if q % ranks.num_relations == relation]
        assert count[relation] == len(own)
        assert mrr[relation] == pytest.approx(np.mean(own)) if own else np.isnan(mrr[relation])
    first, count, mrr = over_time(ranks)
    assert first.tolist() == np.unique(ranks.time).tolist()
    assert [np.mean(1 / ranks.rank[ranks.time == time]) for time in first] == pytest.approx(mrr.tolist())


@pytest.mark.parametrize("timestamps", [1, 47, 48, 49, 100, 1000])
def test_periods_hold_every_query_once(ranks, timestamps):
    time = np.repeat(np.arange(timestamps, dtype=np.int32) * 3, 2)
    first, count, mrr = over_time(replace(ranks, time=time, rank=np.ones(len(time))))
    assert (len(first), count.sum()) == (min(48, timestamps), len(time))
    assert count.max() - count.min() <= 2
    assert first.tolist() == sorted(set(first.tolist()))
    assert (mrr == 1).all()


def test_interval_golden(ranks):
    """Every timestamp has the same MRR: no spread."""
    even = replace(
        ranks,
        time=np.arange(4),
        rank=np.full(4, 4.0),
        **{n: np.zeros(4, int) for n in ("subject", "relation", "object")},
    )

    def interval(ranks):
        return Model("name", "run", ranks, {}).interval

    assert interval(even) == pytest.approx((0.25, 0.25))
    assert interval(replace(even, time=np.zeros(4, int))) is None
    low, high = interval(ranks)
    assert low < (1 / ranks.rank).mean() < high


def test_curves_of_one_model_among_others(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"model": "tirgn", "epoch": 0, "system/total_params": 3},
        {"model": "tirgn", "epoch": 1, "train/loss": 2.5, "eval/mrr": 0.1, "system/rss_epoch_high_mb": 7},
        {"model": "regcn", "epoch": 1, "train/loss": 9, "system/vram_epoch_high_mb": 8},
        {"model": "tirgn", "epoch": 2, "train/loss": 2, "system/rss_epoch_high_mb": 8},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"model": "tirgn", "epo')
    found = read_curves(path, "tirgn")
    assert (found.loss, found.valid_mrr) == (((1, 2.5), (2, 2)), ((1, 0.1),))
    assert (found.memory, found.memory_kind, found.num_damaged) == (((1, 7), (2, 8)), "RSS", 1)
    assert read_curves(path, "regcn").memory_kind == "VRAM"
    assert read_curves(path, "other") is None
    assert read_curves(tmp_path / "none", "tirgn") is None


def test_every_code_has_a_meaning():
    assert set(MEANINGS) == {code for code in EVENT_CODES if len(code) == 3}
    assert all(meaning(code) for code in EVENT_CODES | ROOT_CODES)
    assert [meaning(code) for code in ("042", "04", "0332", "2042")] == [
        "make a visit",
        "consult",
        "intend to give aid",
        "use weapons of mass destruction",
    ]


def test_times_and_questions_in_words(dataset):
    hours = TimeAxis(1510063200, 3600, "1h")
    assert time_words(hours, 0) == "7 November 2017, 14:00 UTC"
    assert time_words(hours, 10, short=True) == "8 Nov 00:00"
    assert time_words(dataset.time_axis, 2) == "3 January 1970"
    assert time_words(TimeAxis(10, 5, None), 2) == "Time 20"
    assert relation_words(dataset, 1) == "042"
    coded = replace(dataset, relation_kind="event-code")
    assert relation_words(coded, 1) == "042 make a visit"
    assert question(coded, 0, 1, 2) == "3 January 1970: towards whom does COUNTRY A “make a visit” (042)?"
    assert question(dataset, 0, 5, 2) == "3 January 1970: who does “042” towards COUNTRY A?"


def test_the_training_command_has_options_that_exist(dataset):
    """Every setting is changed; what is no option of train is named in the module."""
    changed = {"embedding_dim": 6, "history_mask_mode": "exclude", "num_words": 3, "num_static_edges": 4}
    config = dataclasses.replace(make_config("regcn"), **changed)
    settings = {f.name: f.default for f in dataclasses.fields(TrainConfig)} | {"lr": 0.5, "remat": False, "seed": 7}
    checkpoint = replace(make_checkpoint(config, dataset, {}), settings=settings)
    words = shlex.split(train_command(checkpoint, Path("a b")))
    assert words[:5] == ["geopol-tkg", "train", "None", "--model", "regcn"]
    pairs = list(itertools.pairwise(words))
    for pair in [("--lr", "0.5"), ("--seed", "7"), ("--embedding-dim", "6"), ("--model-dir", "a b")]:
        assert pair in pairs
    assert {"--no-remat", "--static-graph"} <= set(words)
    assert not {"--epochs", "--num-entities", "--num-words"} & set(words)
    command = typer.main.get_command(app).commands["train"]
    known = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    fields = {"--num-channels"}  # of make_config, not an option
    assert {word for word in words if word.startswith("--")} - fields <= known


@pytest.mark.parametrize(
    ("model", "changed", "wanted"),
    [
        ("counts", {"half_lives": (1.0, 8.0)}, {"half_lives": "1.0,8.0", "count_prior": None, "countries": False}),
        ("counts", {"num_countries": 7}, {"countries": True}),
        (
            "tirgn",
            {"half_lives": (1.0, 8.0), "num_countries": 7, "count_prior": True},
            {"count_prior": Path("COUNTS"), "lr": 0.5},
        ),
    ],
)
def test_the_training_command_can_be_parsed(dataset, model, changed, wanted):
    given = parsed_training_command(dataset, model, changed, {"lr": 0.5, "precision": "f32"})
    assert given["half_lives"] == wanted.get("half_lives", given["half_lives"])
    assert {name: given[name] for name in wanted} == wanted
    assert (given["model"], given["precision"]) == (model, "f32")


@pytest.mark.parametrize("beside", [False, True])
def test_the_command_of_a_refit_can_be_parsed(dataset, beside):
    settings = {"lr": 0.5, "through": "test", "refit_epochs": 3}
    given = parsed_training_command(dataset, "regcn", {"count_prior": beside}, settings)
    assert (given["refit"], given["through"], given["model_dir"]) == (Path("CHECKPOINT"), "test", Path("m"))
    assert given["count_prior"] == (Path("COUNTS") if beside else None)


def parsed_training_command(dataset, model, changed, settings):
    config = ModelConfig(model_type=model, num_entities=3, num_relations=2, **changed)
    settings = {f.name: f.default for f in dataclasses.fields(TrainConfig)} | settings
    checkpoint = replace(make_checkpoint(config, dataset, {}), settings=settings)
    command = typer.main.get_command(app).commands["train"]
    return command.make_context("train", shlex.split(train_command(checkpoint, Path("m")))[2:]).params


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (["a/x_best", "b/y_best"], ["x_best", "y_best"]),
        (["a/x_best", "b/x_best", "frequency"], ["a/x_best", "b/x_best", "frequency"]),
        (["c/a/x", "d/a/x"], ["c/a/x", "d/a/x"]),
        (["recurrency"], ["recurrency"]),
        (["m/x_best+m/y_best", "m/x_best"], ["x_best+y_best", "x_best"]),
        (["a/x_best+b/x_best", "a/x_best"], ["a/x_best+b/x_best", "a/x_best"]),
    ],
)
def test_names_tell_runs_apart(runs, names):
    assert distinct_names(runs) == names


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.booleans(), st.booleans())
@example([5e-324], True, False)
@example([0.0, 2e-323], False, True)
def test_axes_hold_their_values(values, from_zero, snug):
    axis = linear_axis("x", values, from_zero=from_zero, snug=snug)
    assert all(-1e-6 <= axis.place(value) <= 1 + 1e-6 for value in values)
    assert all(-1e-6 <= axis.place(tick) <= 1 + 1e-6 for tick, _ in axis.ticks)
    assert len(axis.ticks) <= 12
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)


def test_probability_axis():
    axis = probability_axis("p", 0.0004)
    assert [text for _, text in axis.ticks] == ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"]
    assert (axis.place(1e-4), axis.place(1e-2), axis.place(1)) == pytest.approx((0, 0.5, 1))


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_read(scheme):
    for name in set(scheme) - {"page", "panel", "rule"}:
        for ground in ("page", "panel"):
            high, low = sorted((luminance(scheme[name]), luminance(scheme[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


def test_golden_luminance():
    assert (luminance("#ffffff"), luminance("#000000")) == pytest.approx((1, 0))


class Checker(html.parser.HTMLParser):
    """Balanced tags, ids and what they refer to, text; no element that loads or runs anything."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.references, self.text = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        assert not [name for name in given if name.startswith("on") or name in ("src", "xlink:href")]
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        self.references += given.get("aria-labelledby", "").split()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(text):
    """The parsed page, after all that holds for every one."""
    found = Checker()
    found.feed(text)
    found.close()
    assert found.open == []
    assert not set(found.tags) & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image"}
    assert not re.search(r"url\(|@import|expression\(", STYLE)
    assert len(set(found.ids)) == len(found.ids)
    assert set(found.references) == set(found.ids)
    assert set(found.links) <= {"https://www.gdeltproject.org/"}
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL))
    return found


@pytest.fixture(scope="module")
def small_report(dataset):
    """Two baselines and a network's checkpoint, the labels being as bad as can be."""
    evil = replace(dataset, entities=(EVIL, *dataset.entities[1:]), relations=(EVIL, *dataset.relations[1:]))
    forecaster = distributions(evil)
    models = []
    config = make_config("tirgn")
    for name, one in {EVIL: forecaster, "recurrency": Recurrency(evil, lambdas=0.1, alphas=0.9)}.items():
        found = evaluate(one, evil, temperature=1.1 if one is forecaster else None)
        said = None if found.probabilities is None else found.probabilities.calibration()
        models.append(Model(name, f"models/{name}", found, {**found.metrics(), "calibration": said}))
    rows = np.arange(len(models[0].ranks.rank))
    models[0] = replace(models[0], checkpoint=make_checkpoint(config, evil, {}))
    answers = sample.first_answers(forecaster, models[0].ranks, rows, temperature=1.1)
    examples = [Example(row, found, true_answers(models[0].ranks, row)) for row, found in enumerate(answers)]
    return Report(models, examples, evil, "test", 0, f"geopol-tkg report {shlex.quote(EVIL)}")


def test_labels_are_escaped(small_report):
    text = page(small_report, made=MADE)
    found = checked(text)
    assert EVIL not in text
    assert EVIL in "".join(found.text)
    assert "no metrics.jsonl" in text


def test_examples_say_what_was_true(small_report):
    text = "".join(checked(page(small_report, made=MADE)).text)
    ranks = small_report.ranks
    assert text.count("The answer was") == len(ranks.rank)
    hits = sum(int(ranks.object[e.row]) in [entity for entity, _ in e.answers] for e in small_report.examples)
    assert text.count("✓ the answer") == hits > 0


def test_the_verdict_follows_the_interval(small_report):
    ranks = replace(small_report.ranks, time=np.arange(len(small_report.ranks.rank)) // 2)

    def against(factor):
        other = replace(ranks, rank=ranks.rank * factor)
        models = [Model(n, n, r, r.metrics()) for n, r in {"first": ranks, "second": other}.items()]
        return verdict(replace(small_report, models=models))

    assert against(3.0).endswith("it is better.")
    assert " above second" in against(3.0)
    assert against(1 / 3).endswith("it is worse.")
    assert against(1.0).endswith("does not tell them apart.")
    assert verdict(replace(small_report, models=small_report.models[:1])) == ""


def test_report_by_the_program(world):
    content = call("report", "--json", "--quiet").json()
    text = Path("report.html").read_text(encoding="utf-8")
    found = checked(text)
    assert [model["name"] for model in content["models"]] == ["tirgn_best", "recurrency", "frequency"]
    assert set(content) == {"output", "models", "num_queries", "split", "protocol", "filter", "dataset"}
    for model in content["models"]:
        measured = call("eval", model["run"], "--json").json()
        assert {key: model[key] for key in measured.keys() & model.keys()} == {
            key: measured[key] for key in measured.keys() & model.keys()
        }
        assert {"mrr", "hits_at_1", "hits_at_3", "hits_at_10", "mean_rank", "strata", "object"} <= model.keys()
        assert f"<td>{measured['mrr']:.4f}<small>" in text
        assert model["ci_low"] <= model["mrr"] <= model["ci_high"]
    compared = call("compare", "models/tkg/tirgn_best", "frequency", "--json", "--pass-threshold", "-100").json()
    assert f"{compared['delta']:+.4f}".replace("-", "−") in text
    assert f"{compared['ci_low']:+.4f}".replace("-", "−") in text
    assert found.tags.count("svg") - text.count("aria-hidden") == len(found.references) / 2 == 7
    assert "The GDELT Project" in text
    measured = call("eval", "models/tkg/tirgn_best", "--json").json()["calibration"]
    assert [model["calibration_error"] for model in content["models"]] == [measured["ece"], None, None]
    assert f"expected calibration error {measured['ece']:.4f} over {measured['num_queries']:,} queries" in text


def test_the_report_is_the_same_again_whatever_names_the_run(world):
    texts = []
    for run in ["models/tkg", "models/tkg/tirgn_best.json", "models/tkg/tirgn_best"]:
        assert call("report", run, "--output", "here/it.html").code == 0
        texts.append(Path("here/it.html").read_text(encoding="utf-8"))
    assert len(set(texts)) == 1
    commands = re.findall(r"geopol-tkg (?:eval|report) .*", re.sub(r"</pre>", "", texts[0]))
    assert len(commands) == 4
    again = call(*shlex.split(commands[-1])[1:], "--quiet")
    assert again.code == 0
    assert Path("report.html").read_text(encoding="utf-8") == texts[0]


def test_two_runs_and_a_baseline_first(world):
    shutil.copytree("models/tkg", "models/other")
    Path("models/other/metrics.jsonl").unlink()
    done = call("report", "frequency", "models/tkg/tirgn_best", "models/other/tirgn_last", "--examples", "2")
    assert done.code == 0, done.err
    text = Path("report.html").read_text(encoding="utf-8")
    found = checked(text)
    assert "frequency: forecast report" in text
    assert "tirgn_last: no metrics.jsonl" in text
    assert "score" in "".join(found.text)
    assert [line.split()[0] for line in done.out.splitlines()[3:7]] == [
        "frequency",
        "tirgn_best",
        "tirgn_last",
        "recurrency",
    ]


def test_other_splits_and_data_are_named(world):
    Path("copy").mkdir()
    shutil.copytree("data/gdelt", "copy/gdelt")
    assert call("report", "--data", "copy/gdelt", "--split", "valid", "--examples", "0").code == 0
    text = Path("report.html").read_text(encoding="utf-8")
    checked(text)
    assert "Checkpoints were chosen or trained on valid" in text
    assert "copy/gdelt" in text
    assert "<h2>Examples</h2>" not in text


def test_recurrency_stays_out_where_it_cannot_be_fitted(world):
    done = call("report", "--split", "train", "--examples", "0", "--json")
    assert [model["name"] for model in done.json()["models"]] == ["tirgn_best", "frequency"]
    assert "the report goes without it: recurrency cannot be fitted before the train split" in done.err
    named = ("models/tkg/tirgn_best", "recurrency:0.02,0.9")
    content = call("report", *named, "--split", "train", "--examples", "0", "--json").json()
    assert [model["name"] for model in content["models"]] == ["tirgn_best", "recurrency:0.02,0.9", "frequency"]
    assert call("eval", "recurrency", "--split", "train").code == 2
    assert call("eval", "frequency", "--split", "train").code == 0


@pytest.mark.parametrize(
    ("args", "code", "saying"),
    [
        (("folder",), 1, "folder: no checkpoint here (no *_best.json)"),
        (("models/none",), 1, "models/none: no checkpoint here"),
        (("recurrency:1",), 2, "no baseline 'recurrency:1'"),
        (("--output", "folder"), 2, "--output folder: a folder; name a file"),
        (("--data", "folder"), 1, "folder: no dataset here"),
        (("--examples", "-1"), 2, "'--examples'"),
    ],
)
def test_refusals(world, args, code, saying):
    Path("folder").mkdir()
    before = listing(world)
    done = call("report", *args)
    assert (done.code, done.out) == (code, ""), done.err
    assert saying in done.error()
    assert listing(world) == before


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "setting"), [("light", 1), ("dark", 0)])
def test_a_browser_shows_it(world, scheme, setting):
    """Chromium, offline: the ground has the scheme's colour, and there is much on it."""
    from PIL import Image

    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser to look at the report with: none of {', '.join(BROWSERS)} is installed")
    assert call("report").code == 0
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,5200"]
    options += [f"--blink-settings=preferredColorScheme={setting}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--screenshot={world / 'shot.png'}"]
    page = (world / "report.html").as_uri()
    subprocess.run([browser, *options, page], check=True, capture_output=True, timeout=120)
    assert struct.unpack(">II", (world / "shot.png").read_bytes()[16:24]) == (1000, 5200)
    with Image.open(world / "shot.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    wanted = LIGHT if scheme == "light" else DARK
    ground = [int(wanted["page"][i : i + 2], 16) for i in (1, 3, 5)]
    assert pixels[5, 5].tolist() == ground
    column = pixels[:, 90:910]
    inked = (column != ground).any(axis=2)
    assert inked.mean() > 0.05
    assert inked[:4000].any(axis=1).reshape(-1, 200).any(axis=1).all()  # no empty stretch
    for name in ("c0", "c1", "c2"):  # every series is drawn
        colour = [int(wanted[name][i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == colour).all(axis=2).sum() > 100
    assert not (pixels[:, :80] != ground).any()  # nothing runs over the column
    assert not (pixels[:, 920:] != ground).any()
