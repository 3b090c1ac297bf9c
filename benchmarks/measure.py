"""What the benchmarks share: the machine, commands and worker processes with their peak memory.

Imports nothing heavy: on Linux a child's peak memory begins with its parent's. Run as a program, this
module is the far side of :class:`Worker`.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from geopol_tkg.huge_pages import huge_pages as huge_pages_environment

_PACKAGES = ("geopol-tkg", "jax", "jaxlib", "flax", "numpy", "scipy", "torch")
_RATE_REPEATS = 10
_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--threads``; :func:`choose_machine` takes them."""
    parser.add_argument("--device", choices=("auto", "gpu", "cpu"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU cores to run on (Linux); 0 = all there are")


def choose_machine(device: str, threads: int) -> None:
    """Set up this process and its children; must run before jax or torch is imported."""
    if device != "auto":
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[device]
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, load and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(terse=True),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES"),
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def report(benchmark: str, **content: Any) -> None:
    """Print the one JSON object on stdout."""
    print(json.dumps({"benchmark": benchmark, "machine": machine(), **content}, indent=1, allow_nan=False))


def timed(action: Callable[[], Any]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def best_rate(product: Callable[[], Any], size: int) -> float:
    """Floating-point operations per second of a square matrix product, the best of ten."""
    product()
    return 2 * size**3 / min(timed(product) for _ in range(_RATE_REPEATS))


def peak_rss() -> int:
    """Highest resident memory of this process so far, in bytes; on Linux, since :func:`restart_peak_rss`."""
    status = Path("/proc/self/status")
    if status.exists():
        high = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(high.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def restart_peak_rss() -> int:
    """Let :func:`peak_rss` begin anew where the system can; the peak before."""
    before = peak_rss()
    switch = Path("/proc/self/clear_refs")
    if switch.exists():
        switch.write_text("5")
    return before


def run_python(*arguments: object, cwd: Path | None = None, **environment: str) -> dict[str, Any]:
    """Run Python with these arguments: its wall-clock seconds, peak memory and stdout.

    Raises:
        SystemExit: it failed; its stderr has been shown.
    """
    command = [sys.executable, *map(str, arguments)]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return {"seconds": seconds, "peak_rss_bytes": usage.ru_maxrss * _UNIT, "stdout": output}


def run_command(*arguments: object, cwd: Path | None = None, **environment: str) -> dict[str, Any]:
    """Run ``geopol-tkg`` with ``--json``: seconds, peak memory and ``result``, what it printed."""
    done = run_python("-m", "geopol_tkg", *arguments, "--json", "--quiet", cwd=cwd, **environment)
    return {**done, "result": json.loads(done.pop("stdout"))}


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and all times of repeated commands, the highest peak memory, the last result."""
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "all_seconds": [run["seconds"] for run in runs],
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "result": runs[-1]["result"],
        "matmul_flops": 0,
    }


class Worker(AbstractContextManager["Worker"]):
    """An object that lives in a process of its own; its methods take and give what JSON can hold.

    Args:
        target: ``module:Class`` of this folder.
        huge_pages: whether the process asks for them as the commands do (``geopol_tkg.huge_pages``).
        arguments: of the class.
    """

    def __init__(self, target: str, *, huge_pages: bool = False, **arguments: Any) -> None:
        self._target = target
        self._process = subprocess.Popen(
            [sys.executable, __file__, target],
            env=os.environ | (huge_pages_environment() if huge_pages else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask(arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and wait for its result."""
        return self._ask([method, *arguments])

    def _ask(self, message: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; there is no answer to read either
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._target}: ended with status {self._process.wait()}")
        return json.loads(answer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def _serve(target: str) -> None:
    """Build the object from the first line of stdin, then answer one call a line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    module, name = target.split(":")
    served = getattr(importlib.import_module(module), name)(**json.loads(sys.stdin.readline()))
    print("null", file=answers, flush=True)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(served, method)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
