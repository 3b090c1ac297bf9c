"""``geopol-tkg vocab``: the whole command, from a dataset directory to its ``history.npz``.

    python benchmarks/vocab.py DIR
    python benchmarks/vocab.py DIR --window 50

DIR is what ``benchmarks/ingest.py`` wrote; its ``history.npz`` is replaced. Prints one JSON object: ``seconds``, the
median of the repeats, ``peak_rss_bytes`` of the process, and the command's own ``result`` with the seconds that the
index alone took and the bytes on disk. No matrix product is computed.
"""

import argparse
from pathlib import Path

from measure import report, run_command, summarise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, metavar="DIR")
    parser.add_argument("--window", type=int, default=0, help="default: all history")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    command = ["vocab", arguments.dataset, "--window", arguments.window]
    runs = [run_command(*command) for _ in range(arguments.repeats)]
    report("vocab", dataset=str(arguments.dataset), window=arguments.window, **summarise(runs))


if __name__ == "__main__":
    main()
