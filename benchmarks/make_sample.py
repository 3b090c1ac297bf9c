"""Cut the bundled sample out of GDELT 2.0 events in parquet files, one per day.

    python benchmarks/make_sample.py SOURCE_DIR

SOURCE_DIR holds ``gdelt-20171105.parquet`` to ``gdelt-20171107.parquet`` with GDELT's column names. The
result is deterministic: the same files and the same pyarrow give the same bytes.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

DAYS = range(20171105, 20171108)
COUNTRIES = "ARE BHR EGY IRN IRQ ISR JOR KWT LBN OMN PSE QAT SAU SYR TUR YEM RUS".split()  # noqa: SIM905
MIN_MENTIONS = 5
COLUMNS = [
    "GLOBALEVENTID",
    "SQLDATE",
    *(f"Actor{i}{part}" for i in (1, 2) for part in ("Code", "Name", "CountryCode")),
    "EventCode",
    "EventBaseCode",
    "EventRootCode",
    "QuadClass",
    "NumMentions",
    "DATEADDED",
]
TARGET = Path(__file__).parents[1] / "geopol_tkg/data/sample/gdelt-20171105-20171107-middle-east.parquet"


def cut(table: pa.Table) -> pa.Table:
    """Rows between two named actors of the countries that were mentioned often enough."""
    countries = pa.array(COUNTRIES)
    kept = pc.greater_equal(table["NumMentions"], MIN_MENTIONS)
    for i in (1, 2):
        kept = pc.and_(kept, pc.is_in(table[f"Actor{i}CountryCode"], value_set=countries))
        kept = pc.and_(kept, table[f"Actor{i}Name"].is_valid())
    return table.filter(kept)


def make_sample(source: Path, target: Path) -> int:
    """Write the sample, and return its number of rows."""
    days = [pq.read_table(source / f"gdelt-{day}.parquet", columns=COLUMNS) for day in DAYS]
    sample = cut(pa.concat_tables(days)).select(COLUMNS)
    sample = sample.sort_by([("DATEADDED", "ascending"), ("GLOBALEVENTID", "ascending")])
    pq.write_table(sample.replace_schema_metadata(), target, compression="zstd", compression_level=19)
    return len(sample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE_DIR")
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    rows = make_sample(arguments.source, arguments.out)
    print(f"{arguments.out}: {rows} rows, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
