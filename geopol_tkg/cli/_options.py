"""Options that more than one command takes, and the datasets and models that they name."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geopol_tkg.cli._app import Output
from geopol_tkg.config import (
    DEFAULT_DATASET,
    DEFAULT_MODEL_DIR,
    DeviceChoice,
    EntityKind,
    IngestConfig,
    RelationKind,
    TimeSource,
)
from geopol_tkg.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from geopol_tkg.data.dataset import Dataset

SAMPLE_DATASET = Path("data/gdelt-sample")
_INGEST_PANEL = "How events become facts"


def _option(flag: str, text: str) -> typer.models.OptionInfo:
    return typer.Option(flag, help=text, rich_help_panel=_INGEST_PANEL)


EntityOption = Annotated[EntityKind, _option("--entity", "Actor column that names an entity.")]
RelationOption = Annotated[RelationKind, _option("--relation", "Event column that names a relation.")]
GranularityOption = Annotated[str, _option("--granularity", "Width of a time step: 15min, 1h, 1d, 1w ...")]
TimeOption = Annotated[
    TimeSource,
    _option("--time", "DATEADDED (added), SQLDATE (event), or by the day the row was added (auto)."),
]
NumDaysOption = Annotated[int, _option("--num-days", "Keep the last days; 0 keeps all.")]
MaxEventsOption = Annotated[
    int, _option("--max-events", "Keep so many facts, thinned per timestamp in proportion; 0 keeps all.")
]
MinMentionsOption = Annotated[int, _option("--min-mentions", "Drop rows with fewer NumMentions.")]
MinEntityCountOption = Annotated[int, _option("--min-entity-count", "Drop entities in fewer distinct facts, one pass.")]
SelfPairsOption = Annotated[bool, _option("--keep-self-pairs", "Keep rows that name the same entity twice.")]
SplitOption = Annotated[str, _option("--split", "Shares of the timestamps for train, valid and test, in time order.")]
SplitNameOption = Annotated[str, typer.Option("--split", help="train, valid or test.")]
DeviceOption = Annotated[
    DeviceChoice, typer.Option("--device", help="auto takes a GPU where there is one; gpu never falls back.")
]

INGEST = IngestConfig()
DEFAULT_SPLIT = ",".join(f"{share:g}" for share in INGEST.split)


def parse_split(text: str) -> tuple[float, float, float]:
    """Three shares that sum to one."""
    try:
        train, valid, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--split {text!r}: wanted three numbers like 0.8,0.1,0.1") from error
    if min(train, valid, test) <= 0 or abs(train + valid + test - 1) > 1e-6:
        raise UsageError(f"--split {text!r}: wanted three positive shares that sum to 1")
    return train, valid, test


def choose_device(device: DeviceChoice) -> None:
    """Set up JAX for a device; must run before jax is imported."""
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache_dir()))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(1 << 30))


def _cache_dir() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "geopol-tkg" / "jax"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def default_dataset() -> Path:
    """The dataset that commands use when none is named: the default place, else the sample's."""
    from geopol_tkg.data.dataset import is_dataset

    default = Path(DEFAULT_DATASET)
    return SAMPLE_DATASET if not is_dataset(default) and is_dataset(SAMPLE_DATASET) else default


def open_dataset(path: Path | None) -> "Dataset":
    """Load the named dataset or the default one."""
    from geopol_tkg.data.dataset import Dataset

    return Dataset.load(path or default_dataset())


def default_checkpoint(output: Output) -> Path:
    """Stem of the best checkpoint in the default place, TiRGN first."""
    directory = Path(DEFAULT_MODEL_DIR)
    for name in ("tirgn_best", "regcn_best"):
        if (directory / f"{name}.json").is_file():
            output.note(f"checkpoint: {directory / name}")
            return directory / name
    raise CheckpointError(f"{directory}: no checkpoint here; run geopol-tkg train first or name one")
