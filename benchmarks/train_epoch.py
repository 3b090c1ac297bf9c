"""Whole training epochs, as ``geopol-tkg train`` runs them, without validation.

    python benchmarks/train_epoch.py --dataset DIR --model regcn
    python benchmarks/train_epoch.py --dataset DIR --model tirgn --epochs 2

DIR is what ``benchmarks/ingest.py`` or ``geopol-tkg ingest`` wrote. Prints one JSON object; times in seconds, memory
in bytes. Huge pages are asked for where GLIBC_TUNABLES=glibc.malloc.hugetlb=1 is set, as the commands do by themselves.

epoch_seconds       the last epoch; all_epoch_seconds holds the first one too, which compiles
build_seconds       from the dataset directory to a run that is ready: vocabulary, plan, copies to the device
matmul_flops        of all matrix products of an epoch in the traced programs, loops as often as they run, padding
                    of blocks included
matmul_rate         FLOP/s of a large float32 matrix product in this process
fraction_of_rate    matmul_flops over epoch_seconds, over matmul_rate
peak_rss_bytes      of this process, compilation included; peak_device_bytes besides on a GPU
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import choose_machine, report
from settings import add_run_options, dataset_directory, settings_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=dataset_directory, required=True, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=2)
    add_run_options(parser)
    arguments = parser.parse_args()
    choose_machine(arguments.device, arguments.threads)
    settings = settings_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        content = train(arguments.dataset, settings, arguments.epochs, Path(folder))
    report("train_epoch", dataset=str(arguments.dataset), settings=settings, **content)


def train(directory: Path, settings: dict[str, Any], epochs: int, folder: Path) -> dict[str, Any]:
    """Train so many epochs of a run that would go on, so that none of them is validated."""
    from runs import Steps, matmul_rate, open_run, peak_memory

    from geopol_tkg.data.dataset import Dataset
    from geopol_tkg.training.trackers import TrainingLogger

    started = time.perf_counter()
    dataset = Dataset.load(directory)
    run = open_run(dataset, settings | {"epochs": epochs + 1, "eval_interval": epochs + 1}, folder)
    build_seconds = time.perf_counter() - started
    steps = Steps(run)
    flops = sum(steps.matmul_flops(index) for index in range(len(run.plan)))
    files = run.files
    logger = TrainingLogger(files.run_dir, files.metrics, model=run.model.model_type, first_epoch=1, wandb_run=None)
    results = run.epochs(logger, should_stop=lambda: None, on_step=lambda _done: None)
    taken = [next(results) for _ in range(epochs)]
    logger.close({})
    seconds = [result.seconds for result in taken]
    memory, rate = peak_memory(run.device), matmul_rate(run.device)
    return {
        "device": run.device.device_kind,
        "counts": dataset.counts(),
        "num_parameters": run.num_parameters,
        "steps_per_epoch": len(run.plan),
        "shapes": len(run.plan.shapes),
        "build_seconds": build_seconds,
        "epoch_seconds": seconds[-1],
        "all_epoch_seconds": seconds,
        "losses": [result.loss for result in taken],
        "matmul_flops": flops,
        "matmul_rate": rate,
        "fraction_of_rate": flops / seconds[-1] / rate,
        **memory,
    }


if __name__ == "__main__":
    main()
