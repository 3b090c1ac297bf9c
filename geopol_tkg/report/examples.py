"""The section of a report that shows forecasts in words."""

from collections.abc import Iterator
from html import escape

from geopol_tkg.report.content import Example, Report
from geopol_tkg.report.html import percent
from geopol_tkg.report.words import question


def examples(report: Report) -> Iterator[str]:
    """A few queries, the first model's answers, and what was true."""
    if not report.examples:
        return
    name = escape(report.models[0].name)
    yield "<h2>Examples</h2>"
    yield (
        f"<p>Queries drawn at random (seed {report.seed}), with the first answers of {name}. "
        "Who and whom mean: if it happens at all.</p>"
    )
    yield f'<ul class="examples">{"".join(_example(report, example) for example in report.examples)}</ul>'


def _example(report: Report, example: Example) -> str:
    ranks, row, labels = report.ranks, example.row, report.dataset.entities
    target = int(ranks.object[row])
    asked = question(report.dataset, int(ranks.subject[row]), int(ranks.relation[row]), int(ranks.time[row]))
    are_probabilities = not report.models[0].is_baseline
    items = []
    for place, (entity, value) in enumerate(example.answers, 1):
        shown = percent(value) if are_probabilities else f"score {value:.4g}"
        sign = " ✓ the answer" if entity == target else " ✓ also true" if entity in example.true else ""
        kind = ' class="true"' if sign else ""
        items.append(f"<li{kind}><span>{place}. {escape(labels[entity])}{sign}</span><span>{shown}</span></li>")
    answers = f"<ol>{''.join(items)}</ol>" if items else "<p>The model knows nothing of this query.</p>"
    seen = "seen before" if ranks.seen_before[row] else "never seen before"
    return (
        f'<li><p class="asked">{escape(asked)}</p>{answers}'
        f'<p class="outcome">The answer was <b>{escape(labels[target])}</b>, at rank {ranks.rank[row]:,g} of '
        f"{ranks.num_candidates[row]:,} candidates; {seen}.</p></li>"
    )
