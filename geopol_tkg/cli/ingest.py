"""``geopol-tkg ingest``: GDELT events to a dataset."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geopol_tkg.cli import _options as opt
from geopol_tkg.cli._app import JsonFlag, Output, QuietFlag, VerboseFlag, app, new_table
from geopol_tkg.config import DEFAULT_DATASET, SAMPLE_CONFIG, IngestConfig

if TYPE_CHECKING:
    from rich.table import Table

    from geopol_tkg.data.dataset import Dataset


@app.command("ingest")
def command(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Event files, folders, globs, s3:// or gs:// addresses, a quadruple folder, or 'sample' (in hours).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Dataset directory to write.")] = Path(DEFAULT_DATASET),
    entity: opt.EntityOption = opt.INGEST.entity,
    relation: opt.RelationOption = opt.INGEST.relation,
    granularity: opt.GranularityOption = opt.INGEST.granularity,
    time: opt.TimeOption = opt.INGEST.time,
    num_days: opt.NumDaysOption = opt.INGEST.num_days,
    max_events: opt.MaxEventsOption = opt.INGEST.max_events,
    min_mentions: opt.MinMentionsOption = opt.INGEST.min_mentions,
    min_entity_count: opt.MinEntityCountOption = opt.INGEST.min_entity_count,
    keep_self_pairs: opt.SelfPairsOption = opt.INGEST.keep_self_pairs,
    split: opt.SplitOption = opt.DEFAULT_SPLIT,
    seed: Annotated[int, typer.Option(help="Of the thinning by --max-events.", min=0)] = opt.INGEST.seed,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Turn GDELT event files into a dataset: labels, facts, time steps and the split.

    Reads parquet and CSV with BigQuery, gdeltPyR or GDELT column names, export files of GDELT 1.0 and
    2.0 (plain, .zip, .gz), processed events (entity1, relation, entity2, timestamp), and quadruple
    folders (train.txt, valid.txt, test.txt).
    """
    from geopol_tkg.cli._config import given, options_with_origins
    from geopol_tkg.data.sources import SAMPLE

    output = Output(json=json, quiet=quiet, verbose=verbose)
    config = IngestConfig(
        entity=entity,
        relation=relation,
        granularity=granularity,
        time=time,
        num_days=num_days,
        max_events=max_events,
        min_mentions=min_mentions,
        min_entity_count=min_entity_count,
        keep_self_pairs=keep_self_pairs,
        split=opt.parse_split(split),
        seed=seed,
    )
    if sources == [SAMPLE]:
        chosen = given(options_with_origins(context), vars(config))
        config = replace(SAMPLE_CONFIG, **{name: getattr(config, name) for name in chosen})
    dataset = ingest_to(sources, config, out, output)
    content = summary(dataset, out)
    output.result(content, f"Dataset {out}", _table(content))


def ingest_to(
    sources: list[str], config: IngestConfig, out: Path, output: Output, *, keep_other: bool = False
) -> "Dataset":
    """Ingest, write the dataset directory, and load it from there.

    Raises:
        DataError: with ``keep_other``, the directory holds a dataset of other events.
    """
    from geopol_tkg.data.dataset import FILES, Dataset, is_dataset
    from geopol_tkg.data.ingest import ingest
    from geopol_tkg.errors import DataError

    dataset = ingest(sources, config, progress=output.note)
    if keep_other and is_dataset(out) and not _paths(dataset) & _paths(Dataset.load(out)):
        raise DataError(f"{out}: a dataset of other events; run geopol-tkg ingest with --out, then train on that")
    written = {(out / name).resolve() for name in FILES}
    for path in _paths(dataset):
        if Path(path).resolve() in written:
            raise DataError(f"{path}: the dataset would be written over these events; give another --out")
    dataset.save(out)
    return Dataset.load(out)


def _paths(dataset: "Dataset") -> set[str]:
    return {source["path"] for source in dataset.details.get("sources", ())}


def summary(dataset: "Dataset", out: Path) -> dict[str, Any]:
    """The command's JSON."""
    rows = dataset.details["rows"]
    return {
        **dataset.counts(),
        "rows_read": rows["read"],
        "rows_dropped": rows["dropped"],
        "gaps": dataset.details["gaps"],
        "out": str(out),
    }


def _table(content: dict[str, Any]) -> "Table":
    table = new_table("", "")
    for name in ("facts", "entities", "relations", "timestamps", "train", "valid", "test", "rows_read"):
        table.add_row(name.replace("_", " "), f"{content[name]:,}")
    for reason, rows in content["rows_dropped"].items():
        table.add_row(f"dropped: {reason.replace('_', ' ')}", f"{rows:,}")
    gaps = content["gaps"]
    table.add_row("missing steps", f"{gaps['missing_steps']:,}")
    table.add_row("missing days", f"{gaps['num_missing_days']:,}")
    table.add_row("empty files", f"{len(gaps['empty_files']):,}")
    return table
