"""Evaluation of a checkpoint on a split: in a warm process, and as a whole command.

    python benchmarks/evaluate.py --dataset DIR --model regcn
    python benchmarks/evaluate.py --dataset DIR --checkpoint models/tkg/regcn_best --split test

DIR is what ``benchmarks/ingest.py`` or ``geopol-tkg ingest`` wrote. Without ``--checkpoint`` a network is trained for
``--train-seconds`` first: how well it forecasts changes no time. Prints one JSON object; times in seconds,
memory in bytes:

seconds             the median of the in-process runs after the first: reading dataset and checkpoint, arranging the
                    history, forecasts and ranks, without compilation; first_seconds is the first run, with it
queries             of the split; distinct_queries of them differ in more than their answer, and are scored
matmul_flops        of all matrix products of a run, in the traced programs, padding included
matmul_rate         FLOP/s of a large float32 matrix product in this run; fraction_of_rate is matmul_flops over
                    seconds, over this
command             ``geopol-tkg eval`` with an empty compilation cache (cold) and with the cache it left (warm)
peak_rss_bytes      of the process that took the runs; peak_device_bytes besides on a GPU
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import Worker, choose_machine, report, run_command, timed
from settings import add_run_options, dataset_directory, settings_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=dataset_directory, required=True, metavar="DIR")
    parser.add_argument("--checkpoint", type=Path, help="stem of a checkpoint that was trained on it")
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train-seconds", type=float, default=1)
    add_run_options(parser)
    arguments = parser.parse_args()
    choose_machine(arguments.device, arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or train(arguments, Path(folder))
        names = {"dataset": str(arguments.dataset), "checkpoint": str(checkpoint), "split": arguments.split}
        with Worker("evaluate:Evaluation", huge_pages=True, **names) as worker:
            content = worker.call("measure", arguments.repeats)
        cache = str(Path(folder) / "cache")
        command = ["eval", checkpoint, "--data", arguments.dataset, "--split", arguments.split]
        cold, warm = (run_command(*command, JAX_COMPILATION_CACHE_DIR=cache) for _ in range(2))
    wanted = ("seconds", "peak_rss_bytes")
    commands = {name: {key: run[key] for key in wanted} for name, run in (("cold", cold), ("warm", warm))}
    report("evaluate", **names, **content, command=commands, mrr=warm["result"]["mrr"])


def train(arguments: argparse.Namespace, folder: Path) -> Path:
    """Stem of the checkpoint of a training that is stopped early."""
    options = [part for name, value in settings_of(arguments).items() for part in _flag(name, value)]
    options += ["--epochs", 1, "--max-time", arguments.train_seconds, "--model-dir", folder, "--logdir", folder]
    done = run_command("train", arguments.dataset, *options)
    return Path(done["result"]["last"])


def _flag(name: str, value: Any) -> list[Any]:
    """The option of ``geopol-tkg train`` for a setting."""
    option = {"model_type": "model"}.get(name, name.replace("_", "-"))
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [] if value is None else [f"--{option}", value]


class Evaluation:
    """A checkpoint's evaluation, run again and again in one process."""

    def __init__(self, dataset: str, checkpoint: str, split: str) -> None:
        self._dataset, self._checkpoint, self._split = Path(dataset), Path(checkpoint), split

    def measure(self, repeats: int) -> dict[str, Any]:
        """Times, memory and arithmetic."""
        import jax
        from runs import matmul_rate, peak_memory

        first, *others = (timed(self._run) for _ in range(repeats + 1))
        device, memory = jax.devices()[0], peak_memory(jax.devices()[0])
        times = self._queries()
        seconds, flops, rate = statistics.median(others), self._matmul_flops(times), matmul_rate(device)
        return {
            "device": device.device_kind,
            "seconds": seconds,
            "all_seconds": others,
            "first_seconds": first,
            "queries": sum(map(len, times.values())),
            "distinct_queries": sum(len(np.unique(queries[:, :2], axis=0)) for queries in times.values()),
            "matmul_flops": flops,
            "matmul_rate": rate,
            "fraction_of_rate": flops / seconds / rate,
            **memory,
        }

    def _load(self) -> Any:
        from geopol_tkg.data.dataset import Dataset
        from geopol_tkg.forecasts import load_model

        return load_model(self._checkpoint, Dataset.load(self._dataset))

    def _run(self) -> None:
        from geopol_tkg.evaluation.evaluator import evaluate

        model = self._load()
        evaluate(model.forecaster(), model.dataset, split=self._split, known_entities=model.known_entities)

    def _queries(self) -> dict[int, np.ndarray]:
        from geopol_tkg.data.dataset import Dataset
        from geopol_tkg.evaluation.queries import timestamps

        dataset = Dataset.load(self._dataset)
        return dict(timestamps(dataset.facts_of(self._split), dataset.num_relations))

    def _matmul_flops(self, times: dict[int, np.ndarray]) -> int:
        """One evolution a timestamp, and the blocks that the evaluator asks."""
        import jax
        from counting import matmul_flops

        from geopol_tkg.evaluation.evaluator import default_block_size
        from geopol_tkg.evaluation.queries import query_blocks

        model = self._load()
        forecaster = model.forecaster()
        block_size = default_block_size(model.dataset.num_entities)
        asked = sum(len(list(query_blocks(queries, block_size))) for queries in times.values())
        ids = np.zeros(block_size, np.int32)

        def scored(num_blocks: int) -> list[Any]:
            score = forecaster.at(min(times))
            return [score(ids, ids) for _ in range(num_blocks)]

        one, two = (matmul_flops(jax.make_jaxpr(scored, static_argnums=0)(count)) for count in (1, 2))
        block, evolution = two - one, 2 * one - two
        return len(times) * evolution + asked * block


if __name__ == "__main__":
    main()
