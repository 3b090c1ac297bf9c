"""Options that more than one command takes, and the places that they stand for by default."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geopol_tkg.cli._app import Output
from geopol_tkg.config import (
    DEFAULT_DATASET,
    DEFAULT_MODEL_DIR,
    DeviceChoice,
    EntityKind,
    IngestConfig,
    ModelConfig,
    RelationKind,
    TimeSource,
)
from geopol_tkg.errors import CheckpointError, UsageError, no_gpu

if TYPE_CHECKING:
    from geopol_tkg.data.dataset import Dataset

SAMPLE_DATASET = Path("data/gdelt-sample")
_LARGEST = 2**31 - 1
_INGEST_PANEL = "How events become facts"


def finite(value: float) -> float:
    """Callback of options that are numbers: neither NaN nor infinite."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def require_file(path: Path | None, flag: str) -> None:
    """Refuse to write a file where a folder is, or over a part of a dataset or a checkpoint, before the work for it.

    Raises:
        UsageError: there is one.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{flag} {path}: a folder; name a file")
    if (whole := _whole_of(path.resolve())) is not None:
        raise UsageError(f"{flag} {path}: belongs to the {whole} there; name another file")


def _whole_of(path: Path) -> str | None:
    """What a file is a part of: a dataset, a checkpoint, or nothing."""
    from geopol_tkg.data.dataset import FILES, is_dataset

    if path.name in (*FILES, "history.npz") and is_dataset(path.parent):
        return "dataset"
    is_pair = path.suffix in (".json", ".npz") and all(path.with_suffix(end).is_file() for end in (".json", ".npz"))
    return "checkpoint" if is_pair else None


def positive(value: float) -> float:
    """Callback of options that are numbers above 0."""
    if not finite(value) > 0:
        raise typer.BadParameter(f"{value} is not above 0")
    return value


def _granularity(text: str) -> str:
    from geopol_tkg.data.time_axis import granularity_seconds

    try:
        granularity_seconds(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    return text


def _option(flag: str, text: str, **more: Any) -> typer.models.OptionInfo:
    return typer.Option(flag, help=text, rich_help_panel=_INGEST_PANEL, **more)


EntityOption = Annotated[EntityKind, _option("--entity", "Actor column that names an entity.")]
RelationOption = Annotated[RelationKind, _option("--relation", "Event column that names a relation.")]
GranularityOption = Annotated[
    str, _option("--granularity", "Width of a time step: 15min, 1h, 1d, 1w ...", callback=_granularity)
]
TimeOption = Annotated[
    TimeSource,
    _option("--time", "DATEADDED (added), SQLDATE (event), or by the day the row was added (auto)."),
]
NumDaysOption = Annotated[int, _option("--num-days", "Keep the last days; 0 keeps all.", min=0, max=_LARGEST)]
MaxEventsOption = Annotated[
    int,
    _option(
        "--max-events", "Keep so many facts, thinned per timestamp in proportion; 0 keeps all.", min=0, max=_LARGEST
    ),
]
MinMentionsOption = Annotated[int, _option("--min-mentions", "Drop rows with fewer NumMentions.", min=0, max=_LARGEST)]
MinEntityCountOption = Annotated[
    int, _option("--min-entity-count", "Drop entities in fewer distinct facts, one pass.", min=0, max=_LARGEST)
]
SelfPairsOption = Annotated[bool, _option("--keep-self-pairs", "Keep rows that name the same entity twice.")]
SplitOption = Annotated[str, _option("--split", "Shares of the timestamps for train, valid and test, in time order.")]
DeviceOption = Annotated[
    DeviceChoice, typer.Option("--device", help="auto takes a GPU where there is one; gpu never falls back.")
]

INGEST = IngestConfig()
DEFAULT_HALF_LIVES = ",".join(f"{life:g}" for life in ModelConfig.half_lives)
DEFAULT_SPLIT = ",".join(f"{share:g}" for share in INGEST.split)


def parse_split(text: str) -> tuple[float, float, float]:
    """Three shares that sum to one."""
    try:
        train, valid, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--split {text!r}: wanted three numbers like 0.8,0.1,0.1") from error
    if not (min(train, valid, test) > 0 and abs(train + valid + test - 1) < 1e-6):
        raise UsageError(f"--split {text!r}: wanted three positive shares that sum to 1")
    return train, valid, test


def parse_half_lives(text: str) -> tuple[float, ...]:
    """Distinct positive numbers of steps."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--half-lives {text!r}: wanted numbers of steps like {DEFAULT_HALF_LIVES}") from error
    if not all(0 < life < float("inf") for life in found) or len(set(found)) < len(found):
        raise UsageError(f"--half-lives {text!r}: wanted distinct positive numbers of steps")
    return found


def choose_device(device: DeviceChoice) -> None:
    """Set up JAX for a device; must run before jax is imported.

    Raises:
        TrainingError: a GPU was asked for and there is none.
    """
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if (cache := _cache_dir()) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(1 << 30))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if device == "gpu":
        _require_gpu("--device gpu")
    elif (platforms := os.environ.get("JAX_PLATFORMS", "")) not in ("", "cpu"):
        _require_gpu(f"JAX_PLATFORMS={platforms}")


def _require_gpu(asked: str) -> None:
    import jax

    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS=cuda without a GPU
        found = str(error) or "no device"
    if found != "gpu":
        raise no_gpu(asked, found)


def _cache_dir() -> Path | None:
    """Where compiled programs are kept; None where nothing can be written."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = root / "geopol-tkg" / "jax"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # read-only, or nobody's home
        return None
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
    """Stem of the best checkpoint in the default place; where there are several, of the model written last."""
    directory = Path(DEFAULT_MODEL_DIR)
    if found := list(directory.glob("*_best.json")):
        newest = max(found, key=lambda path: path.stat().st_mtime).with_suffix("")
        output.note(f"checkpoint: {newest}")
        return newest
    raise CheckpointError(f"{directory}: no checkpoint here; run geopol-tkg train first or name one")
