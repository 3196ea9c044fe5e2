"""Report on finished runs: ``python -m kegnet_pl.report DIR...``."""

import argparse
import os
import sys
from pathlib import Path

from kegnet_pl.reporting.run_page import write_run_page
from kegnet_pl.reporting.runs import read_runs
from kegnet_pl.reporting.sweep import report
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.training.progress import make_console


def main(arguments: list[str] | None = None) -> int:
    """Run the command line with arguments, or those of this process; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kegnet_pl.report",
        description="Combine finished runs into one table, tradeoff.png, front.png, results.csv, results.json and "
        "report.html, and write a report.html to the folder of every run.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folders of runs and sweeps, or folders above them"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/report"), help="folder of the report (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        runs = read_runs(options.folders)
        for run in runs:
            if run.rows and os.access(run.folder, os.W_OK):  # other users' folders may be read-only
                write_run_page(run)
        try:
            report(runs, options.out, make_console())
        except OSError as error:
            raise UserError(
                f"Expected to write the report to {options.out}, but got: {error.strerror or error}. Choose another "
                f"folder with --out FOLDER."
            ) from error
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
