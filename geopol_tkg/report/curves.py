"""What a training run wrote down of each epoch, read back from ``metrics.jsonl``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MEMORY = {"VRAM": "system/vram_epoch_high_mb", "RSS": "system/rss_epoch_high_mb"}


@dataclass(frozen=True)
class Curves:
    """Figures by epoch: points ``(epoch, value)``.

    Attributes:
        memory: highest of each epoch in MB, and memory_kind whose it is: the GPU's (VRAM) or the process's
            (RSS).
        num_damaged: lines that are no records, cut short by a crash.
    """

    loss: tuple[tuple[float, float], ...]
    valid_mrr: tuple[tuple[float, float], ...]
    memory: tuple[tuple[float, float], ...]
    memory_kind: str
    num_damaged: int


def read_curves(path: Path, model: str) -> Curves | None:
    """The epochs of a model in a file that may hold other models'; None where there are none."""
    if not path.is_file():
        return None
    records = [_record(line) for line in path.read_text(encoding="utf-8").splitlines()]
    own = [record for record in records if record and record["model"] == model and record["epoch"] > 0]
    if not own:
        return None
    kind = next((kind for kind, name in _MEMORY.items() if any(name in record for record in own)), "RSS")
    return Curves(
        loss=_points(own, "train/loss"),
        valid_mrr=_points(own, "eval/mrr"),
        memory=_points(own, _MEMORY[kind]),
        memory_kind=kind,
        num_damaged=records.count(None),
    )


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        return record if {"model", "epoch"} <= record.keys() else None
    except (ValueError, AttributeError):
        return None


def _points(records: Sequence[dict[str, Any]], name: str) -> tuple[tuple[float, float], ...]:
    return tuple((record["epoch"], record[name]) for record in records if name in record)
