"""Comparison of variants of training and drawing on one device: ``make bench DEVICE=cuda``.

The results are in ``results/bench_cuda.json``. For each network, work and precision, workers take turns. The variants
are the direct implementation, the product with ordinary (eager) steps, with CUDA graphs and with torch.compile, for one
generator and for all stacked generators of an experiment. No new measurement starts after ``--minutes``. Finished
measurements are not repeated, so a second call continues.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.bench import STEPS, WORKS, device_label, megabytes
from benchmarks.cases import EXPERIMENTS, ROOT
from benchmarks.turns import ratio, running, take_turns
from benchmarks.worker import Task, count_operations, measure_rate
from kegnet_pl.pipeline.provenance import command_line, versions
from kegnet_pl.runtime.atomic_files import atomic_write

WAYS: dict[str, dict[str, Any]] = {
    "direct": {"how": "direct"},
    "eager": {"graphs": False},
    "CUDA graphs": {},
    "compile": {"graphs": False, "compile": True},
    "stacked, eager": {"graphs": False, "together": True},
    "stacked, CUDA graphs": {"together": True},
}
"""Name of a variant -> fields of its :class:`Task`."""

Group = tuple[Task, list[str]]
"""A task, and the variants that are measured."""


def groups(networks: list[str], device: str, precisions: list[str], samples: int) -> Iterator[Group]:
    """Yield the tasks in the order of importance; torch.compile comes last, since it starts slowly."""
    for compiled in (False, True):
        for network in networks:
            for work in WORKS:
                for precision in ["32-true"] if work == "draw" else precisions:
                    ways = [way for way in WAYS if _suits(way, work, device, compiled)]
                    if len(ways) > 1:
                        yield Task(work, network, device, precision, steps=STEPS[network], samples=samples), ways


def _suits(way: str, work: str, device: str, compiled: bool) -> bool:
    if way == "direct" or (way == "eager" and work == "draw" and not compiled):
        return True
    possible = device == "cuda" or "graphs" not in way
    return possible and work != "draw" and (way == "compile") == compiled and ("stacked" not in way or work == WORKS[0])


def measure(task: Task, ways: list[str], repeats: int, rate: float) -> list[dict[str, Any]]:
    """Measure variants of a task in turns; return a row for each. Seconds are per generator."""
    with running(*(replace(task, **WAYS[way]) for way in ways)) as workers:
        seconds = take_turns(workers, repeats, warm=2)
        peaks = [megabytes(worker, task.device) for worker in workers]
    operations = count_operations(task)
    return [
        {
            "work": task.work, "network": task.network, "precision": task.precision, "way": way,
            "device": device_label(task.device), "samples": task.samples if task.work != WORKS[0] else None,
            "seconds": statistics.median(times), "all_seconds": times, "peak_mb": peak,
            "times_faster_than_direct": ratio(seconds[0], times), "operations": operations,
            "share_of_rate": operations / rate / statistics.median(times), "rate": rate, "repeats": repeats,
            "versions": versions(), "command": command_line("benchmarks.variants"),
        }
        for way, times, peak in zip(ways, seconds, peaks, strict=True)
    ]  # fmt: skip


def main() -> None:
    """Measure missing rows until the time is over."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--networks", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"], choices=["32-true", "bf16-mixed"])
    parser.add_argument("--samples", type=int, default=32_000, help="of an epoch and of a draw")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each way")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no measurement after this time")
    parser.add_argument("--out", type=Path, help="default: results/bench_DEVICE.json")
    given = parser.parse_args()
    out = given.out or ROOT / "results" / f"bench_{given.device}.json"
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    console, end = Console(width=140), time.monotonic() + 60 * given.minutes
    rates: dict[str, float] = {}
    missing = 0
    for task, ways in groups(given.networks, given.device, given.precisions, given.samples):
        name = (task.work, task.network, task.precision)
        done = {row["way"] for row in rows if (row["work"], row["network"], row["precision"]) == name}
        if set(ways) <= done:
            continue
        if time.monotonic() > end:
            missing += 1
            continue
        if task.precision not in rates:
            rates[task.precision] = measure_rate(given.device, task.precision)
        for row in measure(task, ways, given.repeats, rates[task.precision]):
            if row["way"] not in done:
                rows.append(row)
                figures = f"{row['seconds']:.4g} s, {row['times_faster_than_direct']:.2f}x, {row['share_of_rate']:.1%}"
                console.print(f"{', '.join(name)}, {row['way']}: {figures}, {row['peak_mb']:,.0f} MB")
        atomic_write(out, json.dumps(rows, indent=1) + "\n")
    more = f" {missing} groups are missing: run the command again." if missing else ""
    console.print(f"{len(rows)} rows in {out.name}.{more}")


if __name__ == "__main__":
    main()
