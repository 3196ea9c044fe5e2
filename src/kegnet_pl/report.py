"""Put finished runs together: ``python -m kegnet_pl.report DIR...``."""

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
    """Run the command line.

    Args:
        arguments: What follows the program's name; None for those of this process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m kegnet_pl.report",
        description="Put finished runs together: one table, tradeoff.png, results.csv, results.json and report.html, "
        "and a report.html in the folder of every run.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folders of runs and sweeps, or above them"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/report"), help="where to write (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    console = make_console()
    try:
        runs = read_runs(options.folders)
        for run in runs:
            if run.rows and os.access(run.folder, os.W_OK):  # somebody else's keep the page they have
                write_run_page(run)
        try:
            report(runs, options.out, console)
        except OSError as error:
            raise UserError(
                f"Expected to write the report to {options.out}, but: {error.strerror or error}. Choose another folder "
                f"with --out FOLDER."
            ) from error
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
