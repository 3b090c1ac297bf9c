"""Start-up: ``geopol-tkg --help``, and ``geopol-tkg train`` on the bundled sample to the end of its first step.

    python benchmarks/startup.py
    python benchmarks/startup.py --model regcn

Other options go to ``geopol-tkg train``. Each run is a fresh process. ``cold`` begins with an empty
compilation cache and without a dataset, so that the sample is ingested too; ``warm`` is the same folder and
cache again, the median of the repeats. Files are in the page cache from the first run on. Prints one JSON object;
times in seconds of the whole process, memory in bytes.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measure import add_machine_options, choose_machine, report, run_python

# The real command; its display of the first step waits for all that the device has to do, then ends the process.
_UNTIL_FIRST_STEP = """
import os, sys
from geopol_tkg.cli import _progress, run_app

def end(display, done):
    import jax
    jax.block_until_ready(jax.live_arrays())
    print(done, flush=True)
    os._exit(0)

_progress.TrainDisplay.step = end
sys.argv[0] = "geopol-tkg"
sys.exit(run_app())
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--repeats", type=int, default=5)
    add_machine_options(parser)
    arguments, options = parser.parse_known_args()
    choose_machine(arguments.device, arguments.threads)
    content = {"help": help_text(arguments.repeats), **first_step(options, arguments.repeats)}
    report("startup", options=options, matmul_flops=0, **content)


def help_text(repeats: int) -> dict[str, Any]:
    """``--help``, the median after a run that fills the page cache."""
    runs = [run_python("-m", "geopol_tkg", "--help") for _ in range(repeats + 1)][1:]
    return _median(runs)


def first_step(options: list[str], repeats: int) -> dict[str, Any]:
    """``train`` to the end of its first step, cold and warm."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"

        def run() -> dict[str, Any]:
            arguments = ("-c", _UNTIL_FIRST_STEP, "train", "--quiet", "--overwrite", *options)
            done = run_python(*arguments, cwd=Path(folder), JAX_COMPILATION_CACHE_DIR=str(cache))
            if done["stdout"].strip() != "1":
                raise SystemExit(f"train ended without a first step: {done['stdout']!r}")
            return done

        cold = run()
        return {"cold": _median([cold]), "warm": _median([run() for _ in range(repeats)])}


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
    }


if __name__ == "__main__":
    main()
