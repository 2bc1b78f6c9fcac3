"""Runs what is missing, then writes docs/evidence.md and its picture."""

import argparse
from pathlib import Path

from benchmarks.evidence.report import write_report
from benchmarks.evidence.rows import load_rows
from benchmarks.evidence.run import ROOT, run_missing


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--report", action="store_true", help="only write the report from the stored rows")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (2)")
    parser.add_argument("--rows", type=Path, default=ROOT / "benchmarks/results/evidence/rows.jsonl")
    parser.add_argument("--cache", type=Path, default=Path("runs/evidence"), help="checkpoints (runs/evidence)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the report (docs)")
    options = parser.parse_args()
    if not options.report:
        run_missing(options.rows, options.cache, workers=options.workers)
    write_report(load_rows(options.rows), options.docs)


if __name__ == "__main__":
    main()
