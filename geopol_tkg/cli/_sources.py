"""What ``train`` is pointed at: a dataset, events to ingest first, or nothing at all."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from geopol_tkg.cli._app import Output
from geopol_tkg.cli._options import SAMPLE_DATASET
from geopol_tkg.cli.ingest import ingest_to
from geopol_tkg.config import DEFAULT_DATASET, SAMPLE_CONFIG, IngestConfig
from geopol_tkg.data.dataset import Dataset, is_dataset
from geopol_tkg.data.sources import SAMPLE
from geopol_tkg.errors import UsageError


def open_or_ingest(source: str | None, config: IngestConfig, given: Collection[str], output: Output) -> Dataset:
    """A dataset directory as it is; events ingested into ``data/<name>`` first; by default the sample.

    Args:
        given: names of the options of ingest that the user set.

    Raises:
        UsageError: options of ingest contradict the dataset as it is.
    """
    if source is None and not is_dataset(Path(DEFAULT_DATASET)):
        output.note(f"NO DATASET given and none at {DEFAULT_DATASET}: training on the BUNDLED SAMPLE of GDELT")
        return _sample(config, given, output)
    if source == SAMPLE:
        return _sample(config, given, output)
    path = Path(source or DEFAULT_DATASET)
    if is_dataset(path):
        dataset = Dataset.load(path)
        _refuse_other_options(config, given, dataset.details.get("options") or {}, str(path))
        return dataset
    out = _place_for(path)
    output.note(f"{source}: not a dataset; ingesting it into {out}")
    return ingest_to([str(source)], config, out, output, keep_other=True)


def _sample(config: IngestConfig, given: Collection[str], output: Output) -> Dataset:
    _refuse_other_options(config, given, vars(SAMPLE_CONFIG), "the bundled sample")
    output.note(f"ingesting the sample into {SAMPLE_DATASET}")
    return ingest_to([SAMPLE], SAMPLE_CONFIG, SAMPLE_DATASET, output)


def _refuse_other_options(config: IngestConfig, given: Collection[str], made_with: dict[str, Any], what: str) -> None:
    """An option given now that the facts were not made with would be without effect."""
    for name in sorted(given):
        before = made_with.get(name)
        if getattr(config, name) != (tuple(before) if isinstance(before, list) else before):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} changes nothing about {what}: leave it out, or ingest the events again with it")


def _place_for(source: Path) -> Path:
    """``data/<name>`` of a file, folder, glob or address; never a folder that holds something else."""
    names = [part.split(".")[0] for part in source.parts if not set(part) & set("*?[")]
    name = next((name for name in reversed(names) if name.strip("/")), "events")
    place = Path("data") / name
    return place if is_dataset(place) or not place.exists() else place.with_name(f"{name}-dataset")
