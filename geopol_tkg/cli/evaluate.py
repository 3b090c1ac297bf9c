"""``geopol-tkg eval``: a model's MRR and Hits@K on a split."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geopol_tkg.cli import _options as opt
from geopol_tkg.cli._app import (
    DataOption,
    JsonFlag,
    Output,
    QuietFlag,
    VerboseFlag,
    app,
    new_table,
    plain,
)
from geopol_tkg.cli._signals import StopSignals
from geopol_tkg.config import FilterName, Protocol, SplitName

if TYPE_CHECKING:
    from rich.table import Table

    from geopol_tkg.data.dataset import Dataset
    from geopol_tkg.evaluation.results import Ranks

REMARKS = ("unknown_entities", "unknown_relations", "overlaps_training")  # where there is something to remark


@app.command("eval")
def command(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint; A+B for the mean of several checkpoints' probabilities; or a baseline by name: "
            "recurrency (fitted on valid), recurrency:LAMBDA,ALPHA, frequency. "
            "(default: the newest best checkpoint in models/tkg)",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    split: Annotated[SplitName, typer.Option(help="Which split.")] = "test",
    protocol: Annotated[
        Protocol,
        typer.Option(help="single-step sees all facts before a query, multi-step none of the split."),
    ] = "single-step",
    filter: Annotated[
        FilterName,
        typer.Option(help="Other true answers taken out: of the same time, of any time (static), none (raw)."),
    ] = "time",
    ranks: Annotated[Path | None, typer.Option(help="Parquet file for one row per query.")] = None,
    device: opt.DeviceOption = "auto",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Measure a model: all queries of a split, both directions, time-aware filter, realistic ties."""
    output = Output(json=json, quiet=quiet, verbose=verbose)
    opt.require_file(ranks, "--ranks")
    opt.choose_device(device)
    name = checkpoint or str(opt.default_checkpoint(output))
    dataset = None if data is None else opt.open_dataset(data)
    from geopol_tkg.evaluation.ranking import overlap_lines

    result, content = evaluate_named(
        name, dataset=dataset, split=split, protocol=protocol, filter_name=filter, output=output
    )
    title = f"{content['model']} on {split}, {protocol}, {filter} filter, both directions"
    lines = (*_calibration_lines(content["calibration"]), *overlap_lines([content | {"name": content["model"]}]))
    output.result(content, title, _table(content), *lines)
    if ranks is not None:
        _write_ranks(result, ranks)
        output.note(f"{len(result.rank):,} ranks in {ranks}")


def evaluate_named(
    name: str,
    *,
    dataset: "Dataset | None",
    split: SplitName,
    protocol: Protocol,
    filter_name: FilterName,
    output: Output,
) -> tuple["Ranks", dict[str, Any]]:
    """Rank a checkpoint or baseline by name; its ranks and the command's JSON."""
    from geopol_tkg.cli._models import open_model
    from geopol_tkg.cli._progress import Heartbeat
    from geopol_tkg.evaluation.evaluator import Interrupted, evaluate

    with StopSignals() as signals:
        model = open_model(name, dataset, split=split, protocol=protocol, output=output)
        try:
            result = evaluate(
                model.forecaster,
                model.dataset,
                split=split,
                filter=filter_name,
                temperature=model.temperature,
                known_entities=model.known_entities,
                should_stop=lambda: bool(signals),
                progress=Heartbeat(output, f"ranking {model.name}"),
            )
        except Interrupted:
            raise typer.Exit(signals.exit_code) from None
    content = {
        "model": model.name,
        "split": split,
        "protocol": protocol,
        "filter": filter_name,
        **result.metrics(),
        "calibration": None if result.probabilities is None else result.probabilities.calibration(),
        "dataset": model.dataset.content_hash,
        **model.remarks,
    }
    return result, content


def _table(content: dict[str, Any]) -> "Table":
    """Metrics over all queries, by direction and by stratum."""
    from geopol_tkg.evaluation.ranking import METRICS, format_metric

    table = new_table("queries", "count", *METRICS)
    rows = {"all": content, "object (s, r, ?)": content["object"], "subject (?, r, o)": content["subject"]}
    rows |= {name.replace("_", " "): part for name, part in content["strata"].items()}
    for name, part in rows.items():
        table.add_row(plain(name), f"{part['num_queries']:,}", *(format_metric(part[m]) for m in METRICS))
    return table


def _calibration_lines(calibration: dict[str, Any] | None) -> tuple[str, ...]:
    """What the temperature does; nothing where there are no probabilities."""
    if calibration is None or calibration["nll"] is None:
        return ()
    plain_values = calibration["uncalibrated"]
    return (
        f"calibration: ECE {calibration['ece']:.4f}, NLL {calibration['nll']:.4f} at temperature "
        f"{calibration['temperature']:.4f}; {plain_values['ece']:.4f} and {plain_values['nll']:.4f} without it",
    )


def _write_ranks(ranks: "Ranks", path: Path) -> None:
    import pyarrow.parquet as pq

    from geopol_tkg.data.files import replace_file

    with replace_file(path) as file:
        pq.write_table(ranks.to_table(), file, compression="zstd")
