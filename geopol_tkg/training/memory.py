"""Memory in use and memory needed: the device's where it can tell, the machine's on a CPU."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from geopol_tkg.config import ModelConfig, TrainConfig

_MB = 1 << 20
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class StepMemory:
    """What the optimiser steps of one shape need.

    Attributes:
        neighbours: of all entities of a step's largest snapshot; None of a model that reads none.
        argument_bytes: the state and the data, there from the start.
        temporary_bytes: more while a step runs.
    """

    steps: int
    queries: int
    neighbours: int | None
    argument_bytes: int
    temporary_bytes: int

    @classmethod
    def of(cls, program: Any, *, steps: int, queries: int, neighbours: int | None) -> "StepMemory":
        """By the plan of the compiler, of a compiled step."""
        analysis = program.memory_analysis()
        kept = max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0)
        return cls(steps, queries, neighbours, analysis.argument_size_in_bytes, analysis.temp_size_in_bytes + kept)


def most_growth(first: Any, other: Any) -> float:
    """How many times as large as in one step shape a size is in another, of the size that grows most."""
    sizes = zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    return max(own / max(size, 1) for size, own in sizes)


def free_bytes(device: jax.Device) -> int | None:
    """Memory that this process can still take; None where nobody tells (a CPU without /proc)."""
    if device.platform != "cpu":
        statistics = device.memory_stats() or {}
        return statistics["bytes_limit"] - statistics["bytes_in_use"] if "bytes_limit" in statistics else None
    known = [free for free in (_proc_bytes("MemAvailable"), _cgroup_free()) if free is not None]
    return min(known, default=None)


def too_little_memory(
    step: StepMemory, free: int, device: jax.Device, *, model: ModelConfig, config: TrainConfig
) -> str:
    """One line for a step that cannot fit: what it needs, what there is, what lowers it."""
    advice = _advice(config)
    if model.model_type == "counts":
        advice = f"lower --batch-size{', --num-paths' if model.num_paths else ''} or --block-size"
    return (
        f"too little memory on {device.device_kind}: a step of {step.queries:,} queries needs "
        f"{as_size(step.temporary_bytes)} beside the {as_size(step.argument_bytes)} of the network and the data, and "
        f"{as_size(free)} are free: {advice}"
    )


def out_of_memory(message: str) -> str:
    """One line for what jax or numpy says when memory runs out.

    Args:
        message: of the exception; names the bytes that were asked for.
    """
    device = jax.devices()[0]
    asked = re.search(r"(\d+) bytes|([\d.]+ ?[KMGTPE]i?B)", message)
    wanted = "" if asked is None else f": {as_size(int(asked[1])) if asked[1] else asked[2]} more were asked for"
    free = free_bytes(device)
    left = "" if free is None else f", {as_size(free)} are free"
    return f"out of memory on {device.device_kind}{wanted}{left}: {_advice(None)}"


def as_size(count: int) -> str:
    """``512 MB``, ``1.5 GB``; powers of 1024."""
    return f"{count / (_MB << 10):,.1f} GB" if count >= _MB << 10 else f"{count / _MB:,.0f} MB"


def _advice(config: TrainConfig | None) -> str:
    """The options that lower memory and are not in use."""
    more = [
        option
        for option, in_use in (
            ("--remat", config and config.remat),
            ("--num-negatives", config and config.num_negatives),
            ("--precision bf16", config and config.precision == "bf16"),
        )
        if not in_use
    ]
    lower = "lower --batch-size, --block-size, --history-length or --embedding-dim"
    return f"{lower}, or use {' or '.join(more)}" if more else lower


def _proc_bytes(name: str) -> int | None:
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def _cgroup_bytes(name: str) -> int | None:
    """A figure of the container's memory; None without a container or a limit."""
    path = _CGROUP / name
    text = path.read_text().strip() if path.exists() else "max"
    return int(text) if text.isdecimal() else None


def _cgroup_free() -> int | None:
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is None or used is None:
        return None
    cached = re.search(r"^inactive_file (\d+)$", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    return limit - used + (int(cached[1]) if cached else 0)


def _limit_bytes(device: jax.Device) -> int:
    """Of the device's allocator, or of the machine; 0 where nobody tells."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit", 0)
    return min((limit for limit in (_proc_bytes("MemTotal"), _cgroup_bytes("memory.max")) if limit), default=0)


@dataclass
class MemoryMeter:
    """Samples memory; ``kind`` says which ("VRAM" or "RSS").

    Attributes:
        used_mb: at the last sample.
        epoch_high_mb: highest since :meth:`new_epoch`, the epoch before's until the first sample: of the samples, and
            on a GPU, where they see nothing of what a step frees again, the allocator's peak if the epoch raised it.
        run_peak_mb: highest since the start (on a GPU as its allocator counted it).
        limit_mb: all there is to use; 0 where nobody tells.
    """

    device: jax.Device
    used_mb: float = 0.0
    epoch_high_mb: float = 0.0
    run_peak_mb: float = 0.0
    limit_mb: float = field(init=False)
    _is_new_epoch: bool = False
    _peak_before: float = 0.0

    @property
    def kind(self) -> str:
        return "RSS" if self.device.platform == "cpu" else "VRAM"

    def __post_init__(self) -> None:
        self.limit_mb = _limit_bytes(self.device) / _MB

    def new_epoch(self) -> None:
        self._is_new_epoch = True
        self._peak_before = self.run_peak_mb

    def sample(self) -> None:
        """Read the memory in use now."""
        statistics = self.device.memory_stats() or {}
        used = statistics.get("bytes_in_use", 0) if self.kind == "VRAM" else _resident_bytes()
        self.used_mb = used / _MB
        peak = statistics.get("peak_bytes_in_use", 0) / _MB
        high = peak if peak > self._peak_before else self.used_mb
        self.epoch_high_mb = high if self._is_new_epoch else max(self.epoch_high_mb, high)
        self._is_new_epoch = False
        self.run_peak_mb = max(self.run_peak_mb, self.used_mb, peak)

    def metrics(self) -> dict[str, float]:
        """Tracker metrics; on a CPU no VRAM is in use and resident memory has its own name."""
        if self.kind == "RSS":
            return {
                "system/vram_used_mb": 0.0,
                "system/rss_mb": self.used_mb,
                "system/rss_epoch_high_mb": self.epoch_high_mb,
            }
        return {
            "system/vram_used_mb": self.used_mb,
            "system/vram_epoch_high_mb": self.epoch_high_mb,
            "system/vram_run_peak_mb": self.run_peak_mb,
        }


def _resident_bytes() -> int:
    """Resident memory of this process; from /proc, or the peak where there is none (macOS)."""
    import resource
    import sys

    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
