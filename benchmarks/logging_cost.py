"""The cost of loggers in a run: ``python -m benchmarks.logging_cost``.

The same pipeline runs with csv files alone, and with W&B (offline) and TensorBoard in addition. The two take turns,
each in its own process, so that other load of the machine affects both. For every stage that trains: the share of its
time inside loggers and sample monitors, by the clock. For the pipeline: the additional seconds of processors (median
of neighbouring runs), which include W&B's own process. The time to start the loggers is spent once per program and
reported separately.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cases import ROOT

LOGGERS = {"without": "csv", "with": "[wandb,tensorboard]"}

TIMED = ("teacher", "generators", "student")
"""Stages that train."""


class Clock:
    """Seconds inside certain calls; those of a call inside another one count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def watch(self, owner: type, *names: str) -> None:
        """Count the seconds of a class's methods."""
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - start

        return timed


def run_once(overrides: list[str], loggers: str) -> dict[str, dict[str, float]]:
    """Run a pipeline from its beginning; return seconds, and those inside loggers, of every stage."""
    from hydra import compose, initialize_config_dir
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

    from kegnet_pl.pipeline.configuration import to_plain
    from kegnet_pl.pipeline.context import RunContext
    from kegnet_pl.pipeline.loggers import Loggers
    from kegnet_pl.pipeline.run import run
    from kegnet_pl.pipeline.sample_monitor import SampleMonitor
    from kegnet_pl.pipeline.wandb_runs import WandbCurves

    clock = Clock()
    clock.watch(Loggers, "make", "show", "finish_stage", "finish")
    clock.watch(WandbCurves, "log_metrics")
    clock.watch(SampleMonitor, "on_train_epoch_end")
    for logger in (CSVLogger, TensorBoardLogger, WandbLogger):
        clock.watch(logger, *({"log_metrics", "log_hyperparams", "save", "finalize"} & set(vars(logger))))
    spent: dict[str, dict[str, float]] = defaultdict(lambda: {"seconds": 0.0, "inside": 0.0})
    get_or_build = RunContext.get_or_build

    def timed(self: RunContext, stage: str, *args: Any, **kwargs: Any) -> Any:
        start, inside = time.perf_counter(), clock.seconds
        try:
            return get_or_build(self, stage, *args, **kwargs)
        finally:
            spent[stage]["seconds"] += time.perf_counter() - start
            spent[stage]["inside"] += clock.seconds - inside

    RunContext.get_or_build = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    if loggers == LOGGERS["with"]:
        import torch.utils.tensorboard  # noqa: F401
        import wandb

        with tempfile.TemporaryDirectory() as folder:
            wandb.init(
                mode="offline", dir=folder, reinit="create_new"
            ).finish()  # the first run starts what later runs share
    spent["start"]["seconds"] = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        places = [f"store={folder}/store", "resume=never", f"logger={loggers}"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = to_plain(compose("config", overrides=[*overrides, *places]))
            results = Path(folder) / "run"
        results.mkdir()
        run(config, results)
    return {stage: dict(times) for stage, times in spent.items()}


def _in_process(overrides: list[str], loggers: str) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", "benchmarks.logging_cost", *overrides, "--once", loggers, "--out", str(out)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=os.environ | {"WANDB_MODE": "offline"}, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        times: dict[str, dict[str, float]] = json.loads(out.read_text())
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        times["pipeline"] = {"cpu_seconds": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime}
        return times


def compare(overrides: list[str], repeats: int) -> dict[str, Any]:
    """Run both ways, taking turns; return what it costs, a pipeline's row of ``logging_cost.json``."""
    from kegnet_pl.pipeline.provenance import command_line, versions

    runs: dict[str, list[dict[str, dict[str, float]]]] = {way: [] for way in LOGGERS}
    for turn in range(repeats):
        for way in list(LOGGERS) if turn % 2 == 0 else list(LOGGERS)[::-1]:
            runs[way].append(_in_process(overrides, LOGGERS[way]))
    used = {way: [times["pipeline"]["cpu_seconds"] for times in several] for way, several in runs.items()}
    more = [a / b - 1 for a, b in zip(used["with"], used["without"], strict=True)]
    stages = [stage for stage in TIMED if stage in runs["with"][0]]
    shares = {stage: [times[stage]["inside"] / times[stage]["seconds"] for times in runs["with"]] for stage in stages}
    return {
        "overrides": overrides,
        "start_seconds": statistics.median(times["start"]["seconds"] for times in runs["with"]),
        "stages": {
            stage: {
                "seconds": statistics.median(times[stage]["seconds"] for times in runs["with"]),
                "share": statistics.median(shares[stage]),
                "all_shares": shares[stage],
            }
            for stage in stages
        },
        "cpu_seconds": used,
        "more_cpu_seconds": statistics.median(more),
        "repeats": repeats,
        "versions": versions(),
        "command": command_line("benchmarks.logging_cost"),
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logging_cost", description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the pipeline; default: the demo")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "logging_cost.json")
    parser.add_argument("--once", metavar="LOGGERS", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once is not None:
        given.out.write_text(json.dumps(run_once(given.overrides, given.once)))
        return
    from rich.console import Console

    row = compare(given.overrides, given.repeats)
    console = Console(width=120)
    for stage, times in row["stages"].items():
        console.print(f"{stage:<12} {times['seconds']:8.2f} s, inside loggers {times['share']:.1%}")
    console.print(
        f"W&B and TensorBoard start in {row['start_seconds']:.1f} s, once a program; "
        f"the pipeline uses {row['more_cpu_seconds']:+.1%} seconds of processors."
    )
    kept = json.loads(given.out.read_text()) if given.out.exists() else []
    kept = [other for other in kept if other["overrides"] != given.overrides]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps([*kept, row], indent=2) + "\n")
    console.print(f"Stored in {os.path.relpath(given.out)}.")


if __name__ == "__main__":
    main()
