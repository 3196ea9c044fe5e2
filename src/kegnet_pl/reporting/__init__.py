"""What a run shows: the table, the sample sheet, ``results.json``."""

from kegnet_pl.reporting.results import Row, write_results
from kegnet_pl.reporting.sheet import draw_sample_sheet
from kegnet_pl.reporting.tables import (
    describe_results,
    explain_losses,
    make_compression_table,
    make_results_table,
    shown_accuracy,
)

__all__ = [
    "Row", "describe_results", "draw_sample_sheet", "explain_losses", "make_compression_table", "make_results_table",
    "shown_accuracy", "write_results",
]  # fmt: skip
