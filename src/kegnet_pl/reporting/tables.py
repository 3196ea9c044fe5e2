"""Tables for the terminal."""

import math
from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from kegnet_pl.compression import CompressionReport
from kegnet_pl.reporting.agreement import format_agreement
from kegnet_pl.reporting.names import name_network
from kegnet_pl.reporting.results import Row, find_last
from kegnet_pl.runtime.timing import explain_noise

_SLOWER = 0.95
"""Speed-up below which a network is called slower; measurements vary."""

LOW_INT8_AGREEMENT = 0.9
"""Agreement with float32 on synthetic samples below which a quantised network gets a warning (results/INT8.md)."""


def describe_results(rows: Sequence[Row]) -> str:
    """Return the test set of one run, its seed, and the selection of epochs, as one line."""
    first = rows[0]
    selections = sorted({row.selection for row in rows if row.selection is not None})
    where = first.test_set or f"{first.dataset}: no test data, accuracy not measured"
    return f"{where}; seed {first.seed}; epoch kept: {', '.join(selections) or 'nothing was trained'}"


def describe_job(rows: Sequence[Row]) -> str:
    """Return the results of the teacher and of the last student of one run, as one line."""
    last, parts = find_last(rows), []
    if last.accuracy is not None:
        parts += [f"{row.name} {format_accuracy(row)}" for row in (rows[0], last)]
    if last.mean_agreement is not None:
        parts.append(f"agreement {format_agreement(last.mean_agreement, last.agreement_samples)}")
    return f"results: {', '.join([*parts, f'{last.compression_ratio:.2f}x smaller'])}"


def number_columns(*headings: str) -> list[Column]:
    """Return columns of numbers, which are aligned to the right."""
    return [Column(heading, justify="right") for heading in headings]


def find_best(rows: Sequence[Row]) -> Row | None:
    """Return the student with the highest accuracy, in float32 and no ceiling; None where none was measured."""
    students = [row for row in rows if row.student is not None and row.quantization is None and not row.is_ceiling]
    measured = [row for row in students if row.accuracy is not None]
    return max(measured, key=lambda row: row.accuracy or 0.0, default=None)


def make_results_table(rows: Sequence[Row]) -> Table:
    """Lay out the rows of one run."""
    sizes = list(rows[0].speedups)
    speed = [f"speed-up\nat {', '.join(map(str, sizes))}"] if sizes else []
    agrees = ["agreement"] if any(row.agreement is not None for row in rows) else []
    numbers = number_columns("accuracy", *agrees, "parameters", "ratio", "MB", "MACs", *speed, "seconds")
    table = Table("network", "prior", *numbers)
    best, last = find_best(rows), next(row for row in reversed(rows) if row.quantization is None)
    for row in rows:
        table.add_row(
            row.name,
            row.prior,
            Text(format_accuracy(row), style="bold green" if row is best else ""),
            *([format_agreement(row.mean_agreement, row.agreement_samples)] if agrees else []),
            f"{row.parameters:,}",
            f"{row.compression_ratio:.2f}x",
            format_size(row.size),
            f"{row.macs:,}",
            *([", ".join(f"{value:.2f}x" for value in row.speedups.values())] if speed else []),
            f"{row.seconds_from_teacher:.1f}",
            end_section=row.method == "teacher" or row is last,
            style="dim italic" if row.is_ceiling else "",
        )
    return table


def explain_names(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on the names of the networks and on the seconds of one run."""
    names = []
    methods = [row.method for row in rows]
    for letter in ("T", "S"):
        if letter in methods:
            names.append(f"{name_network(letter)}: the network before training ({letter} in files and options)")
        if any(method.startswith(f"{letter}+") for method in methods):
            names.append(f"student (NAME): the same network, trained on samples of NAME ({letter}+NAME)")
    return [". ".join([*(["; ".join(names)] if names else []), "Seconds: all stages from the teacher to the network."])]


def explain_speed(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on the measured speed of one run, with a warning if its network is slower than the teacher."""
    rows = [row for row in rows if row.quantization is None]
    latency, speedups = rows[-1].latency, rows[-1].speedups
    if latency is None or not speedups:
        return []
    threads = "" if latency["threads"] is None else f", threads of PyTorch: {latency['threads']}"
    sizes = ", ".join(map(str, speedups))
    lines = [
        f"Speed-up: time of the teacher / time of the network, for batches of {sizes}, on {latency['device']}{threads}."
    ]
    noisy = [size for size in speedups if size in (*rows[0].noisy_sizes, *rows[-1].noisy_sizes)]
    if noisy:
        lines.append(f"{explain_noise(noisy)} `python -m kegnet_pl.benchmark RUN` measures again.")
    slower = {size: value for size, value in speedups.items() if value < _SLOWER and size not in noisy}
    if slower and len(rows) > 1:
        found = " and ".join(f"{value:.2f}x at batch size {size}" for size, value in slower.items())
        pruned = rows[-1].compression == "pruning"
        choose = "channels" if pruned else "ranks"
        setting = "compression.by=latency" if pruned else "compression.by=latency and compression.fit=function"
        lines.append(
            f"The student is slower than its teacher on this machine: {found}. Other work on the machine disturbs the "
            f"times: `python -m kegnet_pl.benchmark RUN` measures them again. Fewer parameters do not always mean "
            f"lower latency. To choose {choose} by measured time, set {setting}."
        )
    return lines


def explain_quantization(rows: Sequence[Row]) -> list[str]:
    """Return sentences on the quantised networks of one run; none if there are none."""
    found = [(row, row.quantization) for row in rows if row.quantization is not None]
    if not found:
        return []
    first, what = found[0][1], "weights"
    if first["source"] is not None:
        what += f" and activations, calibrated on {first['samples']} samples of {first['source']['title']}"
    lines = [
        f"int8: {what}; ONNX files for {first['runtime']}. Their speed-up is relative to the teacher in float32, in "
        f"the same runtime on the CPU."
    ]
    sizes = {f"{row.method} int8": row.size for row in rows}
    larger = [row.name for row, _ in found if row.size and row.size >= (sizes.get(row.method) or math.inf)]
    if larger:
        lines.append(
            f"{'; '.join(larger)}: the file is not smaller than in float32. In a network of this size, scales and "
            f"additional nodes need as much space as int8 saves."
        )
    return lines


def explain_difference(agreement: float | None) -> str | None:
    """Return a warning if a quantised network agrees with the one in float32 too little, None if it agrees enough.

    ``agreement`` is None if the network in float32 gives one class to all samples.
    """
    if agreement is None:
        return "in float32 it gives one class to all samples, so agreement is unknown. Use another source."
    if agreement >= LOW_INT8_AGREEMENT:
        return None
    return (
        f"it gives the same class as in float32 to only {agreement:.1%} of held-out samples of the source, which is "
        f"below {LOW_INT8_AGREEMENT:.0%}. Measure its accuracy, use another source, or quantise only weights."
    )


def explain_losses(rows: Sequence[Row], norm: str, batch_norm: bool) -> list[str]:
    """Return a warning for every student that is worse than the compressed teacher it was initialised with.

    Args:
        rows: Rows of one run.
        norm: ``student.norm`` of the run.
        batch_norm: True if the teacher, and so the student, has batch norm.
    """
    initial = next((row.accuracy for row in rows if row.method == "T"), None)
    advice = ""
    if batch_norm and norm == "batch":
        advice = (
            " Its batch norm has the statistics of the last synthetic samples. student.norm=frozen keeps the teacher's "
            "statistics. student.norm=adapt student.shuffle=true adapts them to the outputs of the teacher's layers."
        )
    lines = []
    for row in rows:
        trained = row.source is not None and row.quantization is None
        if trained and initial is not None and row.accuracy is not None and row.accuracy < initial:
            lost = 100 * (initial - row.accuracy)
            lines.append(
                f"{row.name} is {lost:.1f} points below the network before training.{'' if row.is_ceiling else advice}"
            )
    return lines


def format_accuracy(row: Row) -> str:
    """Return the accuracy of a row in percent, as text."""
    return "not measured" if row.accuracy is None else f"{100 * row.accuracy:.2f} %"


def format_size(size: float | None) -> str:
    """Return bytes in MB, as text; empty if they are not known."""
    return "" if size is None else f"{size / 1e6:.3g}"


def make_compression_table(report: CompressionReport) -> Table:
    """Return the report of a compression as a table for the console."""
    (head, *layers, network), notes = report.cells()
    below = {"caption": "\n".join(notes), "caption_justify": "left"} if notes else {}
    table = Table(Column(head[0], no_wrap=True), head[1], *number_columns(*head[2:5]), head[5], **below)  # type: ignore[arg-type]
    for line in layers:
        table.add_row(*line, end_section=line is layers[-1])
    table.add_row(*network)
    return table
