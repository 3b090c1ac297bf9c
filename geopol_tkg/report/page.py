"""The report as one HTML page: nothing is fetched, nothing runs; every label is escaped."""

import json
from collections.abc import Iterator
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path

import numpy as np

from geopol_tkg.evaluation.compare import FEW_TIMESTAMPS, paired_difference
from geopol_tkg.evaluation.ranking import METRICS, format_metric, overlap_lines
from geopol_tkg.report.content import Model, Report, eval_command, train_command
from geopol_tkg.report.examples import examples
from geopol_tkg.report.figures import calibration, curves, relations, strata, times
from geopol_tkg.report.html import signed, small, table
from geopol_tkg.report.style import STYLE
from geopol_tkg.report.words import time_words

# nothing may be fetched, not even by a label that slipped through
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Report, *, made: datetime) -> str:
    """The whole file."""
    name = report.models[0].name
    sections = (_comparison, curves, relations, times, strata, calibration, examples, _limits, _reproduction, _sources)
    body = "\n".join(part for section in (_head, *sections) for part in section(report))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(name)}: forecast report</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n{body}\n"
        f'<p class="soft">Made on {made.day} {made:%B %Y} by geopol-tkg {escape(version("geopol-tkg"))}.</p>\n'
        f"</main>\n</body>\n</html>\n"
    )


def verdict(report: Report) -> str:
    """The first model against the best of the others, in a sentence; and which of them have learned the answers."""
    first, *others = report.models
    rows = [model.metrics | {"name": model.name} for model in report.models]
    learned = "".join(f" {line}." for line in overlap_lines(rows))
    if not others:
        return learned.strip()
    best = max(others, key=lambda model: model.metrics["mrr"])
    found = paired_difference(first.ranks, best.ranks)
    delta, low, high = found["delta"] or 0.0, found["ci_low"], found["ci_high"]
    side = "above" if delta >= 0 else "below"
    against = (
        f"{first.name} reaches an MRR of {format_metric(first.metrics['mrr'])}, {abs(delta):.4f} {side} {best.name}, "
        "the best of the others"
    )
    if low is None or high is None:
        return f"{against}; a single timestamp gives no interval.{learned}"
    told = "this split does not tell them apart" if low <= 0 <= high else "it is better" if low > 0 else "it is worse"
    return f"{against} (95\u00a0% interval of the difference {signed(low)} to {signed(high)}): {told}.{learned}"


def _head(report: Report) -> Iterator[str]:
    model, dataset, ranks = report.models[0], report.dataset, report.ranks
    times = np.unique(ranks.time)
    first, last = (time_words(dataset.time_axis, int(time)) for time in times[[0, -1]])
    yield f"<h1>{escape(model.name)}: forecast report</h1>"
    if sentence := verdict(report):
        yield f'<p class="lead">{escape(sentence)}</p>'
    values = [("MRR", "mrr"), ("Hits@1", "hits_at_1"), ("Hits@3", "hits_at_3"), ("Hits@10", "hits_at_10")]
    tiles = [
        f'<div class="tile"><b>{format_metric(model.metrics[key])}</b><span>{name}</span></div>' for name, key in values
    ]
    yield f'<div class="tiles">{"".join(tiles)}</div>'
    counts = dataset.counts()
    step = f", steps of {dataset.time_axis.granularity}" if dataset.time_axis.granularity else ""
    facts = {
        "Model": _described(model),
        "Dataset": f"{dataset.path or 'given'}: {counts['facts']:,} facts, {counts['entities']:,} entities, "
        f"{counts['relations']:,} relations, {counts['timestamps']:,} timestamps{step}",
        "Split": f"{report.split}: {len(ranks.rank):,} queries at {len(times):,} timestamps; {first} to {last}",
        "Protocol": "single-step: facts before a query's time are visible, also those of the split; parameters are "
        "frozen. Both directions: the object and the subject of every fact are asked for",
        "Filter": "time: other true answers of the same query and time are no candidates. Equal scores take the mean "
        "of the best and the worst place",
    }
    rows = [f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()]
    yield f'<dl class="facts">{"".join(rows)}</dl>'


def _described(model: Model) -> str:
    if model.checkpoint is None:
        kind = "a baseline that is not trained" if model.is_baseline else "the mean of their probabilities"
        return f"{model.name}, {kind}"
    config = model.checkpoint.config
    sizes = f"embedding {config.embedding_dim}, {config.num_layers} layers, history of {config.history_length} steps"
    if config.model_type == "counts":
        sizes = f"half-lives of {', '.join(f'{life:g}' for life in config.half_lives)} steps"
        sizes += f", {config.num_countries} countries" if config.num_countries else ""
    elif config.count_prior:
        sizes += ", beside counts"
    return f"{model.run}: {config.model_type}, {sizes}; epoch {model.checkpoint.epoch}"


def _comparison(report: Report) -> Iterator[str]:
    yield "<h2>Comparison</h2>"
    yield (
        "<p>MRR is the mean of 1 / rank of the true answers, 1 at best; Hits@K the share among the first K. Intervals "
        "hold 95\u00a0% of bootstrap samples of the timestamps; differences are paired query by query.</p>"
    )
    first, *others = report.models
    columns = ["model", "MRR", "Hits@1", "Hits@3", "Hits@10", "mean rank"]
    rows = [[_name_cell(first), *_metric_cells(first), *(["–", "–"] if others else [])]]
    for model in others:
        found = paired_difference(first.ranks, model.ranks)
        low, high = found["ci_low"], found["ci_high"]
        between = small("no interval" if low is None else f"{signed(low)} to {signed(high)}")
        rows.append(
            [_name_cell(model), *_metric_cells(model), f"{signed(found['delta'])}{between}", f"{found['p_value']:.4f}"]
        )
    if others:
        columns += [f"MRR of {first.name} minus it", "p"]
    yield table(columns, rows)
    timestamps = len(np.unique(report.ranks.time))
    if timestamps < FEW_TIMESTAMPS:
        yield f"<p>Only {timestamps} timestamps to resample: intervals and p are rough.</p>"
    yield from (f"<p>{escape(model.name)}: {escape(model.note)}.</p>" for model in report.models if model.note)


def _name_cell(model: Model) -> str:
    trained = model.checkpoint
    kind = "baseline" if model.is_baseline else "ensemble"
    if trained is not None:
        kind = f"{trained.config.model_type}, epoch {trained.epoch}"
    return f"{escape(model.name)}{small(kind)}"


def _metric_cells(model: Model) -> list[str]:
    cells = [format_metric(model.metrics[name]) for name in METRICS]
    between = model.interval
    cells[0] += small("no interval" if between is None else f"{between[0]:.4f} to {between[1]:.4f}")
    return cells


def _limits(report: Report) -> Iterator[str]:
    limits = [
        "A forecast is conditional: who, if the event takes place. Whether it does is not forecast.",
        "Intervals are about these checkpoints on this split. Other seeds, other months and other sources vary too.",
        "Figures can be compared with others on the same dataset, split, protocol and filter only.",
        "All entities of the dataset are candidates, also those that first occur in the split.",
    ]
    if report.is_gdelt:
        limits.append(
            "Events are coded by machine from news: a fact says that something was reported, not that it happened."
        )
    if report.split != "test":
        limits.append(f"Checkpoints were chosen or trained on {report.split}: these figures flatter them.")
    yield f"<h2>Limits</h2><ul>{''.join(f'<li>{escape(text)}</li>' for text in limits)}</ul>"


def _reproduction(report: Report) -> Iterator[str]:
    yield "<h2>How to get these figures again</h2>"
    trainings = [
        train_command(model.checkpoint, Path(model.run).parent)
        for model in report.models
        if model.checkpoint is not None
    ]
    evaluations = [eval_command(model, report) for model in report.models]
    yield f"<pre>{escape(chr(10).join([*trainings, *evaluations, report.command]))}</pre>"
    yield f'<p class="soft">Content of the dataset: sha256 <code>{report.dataset.content_hash}</code>.</p>'
    for model in report.models:
        if model.checkpoint is not None:
            settings = {**vars(model.checkpoint.config), **model.checkpoint.settings}
            text = escape(json.dumps(settings, indent=1, ensure_ascii=False))
            yield f"<details><summary>All settings of {escape(model.name)}</summary><pre>{text}</pre></details>"


def _sources(report: Report) -> Iterator[str]:
    if report.is_gdelt:
        yield (
            '<h2>Source of the data</h2><p>The GDELT Project, <a href="https://www.gdeltproject.org/">'
            "https://www.gdeltproject.org/</a>; free for any use and redistribution with this citation and link. "
            "K. Leetaru and P. Schrodt, “GDELT: Global Data on Events, Location, and Tone, 1979–2012”, ISA Annual "
            "Convention, 2013.</p>"
        )
