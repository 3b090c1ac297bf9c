"""``geopol-tkg ingest``: the whole command, from files to a dataset directory.

    python benchmarks/ingest.py events/ --granularity 1h --num-days 0 --min-entity-count 10 --out hourly
    python benchmarks/ingest.py ICEWS14s/ --out icews14s

All arguments but ``--repeats`` are the command's own; the dataset stays in ``--out`` for the other benchmarks.
Prints one JSON object: ``seconds``, the median of the repeats (files in the page cache after the first),
``peak_rss_bytes`` of the process, and the command's own ``result``. No matrix product is computed.
"""

import argparse

from measure import report, run_command, summarise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--repeats", type=int, default=3)
    arguments, command = parser.parse_known_args()
    runs = [run_command("ingest", *command) for _ in range(arguments.repeats)]
    report("ingest", command=command, **summarise(runs))


if __name__ == "__main__":
    main()
