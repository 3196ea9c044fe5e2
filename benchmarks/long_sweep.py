"""Resource growth of one process that runs many tiny jobs of a sweep: ``python benchmarks/long_sweep.py --jobs 200``.

After every tenth job it prints memory, open files, temporary files, size of the environment and number of objects.
"""

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from kegnet_pl.pipeline import cli
from kegnet_pl.pipeline import run as pipeline


def main() -> None:
    """Run the sweep and print a line for every tenth job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
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
            print(f"job {done[0]}: {held}", file=sys.stderr, flush=True)  # noqa: T201
        return result

    sys.argv = [
        "kegnet_pl", "-m", "debug=fast", f"seed={','.join(map(str, range(options.jobs)))}", "sources=[]",
        "compression.fit=weights", "agreement.sources=[]", "latency.batch_sizes=[]", "store=store",
        "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    with mock.patch.object(pipeline, "run", counted):
        cli.main()


if __name__ == "__main__":
    main()
