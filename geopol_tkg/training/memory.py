"""Memory in use: the device's where it can tell, this process's resident memory on a CPU."""

from dataclasses import dataclass
from pathlib import Path

import jax

_MB = 1 << 20


@dataclass
class MemoryMeter:
    """Samples memory; ``kind`` says which ("VRAM" or "RSS").

    Attributes:
        used_mb: at the last sample.
        epoch_high_mb: highest sample since :meth:`new_epoch`; the epoch before's until the first one.
        run_peak_mb: highest since the start (on a GPU as its allocator counted it).
    """

    device: jax.Device
    used_mb: float = 0.0
    epoch_high_mb: float = 0.0
    run_peak_mb: float = 0.0
    _is_new_epoch: bool = False

    @property
    def kind(self) -> str:
        return "RSS" if self.device.platform == "cpu" else "VRAM"

    def new_epoch(self) -> None:
        self._is_new_epoch = True

    def sample(self) -> None:
        """Read the memory in use now."""
        statistics = self.device.memory_stats() or {}
        used = statistics.get("bytes_in_use", 0) if self.kind == "VRAM" else _resident_bytes()
        self.used_mb = used / _MB
        self.epoch_high_mb = self.used_mb if self._is_new_epoch else max(self.epoch_high_mb, self.used_mb)
        self._is_new_epoch = False
        peak = statistics.get("peak_bytes_in_use", 0) / _MB
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
