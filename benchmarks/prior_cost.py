"""What the counting model beside a network costs in training: the same steps with and without it.

    python benchmarks/prior_cost.py --dataset DIR --model regcn --steps 12
    python benchmarks/prior_cost.py --dataset DIR --model tirgn --steps 12

DIR is what ``benchmarks/ingest.py`` or ``geopol-tkg ingest`` wrote. Both sides live in processes of their own and
take turns on the same steps of the training plan, drawn at random within each shape, while the other waits. Prints one
JSON object; times in seconds, memory in bytes:

ratio               time with the counting model over time without: of the medians, of the totals
median_seconds      of a step; total_seconds of all of them
peak_rss_bytes      of the process, compilation included; peak_device_bytes besides on a GPU
programs            the compiled step of each shape: steps of an epoch that take it, memory_analysis()
"""

import argparse
import statistics
import tempfile
from typing import Any

import numpy as np
from measure import Worker, choose_machine, report
from settings import add_run_options, dataset_directory, settings_of
from train_step import choose_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=dataset_directory, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=12, help="timed steps, at least one of each shape")
    add_run_options(parser)
    arguments = parser.parse_args()
    choose_machine(arguments.device, arguments.threads)
    settings, dataset = settings_of(arguments), str(arguments.dataset)
    with tempfile.TemporaryDirectory() as folder:
        given = {"dataset": dataset, "folder": folder}
        with (
            Worker("runs:DatasetSteps", huge_pages=True, settings=settings, **given) as plain,
            Worker("runs:DatasetSteps", huge_pages=True, settings=settings | {"count_prior": True}, **given) as beside,
        ):
            content = compare(plain, beside, arguments.steps, settings["seed"])
    report("prior_cost", dataset=dataset, settings=settings, **content)


def compare(plain: Worker, beside: Worker, num_steps: int, seed: int) -> dict[str, Any]:
    """Take the same steps on both sides in turn."""
    shape_of = np.array(plain.call("plan_shapes"))
    chosen = choose_steps(shape_of, num_steps, seed)
    sides = [("without", plain), ("with", beside)]
    programs = {name: side.call("compile_all") for name, side in sides}
    seconds: dict[str, list[float]] = {name: [] for name, _ in sides}
    for number in range(len(programs["without"])):
        for _, side in sides:
            side.call("take", int(chosen[shape_of[chosen] == number][0]))  # warms up
    for step in chosen.tolist():
        for name, side in sides:
            seconds[name].append(side.call("take", step))
        sides.reverse()
    results: dict[str, dict[str, Any]] = {
        name: {
            "median_seconds": statistics.median(seconds[name]),
            "total_seconds": sum(seconds[name]),
            "programs": programs[name],
            **side.call("memory"),
        }
        for name, side in sides
    }
    names = {"median": "median_seconds", "total": "total_seconds"}
    return {
        "device": plain.call("device_kind"),
        "timed_steps": chosen.tolist(),
        "ratio": {key: results["with"][name] / results["without"][name] for key, name in names.items()},
        **results,
    }


if __name__ == "__main__":
    main()
