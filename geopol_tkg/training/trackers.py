"""Where metrics go: TensorBoard and metrics.jsonl always, Weights & Biases when asked for."""

import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geopol_tkg.data.files import replace_file

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_WANDB_TIMEOUT_S = 30.0


class TrainingLogger:
    """Writes scalars under the contract's metric names, by epoch.

    Args:
        run_dir: TensorBoard's folder.
        metrics_path: ``metrics.jsonl``; lines of other models in it are kept.
        first_epoch: later records of an interrupted run are dropped before going on from here.
        wandb_run: a started ``wandb`` run, or None.
        warn: told once, in one line, when Weights & Biases fails; the run goes on without it.
    """

    def __init__(
        self,
        run_dir: Path,
        metrics_path: Path,
        *,
        model: str,
        first_epoch: int,
        wandb_run: Any | None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        if first_epoch == 1:
            for old in run_dir.glob("events.out.tfevents.*"):
                old.unlink()
        self._writer = _summary_writer(
            str(run_dir),
            purge_step=first_epoch if first_epoch > 1 else None,
            flush_secs=5,
            filename_suffix=f".{os.getpid()}.{time.time_ns()}",
        )
        self._is_new = first_epoch == 1
        self._model = model
        self._next_epoch = first_epoch
        self._metrics_path = metrics_path
        self._wandb_run = wandb_run
        self._warn = warn
        _drop_records(metrics_path, model, first_epoch)

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record an epoch everywhere, once: a run that stops between epochs tells of the last one again."""
        if epoch < self._next_epoch:
            return
        self._next_epoch = epoch + 1
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
        self._append(epoch, metrics)
        self._to_wandb(lambda run: run.log(dict(metrics), step=epoch))

    def log_once(self, metrics: Mapping[str, float]) -> None:
        """Record figures that do not change, as step 0; a run that goes on has recorded them."""
        if self._next_epoch > 1:
            return
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, 0)
        self._writer.flush()
        self._append(0, metrics)
        self._to_wandb(lambda run: run.summary.update(dict(metrics)))

    def describe(self, content: Mapping[str, Any]) -> None:
        """Settings and system as text, once; Weights & Biases has them from its start."""
        if self._is_new:
            self._writer.add_text("config", _as_text(content), 0)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Record the summary as text and flush everything."""
        self._writer.add_text("summary", _as_text(summary), self._next_epoch - 1)
        self._writer.close()
        self._to_wandb(lambda run: run.summary.update(dict(summary)))
        self._to_wandb(lambda run: run.finish(exit_code=int(summary["status"] == "failed")))

    def _append(self, epoch: int, metrics: Mapping[str, float]) -> None:
        record = {"model": self._model, "epoch": epoch, "wall_time": round(time.time(), 3), **metrics}
        with self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def _to_wandb(self, send: Callable[[Any], None]) -> None:
        if self._wandb_run is None:
            return
        try:
            send(self._wandb_run)
        except Exception as error:  # noqa: BLE001 - a tracker must never stop training
            self._wandb_run = None
            if self._warn is not None:
                self._warn(f"warning: Weights & Biases failed, going on without it: {' '.join(str(error).split())}")


def _drop_records(path: Path, model: str, first_epoch: int) -> None:
    """Keep other models' lines and this model's epochs before ``first_epoch``."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [f"{line}\n" for line in lines if _is_kept(line, model, first_epoch)]
    with replace_file(path) as file:
        file.write("".join(kept).encode())


def _is_kept(line: str, model: str, first_epoch: int) -> bool:
    """Whether a line is a whole record, not cut short by a crash, that stays."""
    try:
        record = json.loads(line)
        return record["model"] != model or (first_epoch > 1 and record["epoch"] < first_epoch)
    except (ValueError, KeyError, TypeError):
        return False


def _summary_writer(*arguments: Any, **options: Any) -> "SummaryWriter":
    """A writer; tensorboardX is kept from loading torch (over a second), which it has no use for here."""
    is_loaded = "torch" in sys.modules
    if not is_loaded:
        sys.modules["torch"] = None  # type: ignore[assignment]  # None is how Python is told to find no such module
    try:
        from tensorboardX import SummaryWriter
    finally:
        if not is_loaded:
            del sys.modules["torch"]
    return SummaryWriter(*arguments, **options)


def _as_text(content: Mapping[str, Any]) -> str:
    """For TensorBoard, which shows Markdown."""
    return "```json\n" + json.dumps(content, indent=2) + "\n```"


def system_description(device: Any) -> dict[str, Any]:
    """Versions and the machine."""
    packages = ("geopol-tkg", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": device.device_kind,
    }


def start_wandb(run_dir: Path, description: dict[str, Any], *, resume: bool) -> Any:
    """Start a Weights & Biases run named like the run's folder, or go on with it; raises what ``wandb`` raises.

    Project, entity, group, tags and notes are those of wandb's own variables (``WANDB_PROJECT`` ...).
    """
    import wandb

    id_path = run_dir / "wandb-id"
    if not (resume and id_path.exists()):
        id_path.write_text(secrets.token_hex(4), encoding="utf-8")
    options: dict[str, Any] = {"console": "off", "silent": True, "init_timeout": _WANDB_TIMEOUT_S}
    if "finish_timeout" in getattr(wandb.Settings, "model_fields", {}):  # not in older ones
        options["finish_timeout"] = _WANDB_TIMEOUT_S
    values = {name: entry["value"] for name, entry in description["options"].items()}
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "geopol-tkg"),
        name=run_dir.name,
        id=id_path.read_text(encoding="utf-8"),
        resume="allow" if resume else None,
        dir=str(run_dir),
        config={**values, "dataset": description["dataset"], "system": description["system"]},
        settings=wandb.Settings(**options),
    )
