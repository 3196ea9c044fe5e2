"""Time of a step by kind of operation: ``python -m benchmarks.profile_steps``.

Torch's profiler attributes time to operators on the calling thread; what no operator explains is Python, dispatch and
autograd's bookkeeping. The profiler slows small operators down, so shares are shares of the profiled time.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import EXPERIMENTS, ROOT, Case, make_case
from benchmarks.worker import Task, bare_steps, count_operations, measure_rate
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.networks import prefer_channels_last
from kegnet_pl.pipeline.provenance import command_line, versions
from kegnet_pl.runtime.memory import keep_freed_memory

KINDS = {
    "products": ("convolution", "mm", "bmm", "baddbmm"),
    "normalisation": ("batch_norm", "var_mean"),
    "sorting": ("sort", "gather", "cumsum", "cummax", "scatter"),
    "optimiser": ("adam",),
}
"""kind -> parts of the names of its operators; all other operators are elementwise, pooling or copies."""

STEPS = 20


def _kind(name: str) -> str:
    operator = name.lower().removeprefix("aten::")
    for kind, parts in KINDS.items():
        if any(part in operator for part in parts):
            return kind
    return "elementwise, pooling, copies" if name.startswith("aten::") else "between operators"


def _student_steps(case: Case, precision: str) -> Callable[[], None]:
    config = case.settings.student
    student = prefer_channels_last(case.student(), case.input_shape).train()
    optimizer, distillation = torch.optim.Adam(student.parameters(), lr=1e-4, fused=True), DistillationLoss()
    x = torch.randn(STEPS * config.batch_size, *case.input_shape)
    logits = torch.randn(len(x), case.classes)

    def run() -> None:
        for batch, target in zip(x.split(config.batch_size), logits.split(config.batch_size), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = distillation(student(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def profile(work: str, network: str, precision: str, rate: float) -> dict[str, Any]:
    """Profile some steps; return seconds a step, shares by kind, and the floor at a rate of operations a second."""
    case = make_case(network)
    task = Task(work, network, precision=precision, how="bare", steps=STEPS, samples=case.settings.student.batch_size)
    run = bare_steps(case, task) if work == "generator_step" else _student_steps(case, precision)
    for _ in range(2):
        run()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - start) / STEPS)
    # Without the profiler's own thread of events: only operators, no shapes, no stacks.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        start = time.perf_counter()
        run()
        profiled = time.perf_counter() - start
    spent: dict[str, float] = {}
    for event in seen.key_averages():
        kind = _kind(event.key)
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total / 1e6
    spent["between operators"] = profiled - sum(value for kind, value in spent.items() if kind != "between operators")
    return {
        "work": work, "network": network, "precision": precision, "seconds": sorted(seconds)[2],
        "shares": {kind: value / profiled for kind, value in sorted(spent.items(), key=lambda item: -item[1])},
        "floor_seconds": count_operations(task) / rate, "steps": STEPS,
        "versions": versions(),
        "command": command_line("benchmarks.profile_steps"),
    }  # fmt: skip


def main() -> None:
    """Profile, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_steps", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"], choices=["32-true", "bf16-mixed"])
    given = parser.parse_args()
    keep_freed_memory()
    rates = {precision: measure_rate("cpu", precision) for precision in given.precisions}
    rows = [
        profile(work, network, precision, rates[precision])
        for work in ("generator_step", "student_step")
        for network in given.networks
        for precision in given.precisions
    ]
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["shares"]))
    table = Table(
        "work", "network", "precision", "ms", "floor ms", *kinds, title="Share of a step by kind of operation"
    )
    for row in rows:
        shares = [f"{row['shares'].get(kind, 0):.0%}" for kind in kinds]
        times = f"{1e3 * row['seconds']:.2f}", f"{1e3 * row['floor_seconds']:.2f}"
        table.add_row(row["work"], row["network"], row["precision"], *times, *shares)
    Console(width=150).print(table)
    (ROOT / "results" / "bench_profile.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
