"""Pieces of HTML: tables, legends, figures as numbers. Texts are escaped, but the cells of a table."""

from collections.abc import Sequence
from html import escape

from geopol_tkg.report import chart
from geopol_tkg.report.content import Model


def legend(models: Sequence[Model], numbers: Sequence[int] | None = None) -> str:
    """Marker and name of the models, or of those with these numbers."""
    chosen = range(len(models)) if numbers is None else numbers
    items = []
    for i in chosen:
        model = models[i]
        kind = f"s{i % chart.COLOURS}" + (" dashed" if model.is_baseline else "")
        sample = f'<g class="{kind}"><polyline points="0,6 30,6"/>{chart.marker(i, 15, 6)}</g>'
        items.append(f'<li><svg viewBox="0 0 30 12" aria-hidden="true">{sample}</svg>{escape(model.name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def figure_of(drawn: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A chart, and its figures for those who cannot or would not read it off."""
    return (
        f'<figure><div class="wide">{drawn}</div></figure>'
        f"<details><summary>Figures</summary>{table(columns, rows)}</details>"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Column names are escaped here, cells by the caller."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def small(text: str) -> str:
    """A second line in a cell."""
    return f"<small>{escape(text)}</small>"


def signed(value: float | None) -> str:
    """With its sign, minus being a minus."""
    return f"{value:+.4f}".replace("-", "−")


def percent(share: float) -> str:
    """A probability for people."""
    return f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"
