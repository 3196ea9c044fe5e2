"""Reports of runs: tables, pictures of samples, ``results.json``."""

from kegnet_pl.reporting.images import draw_sample_sheet
from kegnet_pl.reporting.results import Row, write_results
from kegnet_pl.reporting.tables import (
    describe_results,
    explain_losses,
    format_accuracy,
    make_compression_table,
    make_results_table,
)

__all__ = [
    "Row", "describe_results", "draw_sample_sheet", "explain_losses", "format_accuracy", "make_compression_table",
    "make_results_table", "write_results",
]  # fmt: skip
