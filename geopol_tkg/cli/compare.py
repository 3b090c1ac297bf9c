"""``geopol-tkg compare``: models side by side on the same queries, with a gate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geopol_tkg.cli import _options as opt
from geopol_tkg.cli._app import DataOption, JsonFlag, Output, QuietFlag, VerboseFlag, app, new_table, plain
from geopol_tkg.config import SplitName
from geopol_tkg.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from geopol_tkg.data.dataset import Dataset
    from geopol_tkg.evaluation.results import Ranks


@app.command("compare")
def command(
    models: Annotated[
        list[str], typer.Argument(help="Checkpoints, ensembles A+B and baselines (recurrency, frequency), two or more.")
    ],
    data: DataOption = None,
    split: Annotated[SplitName, typer.Option(help="Which split.")] = "test",
    pass_threshold: Annotated[
        float,
        typer.Option(callback=opt.finite, help="Least difference of MRR, first minus last, in percent of the last's."),
    ] = -5.0,
    output_path: Annotated[Path, typer.Option("--output", help="JSON report.")] = Path("comparison_report.json"),
    device: opt.DeviceOption = "auto",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Compare models on the same queries; exits with 3 when the first falls below the threshold.

    The difference of the first and the last model is paired over queries; its confidence interval and
    p-value resample timestamps.
    """
    from geopol_tkg.data.files import write_json

    output = Output(json=json, quiet=quiet, verbose=verbose)
    if len(models) < 2:
        raise UsageError("compare needs two models or more")
    opt.require_file(output_path, "--output")
    opt.choose_device(device)
    dataset = None if data is None else opt.open_dataset(data)
    content = compare(models, dataset=dataset, split=split, pass_threshold=pass_threshold, output=output)
    title = f"{content['num_queries']:,} queries of {split}, single-step, time filter, both directions"
    output.result(content, title, _table(content), "", *_verdict(content))
    write_json(output_path, content)
    output.note(f"report: {output_path}")
    if not content["passed"]:
        raise typer.Exit(3)


def compare(
    models: list[str], *, dataset: "Dataset | None", split: SplitName, pass_threshold: float, output: Output
) -> dict[str, Any]:
    """Evaluate every model and compare the first with the last: the command's JSON."""
    from geopol_tkg.cli._models import shared_dataset
    from geopol_tkg.cli.evaluate import REMARKS, evaluate_named
    from geopol_tkg.evaluation.compare import gate, paired_difference
    from geopol_tkg.evaluation.ranking import METRICS

    all_ranks: list[Ranks] = []
    rows = []
    if dataset is None:
        dataset = shared_dataset(models)
    for name in models:
        output.note(f"evaluating {name}")
        ranks, metrics = evaluate_named(
            name, dataset=dataset, split=split, protocol="single-step", filter_name="time", output=output
        )
        all_ranks.append(ranks)
        kept = (*METRICS, "strata", *(name for name in REMARKS if name in metrics))
        rows.append({"name": name, **{key: metrics[key] for key in kept}})
    difference: dict[str, Any] = paired_difference(all_ranks[0], all_ranks[-1])
    return {
        "models": rows,
        **difference,
        "pass_threshold": pass_threshold,
        "passed": gate(difference["delta_pct"], pass_threshold),
        "split": split,
        "protocol": "single-step",
        "filter": "time",
    }


def _table(content: dict[str, Any]) -> "Table":
    from geopol_tkg.evaluation.ranking import METRICS, format_metric

    table = new_table("model", *METRICS, "MRR seen", "MRR unseen")
    for row in content["models"]:
        strata = [row["strata"][name]["mrr"] for name in ("seen", "unseen")]
        values = [row[name] for name in METRICS] + strata
        table.add_row(plain(row["name"]), *(format_metric(value) for value in values))
    return table


def _verdict(content: dict[str, Any]) -> tuple[str, ...]:
    from geopol_tkg.evaluation.compare import FEW_TIMESTAMPS
    from geopol_tkg.evaluation.ranking import overlap_lines

    few = content["num_timestamps"]
    caution = (f"only {few} timestamps to resample: interval and p are rough",) if few < FEW_TIMESTAMPS else ()
    first, last = (content["models"][i]["name"] for i in (0, -1))
    interval = "no interval (one timestamp)"
    if content["ci_low"] is not None:
        interval = f"95 % interval {content['ci_low']:+.4f} to {content['ci_high']:+.4f}"
    return (
        f"MRR of {first} minus {last}: {content['delta']:+.4f} ({content['delta_pct']:+.1f} %)",
        f"{interval}, p = {content['p_value']:.4f}; threshold {content['pass_threshold']:+.1f} %: "
        f"{'passed' if content['passed'] else 'NOT PASSED'}",
        *caution,
        *overlap_lines(content["models"]),
    )
