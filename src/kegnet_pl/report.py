"""Report on finished runs: ``python -m kegnet_pl.report DIR...``."""

import argparse
import os
import sys
from pathlib import Path

from kegnet_pl.reporting.run_page import write_run_page
from kegnet_pl.reporting.runs import FinishedRun, read_runs
from kegnet_pl.reporting.sweep import report
from kegnet_pl.runtime.errors import UserError, first_line
from kegnet_pl.runtime.safe_files import printable
from kegnet_pl.training.progress import make_console


def _write_page(run: FinishedRun) -> None:
    """Write the page of a run; print a message to standard error if its files are damaged."""
    try:
        write_run_page(run)
    except (UserError, OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = str(error) if isinstance(error, UserError) else f"its files are damaged: {first_line(error)}"
        print(f"The page of run {run.name} was not written: {printable(reason, lines=True)}", file=sys.stderr)  # noqa: T201


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
            if run.rows and not run.summary and os.access(run.folder, os.W_OK):  # others' folders may be read-only
                _write_page(run)
        try:
            report(runs, options.out, make_console())
        except OSError as error:
            raise UserError(
                f"Expected to write the report to {printable(options.out)}, but got: {error.strerror or error}. Choose "
                f"another folder with --out FOLDER."
            ) from error
    except UserError as error:
        print(f"Error: {printable(error, lines=True)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
