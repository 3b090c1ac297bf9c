"""What there is to run on, and whether each model trains on it: facts for a bug report."""

import importlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

from geopol_tkg.config import DEFAULT_DATASET, DEFAULT_MODEL_DIR, SAMPLE_CONFIG, ModelConfig, ModelType, TrainConfig

_REQUIRED = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pandas", "pyarrow", "tensorboardX", "typer", "rich")
_EXTRAS = {
    "cuda12": "jax-cuda12-plugin",
    "cuda13": "jax-cuda13-plugin",
    "torch": "torch",
    "safetensors": "safetensors",
    "onnx": "onnxscript",
    "wandb": "wandb",
}
_IMPORTED_EXTRAS = ("torch", "wandb")
_FOLDERS = (str(Path(DEFAULT_DATASET).parent), DEFAULT_MODEL_DIR, "runs")
_NVIDIA_SMI_S = 20
_TINY: dict[str, Any] = {"embedding_dim": 8, "num_layers": 1, "num_channels": 4, "history_length": 2}
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``passed`` is False for what must work and does not."""

    section: str
    name: str
    value: str
    passed: bool = True


def examine(*, progress: Callable[[str], None]) -> Iterator[Finding]:
    """Look at everything in turn; what is missing is a finding, never an error."""
    yield from _versions()
    yield from _machine()
    yield from _devices()
    yield from _places()
    for model in get_args(ModelType):
        progress(f"one training step of {model}")
        yield smoke_test(model)


def smoke_test(model: ModelType) -> Finding:
    """One optimiser step of a tiny model on the bundled sample; a loss that is not finite is an error."""
    started = time.perf_counter()
    try:
        loss = _one_step(model)
    except Exception as error:  # noqa: BLE001 - whatever breaks is what is reported
        return Finding("smoke tests", model, f"FAILED: {_in_a_line(error)}", passed=False)
    seconds = time.perf_counter() - started
    return Finding("smoke tests", model, f"passed: one training step in {seconds:.1f} s, loss {loss:.4f}")


def _one_step(model: ModelType) -> float:
    """The loss before it."""
    import jax

    from geopol_tkg.data.history import build_for
    from geopol_tkg.data.ingest import ingest
    from geopol_tkg.data.sources import SAMPLE
    from geopol_tkg.models.registry import build_context, uses_vocabulary
    from geopol_tkg.training.loop import Standing, fit
    from geopol_tkg.training.prepare import prepare
    from geopol_tkg.training.run import resolve

    dataset = ingest([SAMPLE], SAMPLE_CONFIG)
    tiny = ModelConfig(
        model_type=model, num_entities=dataset.num_entities, num_relations=dataset.num_relations, **_TINY
    )
    history = build_for(dataset, window=tiny.history_window) if uses_vocabulary(tiny) else None
    config = resolve(TrainConfig(batch_size=_BATCH_SIZE, precision="f32", remat=False), jax.devices()[0], model)
    context = build_context(dataset, history, tiny)
    plan, trainer, state, data = prepare(dataset, history, context, model=tiny, config=config)
    taken: list[int] = []
    stopped = fit(
        trainer,
        state,
        plan=plan,
        data=data,
        config=config,
        evaluate=lambda _state: None,
        standing=Standing(),
        should_stop=lambda: "one step" if taken else None,
        on_step=taken.append,
    )
    return next(stopped).loss


def _versions() -> Iterator[Finding]:
    """Packages, each imported: a broken one is found here."""
    yield Finding("versions", "python", platform.python_version())
    yield Finding("versions", "geopol-tkg", _version("geopol-tkg") or "not installed as a package")
    for package in _REQUIRED:
        yield _imported("versions", package, package)
    for extra, package in _EXTRAS.items():
        found = _version(package)
        if found is None:
            yield Finding("extras", extra, "not installed")
        elif extra in _IMPORTED_EXTRAS:
            yield _imported("extras", extra, package)
        else:
            yield Finding("extras", extra, found)


def _imported(section: str, name: str, package: str) -> Finding:
    try:
        importlib.import_module(package)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        return Finding(section, name, f"FAILED to import: {_in_a_line(error)}", passed=False)
    return Finding(section, name, _version(package) or "unknown version")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "platform", platform.platform())
    yield Finding("machine", "processor", _processor())
    yield Finding("machine", "bfloat16", _bfloat16())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("machine", "cores", f"{usable} usable of {os.cpu_count()}")
    yield Finding("machine", "memory", _memory())
    yield Finding("machine", "huge pages", _huge_pages())


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _bfloat16() -> str:
    """What the processor multiplies bfloat16 with; ``train --precision bf16`` is faster for it."""
    flags = next((line.split() for line in _lines("/proc/cpuinfo") if line.startswith(("flags", "Features"))), None)
    if flags is None:
        return "unknown"
    return ", ".join(flag for flag in flags if flag.endswith("bf16")) or "no instructions for it"


def _memory() -> str:
    """Memory of the machine, and what is available where the system tells."""
    found = {}
    for line in _lines("/proc/meminfo"):
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    if "MemTotal" in found:
        limit = next(iter(_lines("/sys/fs/cgroup/memory.max")), "max")
        limited = "" if limit == "max" else f", limited to {_size(int(limit))}"
        return f"{_size(found['MemTotal'])}, {_size(found.get('MemAvailable', 0))} available{limited}"
    try:
        return _size(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return "unknown"


def _huge_pages() -> str:
    """To whom the system gives them, and what this process asked for; see geopol_tkg.huge_pages."""
    setting = next(iter(_lines("/sys/kernel/mm/transparent_hugepage/enabled")), "[none]")
    mode, tunables = setting.partition("[")[2].partition("]")[0], os.environ.get("GLIBC_TUNABLES")
    return f"{mode}, GLIBC_TUNABLES {'not set' if tunables is None else repr(tunables)}"


def _devices() -> Iterator[Finding]:
    try:
        import jax

        for device in jax.devices():
            yield Finding("devices", f"jax {device.platform}:{device.id}", _described(device))
    except Exception as error:  # noqa: BLE001 - jax raises many kinds where a GPU is asked for and is none
        yield Finding("devices", "jax", f"FAILED: {_in_a_line(error)}", passed=False)
    yield Finding("devices", "NVIDIA driver", _nvidia())


def _described(device: Any) -> str:
    statistics = device.memory_stats() or {}
    if "bytes_limit" not in statistics:
        return str(device.device_kind)
    used, limit = _size(statistics.get("bytes_in_use", 0)), _size(statistics["bytes_limit"])
    return f"{device.device_kind}, {used} in use of {limit}"


def _nvidia() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none (no nvidia-smi)"
    command = ["nvidia-smi", "--query-gpu=driver_version,name,memory.used,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {_in_a_line(error)}"
    answer = "; ".join((done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines())
    return answer if done.returncode == 0 else f"nvidia-smi failed with {done.returncode}: {answer}"


def _places() -> Iterator[Finding]:
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    yield Finding("folders", "compilation cache", "none" if cache is None else _cache(Path(cache)))
    for folder in _FOLDERS:
        yield Finding("folders", folder, _writable(Path(folder)))


def _cache(folder: Path) -> str:
    sizes = []
    for file in folder.rglob("*"):
        try:
            sizes.append(file.stat().st_size)
        except OSError:  # gone by now
            continue
    return f"{_without_home(folder)}: {_size(sum(sizes))} in {len(sizes)} files, {_writable(folder)}"


def _writable(folder: Path) -> str:
    """Whether a folder can be written, or made where there is none yet; nothing is made."""
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))
    may = os.access(existing, os.W_OK | os.X_OK) and existing.is_dir()
    said = "writable" if may else "NOT WRITABLE"
    return said if existing == folder else f"{said} (not there yet)"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _without_home(path: Path) -> str:
    """A path for strangers' eyes."""
    home = os.path.expanduser("~")
    return str(path).replace(home, "~", 1) if str(path).startswith(home + os.sep) else str(path)


def _in_a_line(error: BaseException) -> str:
    """Of what broke; SIGINT is none of that, though an import that it interrupts may raise an error of its own."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise cause
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
