"""Cost of a run with many classes: ``python benchmarks/many_classes.py --classes 1000 --side 16``.

It prints the seconds of the generator stage and of its training, the peak memory above that of a process that has
imported torch, and the sizes of sheets, pages and manifests.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_module

from kegnet_pl.pipeline.configuration import to_plain
from kegnet_pl.pipeline.run import run

TEACHER = """
import torch
from torch import nn

def make(classes: int = 10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes),
    )
"""


def main() -> None:
    """Run the pipeline once and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--side", type=int, default=16, help="pixels of an image's side")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--test", type=int, default=2000, help="test samples")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "net.py").write_text(TEACHER)
        x = torch.randn(options.test, 3, options.side, options.side)
        torch.save({"x": x, "y": torch.arange(options.test) % options.classes}, folder / "test.pt")
        shape = f"[3,{options.side},{options.side}]"
        overrides = [
            "experiment=custom/image", "teacher=file", f"teacher.path={folder / 'net.py'}", "teacher.factory=make",
            f"+teacher.network.classes={options.classes}", "teacher.pretrained=true", f"data.input_shape={shape}",
            f"data.classes={options.classes}", "data=files", f"data.test={folder / 'test.pt'}", "generator.count=2",
            "generator.epochs=1", "generator.steps_per_epoch=2", f"generator.batch_size={options.batch_size}",
            "student.epochs=1", "student.samples=64", f"student.batch_size={options.batch_size}",
            "compression.fit=weights", "student.oversampling=1", "agreement.samples=64", "latency.batch_sizes=[1]",
            f"store={folder / 'store'}", "sources=[kegnet]", "trainer=cpu",
        ]  # fmt: skip
        with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
            config = to_plain(compose("config", overrides=overrides))
        (folder / "run").mkdir()
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        run(config, folder / "run")
        seconds = time.perf_counter() - start
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        (stage,) = (folder / "store").glob("generators-*")
        manifest = json.loads((stage / "manifest.json").read_text())
        sizes = {path.name: path.stat().st_size for path in (stage / "samples.png", folder / "run" / "report.html")}
        sizes |= {path.parent.name.split("-")[0]: path.stat().st_size for path in folder.glob("store/*/manifest.json")}
        found = {
            "seconds of the run": round(seconds, 1),
            "seconds of the generator stage": round(manifest["seconds"], 1),
            "of which training": round(manifest["costs"]["seconds"]["generator_training"], 1),
            "peak memory above the start, MB": round(peak),
            "bytes": sizes,
        }
        print(json.dumps(vars(options) | found, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
