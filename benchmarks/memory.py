"""Memory of a training step against facts per timestamp, number of entities and history length, on synthetic data.

    python benchmarks/memory.py --model tirgn
    python benchmarks/memory.py --facts 75000 --entities 6000 50000 500000 --history-lengths 7 --execute

The first value of each list is the base; every other one is tried alone, with the others at their base. Each point
has a process of its own. Prints one JSON object and writes no file; bytes by the compiler's
``memory_analysis()`` of the largest step of the plan:

arguments, outputs, temporary   of the compiled step
peak                arguments + outputs + temporary, what is donated counted once
peak_rss_bytes      of the process, the data's preparation and the compilation included; peak_device_bytes besides
                    on a GPU. With --execute, after two steps were taken

The data: as many timestamps as one window, its queries and two for valid and test need; 230 relations; subjects
and objects drawn so that few entities have most facts.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import Worker, choose_machine, report
from settings import add_run_options, settings_of

from geopol_tkg.config import TrainConfig
from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.time_axis import TimeAxis

_NUM_RELATIONS = 230
_SKEW = 3  # entity numbers are a uniform number to this power


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, nargs="+", default=[75_000, 1_000, 10_000, 150_000])
    parser.add_argument("--entities", type=int, nargs="+", default=[6_000, 1_000, 50_000, 500_000])
    parser.add_argument("--history-lengths", type=int, nargs="+", default=[7, 1, 3, 15])
    parser.add_argument("--execute", action="store_true", help="take two steps, not only compile them")
    add_run_options(parser)
    parser.set_defaults(batch_size=TrainConfig.batch_size)
    arguments = parser.parse_args()
    choose_machine(arguments.device, arguments.threads)
    settings = settings_of(arguments)
    points = []
    for sizes in around_base(
        facts=arguments.facts, entities=arguments.entities, history_length=arguments.history_lengths
    ):
        with Worker("memory:Point", huge_pages=True, settings=settings, **sizes) as worker:
            points.append(sizes | worker.call("measure", arguments.execute))
    report("memory", settings=settings, points=points)


def around_base(**lists: list[int]) -> list[dict[str, int]]:
    """The first values together, then each other value with the first ones of the other lists."""
    base = {name: values[0] for name, values in lists.items()}
    return [base, *(base | {name: value} for name, values in lists.items() for value in values[1:])]


def synthetic(*, facts: int, entities: int, timestamps: int, seed: int) -> Dataset:
    """A dataset with so many facts at each of its timestamps; the last two are valid and test."""
    rng = np.random.default_rng(seed)
    size = timestamps * facts
    subject, object_ = (entities * rng.random((2, size)) ** _SKEW).astype(np.int32)
    relation = rng.integers(0, _NUM_RELATIONS, size, np.int32)
    time = np.repeat(np.arange(timestamps, dtype=np.int32), facts)
    return Dataset(
        entities=tuple(f"entity {i}" for i in range(entities)),
        relations=tuple(f"relation {i}" for i in range(_NUM_RELATIONS)),
        facts=np.unique(np.stack([time, subject, relation, object_], axis=1), axis=0)[:, [1, 2, 3, 0]],
        split=Split(timestamps - 2, timestamps - 1),
        time_axis=TimeAxis(0, 86400, "1d"),
    )


class Point:
    """A training run on synthetic data of one size."""

    def __init__(self, settings: dict[str, Any], facts: int, entities: int, history_length: int) -> None:
        from runs import Steps, open_run

        settings = settings | {"history_length": history_length}
        timestamps = history_length + 3
        dataset = synthetic(facts=facts, entities=entities, timestamps=timestamps, seed=settings["seed"])
        with tempfile.TemporaryDirectory() as folder:
            self._steps = Steps(open_run(dataset, settings, Path(folder)))

    def measure(self, execute: bool) -> dict[str, Any]:
        """Compile the largest step, and take it twice where that is wanted."""
        plan = self._steps.plan
        number = int(np.argmax([shape.queries for shape in plan.shapes]))
        program = self._steps.program(number)
        index = int(np.flatnonzero(plan.shape_of == number)[-1])
        seconds = [self._steps.take(index) for _ in range(2 * execute)]
        return {
            "queries": plan.shapes[number].queries,
            **program.memory(),
            "compile_seconds": program.compile_seconds,
            "matmul_flops": self._steps.matmul_flops(index),
            **({"step_seconds": seconds[-1]} if execute else {}),
            **self._steps.memory(),
        }


if __name__ == "__main__":
    main()
