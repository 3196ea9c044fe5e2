"""The gain from waiting threads that release their core early: ``python -m benchmarks.waiting``.

Threads of GNU's OpenMP that wait for each other spin 300,000 times by default before they sleep; the command line asks
for 10,000. The same small pipeline runs with both, in turns, on the idle machine and on one with a busy program for
every core.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.cases import ROOT

PIPELINE = (
    "sources=[kegnet]", "teacher.epochs=3", "generator.count=1", "generator.epochs=1", "student.samples=4000",
    "student.epochs=1",
)  # fmt: skip

SPINS = ("300000", "10000")
"""OpenMP's default, and ours."""


def run_once(spins: str, busy: bool) -> float:
    """Run the pipeline from its beginning; return seconds of training, as the stages count them."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if busy:
            for _ in range(os.cpu_count() or 1):
                process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                stack.callback(process.wait)
                stack.callback(process.kill)
            time.sleep(0.5)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
        subprocess.run(
            [sys.executable, "-m", "kegnet_pl", *PIPELINE, f"store={folder}/store", f"hydra.run.dir={folder}/run"],
            env=environment | {"GOMP_SPINCOUNT": spins}, check=True, capture_output=True, cwd=folder,
        )  # fmt: skip
        rows = json.loads((Path(folder) / "run" / "results.json").read_text())
        return float(sum(rows[-1]["stage_seconds"].values()))


def main() -> None:
    """Measure, print and store."""
    from kegnet_pl.pipeline.provenance import command_line, versions

    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "waiting.json")
    given = parser.parse_args()
    rows = []
    for busy in (False, True):
        seconds: dict[str, list[float]] = {spins: [] for spins in SPINS}
        for turn in range(given.repeats):
            for spins in SPINS if turn % 2 == 0 else SPINS[::-1]:
                seconds[spins].append(run_once(spins, busy))
        ratio = statistics.median(long / short for long, short in zip(*seconds.values(), strict=True))
        rows.append({"busy": busy, "seconds": seconds, "times_as_fast": ratio})
        where = "beside a program for every core" if busy else "on the machine as it is"
        print(f"{where}: {ratio:.2f} times as fast with ours")  # noqa: T201
    content = {
        "cores": os.cpu_count(), "repeats": given.repeats, "rows": rows, "versions": versions(),
        "command": command_line("benchmarks.waiting"),
    }  # fmt: skip
    given.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
