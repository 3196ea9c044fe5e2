"""Seconds and memory of the product, beside a direct implementation and the machine's floor: ``make bench``.

Every measurement is of two workers, a process each, that take turns: what else the machine does hits both. A worker
is what a user would run: the product through a Lightning ``Trainer`` with the pipeline's settings, or ``direct.py``.
The floor is the number of floating-point operations (torch's flop counter: matrix products and convolutions, without
gradients of the teacher's weights) over the rate of a large matrix product on the same device at the same precision.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import EXPERIMENTS, ROOT, make_case
from benchmarks.worker import Task, count_operations, measure_rate, serve
from kegnet_pl.pipeline.provenance import command_line, versions
from kegnet_pl.training.vectorization import should_vectorize

STEPS = {"lenet5": 20, "resnet14": 10, "mlp": 100}
"""Generator steps of one measurement: some seconds."""

WORKS = ("generator_step", "student_epoch", "draw")


class Worker:
    """A process that does one task, one measurement at a time.

    Args:
        task: What it does.

    Raises:
        RuntimeError: If the task fails.
    """

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(task, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self._answer()

    def _answer(self) -> Any:
        answer = self.pipe.recv()
        if isinstance(answer, str) and answer != "ready":
            raise RuntimeError(answer)
        return answer

    def ask(self, what: str) -> Any:
        """Ask for a measurement (``go``), for the peak memory (``peak``), or to ``forget`` it."""
        self.pipe.send(what)
        return self._answer()

    def stop(self) -> None:
        """End the process."""
        self.pipe.send("stop")
        self.process.join()


@contextmanager
def running(*tasks: Task) -> Iterator[list[Worker]]:
    """Start a worker a task, and end them."""
    with ExitStack() as stack:
        workers = []
        for task in tasks:
            workers.append(Worker(task))
            stack.callback(workers[-1].stop)
        yield workers


def take_turns(workers: list[Worker], repeats: int, warm: int = 1) -> list[list[float]]:
    """Return the seconds of every worker's measurements; the order of the turns alternates."""
    for worker in workers:
        for _ in range(warm):
            worker.ask("go")
        worker.ask("forget")
    seconds: list[list[float]] = [[] for _ in workers]
    for turn in range(repeats):
        order = list(range(len(workers)))
        for index in order if turn % 2 == 0 else order[::-1]:
            seconds[index].append(workers[index].ask("go"))
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the ratios of neighbouring measurements."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def megabytes(worker: Worker, device: str) -> float:
    """Return the peak memory since the warm-up, of the device that computes."""
    return float(worker.ask("peak")["device_mb" if device == "cuda" else "host_mb"])


def measure(task: Task, repeats: int, rates: dict[str, float]) -> dict[str, Any]:
    """Measure the product beside the direct implementation; return a row of ``bench.json``."""
    # Generators are trained as the pipeline trains them where nobody says how.
    together = task.work == "generator_step" and should_vectorize(
        "auto", 2, torch.device(task.device), make_case(task.network).input_shape
    )
    ours, direct = replace(task, together=together), replace(task, how="direct")
    tasks = [ours, direct, replace(ours, how="bare")] if task.work == "generator_step" else [ours, direct]
    with running(*tasks) as workers:
        seconds = take_turns(workers, repeats, warm=2 if task.work == "generator_step" else 1)
        peak, direct_peak = (megabytes(worker, task.device) for worker in workers[:2])
    floor = count_operations(task) / rates[task.precision]
    mine = statistics.median(seconds[0])
    return {
        "work": task.work,
        "network": task.network,
        "device": _device_name(task.device),
        "precision": task.precision,
        "seconds": mine,
        "direct_seconds": statistics.median(seconds[1]),
        "floor_seconds": floor,
        "times_faster_than_direct": ratio(seconds[1], seconds[0]),
        "times_floor": mine / floor,
        "peak_mb": peak,
        "direct_peak_mb": direct_peak,
        "repeats": repeats,
        "versions": versions(),
        "lightning_share": 1 - ratio(seconds[2], seconds[0]) if len(tasks) == 3 else None,
        "all_seconds": seconds[0],
        "all_direct_seconds": seconds[1],
        "seed": 0,
        "command": command_line("benchmarks.bench"),
    }


def compare_choices(
    networks: list[str], device: str, precisions: list[str], repeats: int, small: Task
) -> list[dict[str, Any]]:
    """Measure what the product could do otherwise: what its defaults rest on."""
    rows = []
    for network in networks:
        for precision in precisions:
            step = replace(small, work="generator_step", network=network, device=device, precision=precision)
            step = replace(step, steps=max(STEPS[network] // 2, 2))
            epoch = replace(step, work="student_epoch", samples=min(small.samples, 3200))
            pairs = [("vmap", step, replace(step, together=True)), ("compile", step, replace(step, compile=True))]
            pairs.append(("compile", epoch, replace(epoch, compile=True)))
            if device == "cpu":
                pairs += [("keep_freed_memory", replace(task, keep=False), task) for task in (step, epoch)]
            else:
                pairs += [("cuda_graphs", replace(task, graphs=False), task) for task in (step, epoch)]
            for choice, without, chosen in pairs:
                with running(without, chosen) as workers:
                    seconds = take_turns(workers, repeats)
                rows.append(
                    {
                        "choice": choice, "work": chosen.work, "network": network, "device": _device_name(device),
                        "precision": precision, "seconds": statistics.median(seconds[1]),
                        "seconds_without": statistics.median(seconds[0]), "times_faster": ratio(*seconds),
                        "samples": chosen.samples if chosen.work == "student_epoch" else None, "repeats": repeats,
                        "versions": versions(), "command": command_line("benchmarks.bench"),
                    }
                )  # fmt: skip
    return rows


def _merged(out: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put new rows in the places of older ones of the same kind."""
    kind = ("choice", "work", "network", "device", "precision")
    new = {tuple(row.get(key) for key in kind): row for row in rows}
    old = json.loads(out.read_text()) if out.exists() else []
    kept = {tuple(row.get(key) for key in kind): row for row in old}
    return list((kept | new).values())


def _device_name(device: str) -> str:
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"


def _show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="Seconds of one generator step, one student epoch, one draw; medians")
    for name in (
        "work",
        "network",
        "precision",
        "seconds",
        "direct",
        "faster",
        "floor",
        "x floor",
        "MB",
        "direct MB",
        "Lightning",
    ):
        table.add_column(name, justify="left" if name in ("work", "network", "precision") else "right")
    for row in rows:
        share = row["lightning_share"]
        table.add_row(
            row["work"], row["network"], row["precision"], f"{row['seconds']:.4g}", f"{row['direct_seconds']:.4g}",
            f"{row['times_faster_than_direct']:.1f}x", f"{row['floor_seconds']:.3g}", f"{row['times_floor']:.1f}",
            f"{row['peak_mb']:.0f}", f"{row['direct_peak_mb']:.0f}", "" if share is None else f"{share:.0%}",
        )  # fmt: skip
    console.print(table)


def _show_choices(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="Choices: seconds without, with; medians")
    for name in ("choice", "work", "network", "precision", "without", "with", "faster"):
        table.add_column(name, justify="right" if name in ("without", "with", "faster") else "left")
    for row in rows:
        table.add_row(
            row["choice"], row["work"], row["network"], row["precision"], f"{row['seconds_without']:.4g}",
            f"{row['seconds']:.4g}", f"{row['times_faster']:.2f}x",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"], choices=["32-true", "bf16-mixed"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each side")
    parser.add_argument("--samples", type=int, default=32_000, help="of an epoch and of a draw")
    parser.add_argument("--choices", action="store_true", help="compare the product's choices instead")
    parser.add_argument(
        "--out", type=Path, default=None, help="default: results/bench.json, results/bench_choices.json"
    )
    given = parser.parse_args()
    console = Console(width=140)
    small = Task("generator_step", given.networks[0], samples=given.samples)
    start = time.perf_counter()
    if given.choices:
        rows = compare_choices(given.networks, given.device, given.precisions, given.repeats, small)
        _show_choices(rows, console)
    else:
        # The product draws in float32.
        precisions = {work: ["32-true"] if work == "draw" else given.precisions for work in given.works}
        wanted = dict.fromkeys(precision for several in precisions.values() for precision in several)
        rates = {precision: measure_rate(given.device, precision) for precision in wanted}
        rows = []
        for network in given.networks:
            for work in given.works:
                for precision in precisions[work]:
                    task = replace(
                        small,
                        work=work,
                        network=network,
                        device=given.device,
                        precision=precision,
                        steps=STEPS[network],
                    )
                    rows.append(measure(task, given.repeats, rates))
                    console.print(
                        f"{network} {work} {precision}: {rows[-1]['times_faster_than_direct']:.1f}x", style="dim"
                    )
        _show(rows, console)
        shown = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s ({precision})" for precision, rate in rates.items())
        console.print(f"Matrix products: {shown}. {time.perf_counter() - start:.0f} s in all.")
    out = given.out or ROOT / "results" / ("bench_choices.json" if given.choices else "bench.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_merged(out, rows), indent=2) + "\n")
    console.print(f"Stored in {os.path.relpath(out)}.")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
