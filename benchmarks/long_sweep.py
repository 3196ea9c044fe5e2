"""Resource growth of one process that runs many tiny jobs of a sweep: ``python -m benchmarks.long_sweep --jobs 200``.

After every tenth job it records memory, open files, temporary files, size of the environment and number of objects, in
``results/long_sweep.json``.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from kegnet_pl.pipeline import cli
from kegnet_pl.pipeline import run as pipeline
from kegnet_pl.pipeline.provenance import command_line, versions
from kegnet_pl.runtime.atomic_files import atomic_write

OUT = Path(__file__).parents[1] / "results" / "long_sweep.json"


def describe(record: dict[str, Any]) -> str:
    """Return the sentence about a record in docs/reliability.md."""
    points = record["points"]
    parts = [
        f"{name.split(',')[0]} {' / '.join(f'{point[name]:,}' for point in (points[0], points[1], points[-1]))}{unit}"
        for name, unit in (
            ("memory, MB", " MB"), ("open files", ""), ("temporary files", ""), ("environment, bytes", " bytes")
        )
    ]  # fmt: skip
    jobs = [point["job"] for point in (points[0], points[1], points[-1])]
    return (
        f"`{record['command']}` ran {jobs[-1]} tiny jobs of a sweep in one process, in {record['seconds']:,} s. The "
        f"values after {jobs[0]} / {jobs[1]} / {jobs[-1]} jobs are: {', '.join(parts)} ([results/long_sweep.json]"
        f"(../results/long_sweep.json))."
    )


def main() -> None:
    """Run the sweep; print and record a line for every tenth job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    out = options.out.absolute()
    record: dict[str, Any] = {"command": command_line("benchmarks.long_sweep"), "versions": versions()}
    points: list[dict[str, int]] = []
    start = time.perf_counter()
    before = Path.cwd()
    work = tempfile.TemporaryDirectory()
    folder = Path(work.name)
    (folder / "tmp").mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
    os.chdir(folder)
    done, run = [0], pipeline.run

    def counted(*arguments: Any, **more: Any) -> Any:
        result = run(*arguments, **more)
        done[0] += 1
        if done[0] == 1 or done[0] % options.every == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            held = {
                "memory, MB": pages * os.sysconf("SC_PAGE_SIZE") // 2**20,
                "open files": len(list(Path("/proc/self/fd").iterdir())),
                "temporary files": len(list((folder / "tmp").rglob("*"))),
                "environment, bytes": sum(len(key) + len(value) for key, value in os.environ.items()),
                "objects": len(gc.get_objects()),
            }
            points.append({"job": done[0], **held})
            print(points[-1], file=sys.stderr, flush=True)  # noqa: T201
            seconds = round(time.perf_counter() - start)
            atomic_write(out, json.dumps(record | {"seconds": seconds, "points": points}, indent=1) + "\n")
        return result

    sys.argv = [
        "kegnet_pl", "-m", "debug=fast", f"seed={','.join(map(str, range(options.jobs)))}", "sources=[]",
        "compression.fit=weights", "agreement.sources=[]", "latency.batch_sizes=[]", "store=store",
        "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    with mock.patch.object(pipeline, "run", counted):
        cli.main()
    os.chdir(before)
    work.cleanup()


if __name__ == "__main__":
    main()
