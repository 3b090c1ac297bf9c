"""The sections of a report that show charts."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from geopol_tkg.evaluation.ranking import format_metric
from geopol_tkg.report import chart
from geopol_tkg.report.chart import Series
from geopol_tkg.report.content import Report, by_relation, over_time
from geopol_tkg.report.html import figure_of, legend
from geopol_tkg.report.words import relation_words, time_words

_RELATIONS = 12
_FEWEST = 20  # queries behind a point of the reliability curve
_PARTS = {
    "seen": "seen before",
    "unseen": "never seen before",
    "unseen_entity": "an entity not in training",
    "object": "asks for the object",
    "subject": "asks for the subject",
}
_TICKS = 6
_MEMORY = {
    "RSS": "RSS: resident memory of the process, which trained on a CPU.",
    "VRAM": "VRAM: on the GPU; the peak within a step where the epoch raised it, else what was in use between steps.",
}


def curves(report: Report) -> Iterator[str]:
    """Loss, valid MRR and memory by epoch, of the trained models."""
    trained = [(i, model) for i, model in enumerate(report.models) if model.checkpoint is not None]
    if not trained:
        return
    yield "<h2>Training</h2>"
    for _, model in trained:
        if model.curves is None:
            yield f"<p>{escape(model.name)}: no metrics.jsonl with its epochs beside the checkpoint.</p>"
    known = [(i, model.name, model.curves) for i, model in trained if model.curves is not None]
    if not known:
        return
    loss = [Series(name, i, found.loss) for i, name, found in known]
    mrr = [Series(name, i, found.valid_mrr) for i, name, found in known]
    memory = [Series(f"{name} ({found.memory_kind})", i, found.memory) for i, name, found in known]
    yield legend(report.models, [i for i, _, _ in known])
    yield _epoch_chart("Training loss", "loss, mean over queries (nats)", loss)
    yield _epoch_chart("MRR on the valid split", "MRR, by which the checkpoint is chosen", mrr)
    yield _epoch_chart("Memory", "highest in each epoch (MB)", memory, from_zero=True)
    kinds = sorted({found.memory_kind for _, _, found in known})
    yield f'<p class="soft">{" ".join(_MEMORY[kind] for kind in kinds)}</p>'
    if damaged := max(found.num_damaged for _, _, found in known):
        yield f"<p>{damaged} damaged line(s) of metrics.jsonl are left out.</p>"


def _epoch_chart(title: str, label: str, series: Sequence[Series], *, from_zero: bool = False) -> str:
    series = [one for one in series if one.points]
    if not series:
        return ""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    ends = "; ".join(f"{one.name}: {one.points[0][1]:.4g} at first, {one.points[-1][1]:.4g} at last" for one in series)
    drawn = chart.line_chart(
        series,
        slug=title.split()[0].lower(),
        title=f"{title} by epoch",
        description=f"{ends}.",
        x=chart.linear_axis("epoch", xs, integers=True, snug=True),
        y=chart.linear_axis(label, ys, from_zero=from_zero),
    )
    rows = [[escape(one.name), f"{x:g}", f"{y:.6g}"] for one in series for x, y in one.points]
    return f"<h3>{title}</h3>{figure_of(drawn, ['model', 'epoch', label], rows)}"


def relations(report: Report) -> Iterator[str]:
    """MRR of the relations with most queries."""
    count = by_relation(report.ranks)[0]
    most = [int(i) for i in np.argsort(-count, kind="stable")[:_RELATIONS] if count[i]]
    rows = [(relation_words(report.dataset, i), f"{count[i]:,}") for i in most]
    share = f"{100 * count[most].sum() / count.sum():.0f}\u00a0%"
    yield "<h2>By relation</h2>"
    yield f"<p>MRR of the {len(most)} relations with most queries, {share} of all; on the right, queries.</p>"
    values = [by_relation(model.ranks)[1][most].tolist() for model in report.models]
    yield _dots(report, "relations", "MRR by relation", rows, values)


def times(report: Report) -> Iterator[str]:
    """MRR in the course of the split."""
    axis = report.dataset.time_axis
    first, count, _ = over_time(report.ranks)
    yield "<h2>Over time</h2>"
    if len(first) == 1:
        yield "<p>The split has a single timestamp.</p>"
        return
    yield "<p>MRR in the course of the split. Timestamps are taken together where there are many.</p>"
    values = [over_time(model.ranks)[2].tolist() for model in report.models]
    xs = first.tolist()
    series = [
        Series(model.name, i, list(zip(xs, found, strict=True)), dashed=model.is_baseline)
        for i, (model, found) in enumerate(zip(report.models, values, strict=True))
    ]
    shown = xs[:: -(-len(xs) // _TICKS)]
    label = "time" if axis.granularity is None else "time (UTC)"
    x = chart.Axis(label, xs[0], xs[-1], tuple((time, time_words(axis, time, short=True)) for time in shown))
    y = chart.linear_axis("MRR", [value for found in values for value in found], from_zero=True)
    means = "; ".join(
        f"{model.name}: {min(found):.3f} to {max(found):.3f}"
        for model, found in zip(report.models, values, strict=True)
    )
    drawn = chart.line_chart(series, slug="time", title="MRR over time", description=f"{means}.", x=x, y=y)
    rows = [
        [escape(time_words(axis, time)), f"{count[i]:,}", *(format_metric(found[i]) for found in values)]
        for i, time in enumerate(xs)
    ]
    columns = ["from", "queries", *(model.name for model in report.models)]
    yield legend(report.models) + figure_of(drawn, columns, rows)


def strata(report: Report) -> Iterator[str]:
    """MRR of facts that were seen before, and of others."""
    yield "<h2>What was seen before, and what was not</h2>"
    yield (
        "<p>A fact was seen before if it was true at an earlier time that the model could see. Counting can foretell "
        "those; the others are where a model shows what it has learnt.</p>"
    )
    parts = [{**model.metrics["strata"], **model.metrics} for model in report.models]
    rows = [(words, f"{parts[0][key]['num_queries']:,}") for key, words in _PARTS.items()]
    values = [[found[key]["mrr"] for key in _PARTS] for found in parts]
    yield _dots(report, "strata", "MRR by what is known of a query", rows, values)


def _dots(
    report: Report, slug: str, title: str, rows: Sequence[tuple[str, str]], values: Sequence[Sequence[float | None]]
) -> str:
    """A dot plot of each model's values, with its legend and its figures."""
    series = [
        Series(model.name, i, [(value, row) for row, value in enumerate(found) if value is not None])
        for i, (model, found) in enumerate(zip(report.models, values, strict=True))
    ]
    x = chart.linear_axis("MRR", [value for one in series for value, _ in one.points], from_zero=True)
    best = report.models[0].name
    said = ", ".join(f"{name} {format_metric(value)}" for (name, _), value in zip(rows, values[0], strict=True))
    drawn = chart.dot_plot(rows, series, slug=slug, title=title, description=f"{best}: {said}.", x=x)
    columns = ["", "queries", *(model.name for model in report.models)]
    lines = [
        [escape(name), note, *(format_metric(found[i]) for found in values)] for i, (name, note) in enumerate(rows)
    ]
    return legend(report.models) + figure_of(drawn, columns, lines)


def calibration(report: Report) -> Iterator[str]:
    """Whether probabilities are what happens, where a model gives any."""
    yield "<h2>Calibration</h2>"
    measured = [(i, model.name, model.calibration) for i, model in enumerate(report.models) if model.calibration]
    scoring = [model.name for model in report.models if model.calibration is None]
    if scoring:
        yield f"<p>No probabilities, only scores: {escape(', '.join(scoring))}.</p>"
    if not measured:
        return
    yield (
        "<p>When a model gives its first answer 10\u00a0%, is it true one time in ten? Each point gathers the queries "
        "of one of 15 equal steps of probability. On the dotted line first answers come true as often as foretold; "
        "below it the model is too sure.</p>"
    )
    series, rows, said = [], [], []
    for i, name, found in measured:
        filled = [part for part in found["bins"] if part["count"]]
        points = [(part["confidence"], part["accuracy"]) for part in filled if part["count"] >= _FEWEST]
        series.append(Series(name, i, [point for point in points if point[1] > 0]))
        rows += [
            [escape(name), f"{part['count']:,}", f"{part['confidence']:.4f}", f"{part['accuracy']:.4f}"]
            for part in filled
        ]
        said.append(f"<li>{escape(name)}: {_calibration_words(found)}.</li>")
    yield f"<ul>{''.join(said)}</ul>"
    if not any(one.points for one in series):
        yield "<p>Too few queries for a curve.</p>"
        return
    lowest = min(min(point) for one in series for point in one.points)
    drawn = chart.line_chart(
        series,
        slug="calibration",
        title="Reliability: probability of first answers and share that came true",
        description="; ".join(f"{one.name}: {len(one.points)} points" for one in series) + ".",
        x=chart.probability_axis("probability given", lowest),
        y=chart.probability_axis("share that came true", lowest),
        diagonal=True,
    )
    columns = ["model", "queries", "probability given", "share that came true"]
    yield legend(report.models, [i for i, _, _ in measured]) + figure_of(drawn, columns, rows)
    yield (
        '<p class="soft">All queries, each with one target; no candidate is filtered out. '
        f"Groups of fewer than {_FEWEST} queries are not drawn; those without any hit have no place on these "
        "axes.</p>"
    )


def _calibration_words(found: dict[str, Any]) -> str:
    """The error of a model's probabilities, and what the temperature does."""
    if found["ece"] is None:
        return "no query that it knows subject and relation of"
    plain_error = found["uncalibrated"]["ece"]
    return (
        f"expected calibration error {found['ece']:.4f} over {found['num_queries']:,} queries at temperature "
        f"{found['temperature']:.4f}, {plain_error:.4f} without it"
    )
