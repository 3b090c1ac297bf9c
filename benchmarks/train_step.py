"""Training steps against the yardstick: the jitted JAX step and a plain eager PyTorch step of the same network.

    python benchmarks/train_step.py --dataset DIR --model regcn --steps 12
    python benchmarks/train_step.py --dataset DIR --model tirgn --steps 12 --threads 2

DIR is what ``benchmarks/ingest.py`` or ``geopol-tkg ingest`` wrote. Both sides live in processes of their own and
take turns on the same steps of the training plan, drawn at random within each shape, while the other waits: each once
to wake up, as in an epoch another step comes before, then timed; float32 is no TF32 on a GPU. The jitted side asks
for huge pages as the commands do, the other takes what PyTorch gets by itself; where GLIBC_TUNABLES is set, both run
with that. First they prove, without dropout and in float32, that they compute the same loss from the same weights (to
1e-4). Prints one JSON object; times in seconds, memory in bytes:

queries             of an epoch, facts in both directions; distinct_entity_queries and distinct_relation_queries of
                    them are asked by the jitted side, all by the other
check               losses of three successive steps on both sides, and their relative difference at the first
ratio               eager over jitted time: of the medians, of the totals, of an epoch
epoch_seconds       all steps of an epoch: per shape, the mean of the timed steps times the number of steps
compile_seconds     to trace and compile all shapes
matmul_flops        of matrix products and convolutions in counted_steps. JAX: in the traced program, a loop as often
                    as it runs, padding of blocks included. torch: as FlopCounterMode counts them
matmul_rate         FLOP/s of a large float32 matrix product with this library in this run
fraction_of_rate    matmul_flops over the seconds of counted_steps, over matmul_rate
matmul_time_share   of one profiled step's operation time, what operations with a matrix product take; of JAX on a CPU
                    no more than a lower bound: XLA hands products whose left operand is read transposed, such as
                    most gradients of weights, to other threads, and the profiler sees only that
part_time_shares    of the same step of JAX, what its parts take in operations with a matrix product and in others,
                    both passes together; an operation fused from several parts counts for the last
peak_rss_bytes      of the process in the timed steps, what compilation left behind included; warmup_peak_rss_bytes
                    before them (elsewhere than on Linux both are the whole process's). peak_device_bytes on a GPU
programs            JAX's program of each shape: steps of an epoch that take it, memory_analysis(), and both
                    counts of operations (xla_flops takes the body of a loop once)
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import Worker, choose_machine, report
from settings import add_run_options, dataset_directory, settings_of

_TOLERANCE = 1e-4  # relative, of a loss
_CHECKED_STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=dataset_directory, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=12, help="timed steps, at least one of each shape")
    add_run_options(parser)
    arguments = parser.parse_args()
    choose_machine(arguments.device, arguments.threads)
    settings = settings_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        dataset, work = str(arguments.dataset), Path(folder)
        check = check_losses(dataset, settings, work)
        with (
            Worker("runs:DatasetSteps", huge_pages=True, dataset=dataset, settings=settings, folder=folder) as jitted,
            eager_worker(jitted, dataset, work) as eager,
        ):
            content = compare(jitted, eager, arguments.steps, settings["seed"])
    report("train_step", dataset=dataset, settings=settings, check=check, **content)


def eager_worker(jitted: Worker, dataset: str, work: Path) -> Worker:
    """The yardstick with the other side's settings, queries and weights."""
    path = str(work / "steps.npz")
    return Worker("yardstick:EagerSteps", dataset=dataset, steps=path, **jitted.call("export", path))


def check_losses(dataset: str, settings: dict[str, Any], work: Path) -> dict[str, Any]:
    """Losses of both sides without dropout in float32, from the same weights.

    Raises:
        SystemExit: they differ.
    """
    settings = settings | {"dropout": 0.0, "precision": "f32"}
    with (
        Worker("runs:DatasetSteps", huge_pages=True, dataset=dataset, settings=settings, folder=str(work)) as jitted,
        eager_worker(jitted, dataset, work) as eager,
    ):
        shape_of = np.array(jitted.call("plan_shapes"))
        steps = np.flatnonzero(shape_of == shape_of[-1])[-_CHECKED_STEPS:].tolist()  # of one program
        losses: dict[str, list[float]] = {"jax": [], "torch": []}
        for step in steps:
            for name, side in (("jax", jitted), ("torch", eager)):
                side.call("take", step)
                losses[name].append(side.call("loss"))
    difference = abs(losses["jax"][0] / losses["torch"][0] - 1)
    if not difference <= _TOLERANCE:
        raise SystemExit(f"the sides do not compute the same loss at step {steps[0]}: {losses}")
    return {"steps": steps, **losses, "relative_difference": difference}


def compare(jitted: Worker, eager: Worker, num_steps: int, seed: int) -> dict[str, Any]:
    """Take the same steps on both sides in turn."""
    shape_of = np.array(jitted.call("plan_shapes"))
    chosen = choose_steps(shape_of, num_steps, seed)
    programs = jitted.call("compile_all")
    counted = [int(chosen[shape_of[chosen] == number][0]) for number in range(len(programs))]
    for step in counted:
        jitted.call("take", step)
    eager_flops = sum(eager.call("matmul_flops", step) for step in counted)  # warms up as well
    seconds: dict[str, dict[int, float]] = {"jax": {}, "torch": {}}
    sides = [("jax", jitted), ("torch", eager)]
    warmup = {name: {"warmup_peak_rss_bytes": side.call("restart_memory")} for name, side in sides}
    for step in chosen.tolist():
        for name, side in sides:
            side.call("take", step)
            seconds[name][step] = side.call("take", step)
        sides.reverse()
    profiled = counted[int(np.bincount(shape_of).argmax())]
    flops = {"jax": sum(jitted.call("matmul_flops", step) for step in counted), "torch": eager_flops}
    results: dict[str, dict[str, Any]] = {
        name: warmup[name] | summarise(side, seconds[name], shape_of, counted, flops[name]) for name, side in sides
    }
    for name, side in sides:
        results[name] |= side.call("time_shares", profiled)
    results["jax"] |= {"compile_seconds": sum(row["compile_seconds"] for row in programs), "programs": programs}
    results["torch"]["threads"] = eager.call("threads")
    names = {"median": "median_seconds", "total": "total_seconds", "epoch": "epoch_seconds"}
    return {
        "device": jitted.call("device_kind"),
        "steps_per_epoch": len(shape_of),
        **jitted.call("asked"),
        "timed_steps": chosen.tolist(),
        "counted_steps": counted,
        "ratio": {key: results["torch"][name] / results["jax"][name] for key, name in names.items()},
        **results,
    }


def choose_steps(shape_of: np.ndarray, count: int, seed: int) -> np.ndarray:
    """So many steps in random order, each shape by its share, at least one of each."""
    rng = np.random.default_rng(seed)
    chosen = []
    for number, size in enumerate(np.bincount(shape_of)):
        share = min(max(round(count * size / len(shape_of)), 1), size)
        chosen.append(rng.choice(np.flatnonzero(shape_of == number), share, replace=False))
    return rng.permutation(np.concatenate(chosen))


def summarise(
    side: Worker, seconds: dict[int, float], shape_of: np.ndarray, counted: list[int], flops: int
) -> dict[str, Any]:
    """Times, memory and arithmetic of one side."""
    steps = np.array(list(seconds))
    times = np.array(list(seconds.values()))
    sizes = np.bincount(shape_of)
    memory, rate = side.call("memory"), side.call("rate")
    achieved = flops / sum(seconds[step] for step in counted)
    return {
        "median_seconds": statistics.median(times.tolist()),
        "total_seconds": float(times.sum()),
        "all_seconds": times.tolist(),
        "epoch_seconds": float(sum(times[shape_of[steps] == i].mean() * size for i, size in enumerate(sizes))),
        "matmul_flops": flops,
        "matmul_rate": rate,
        "fraction_of_rate": achieved / rate,
        **memory,
    }


if __name__ == "__main__":
    main()
