"""Kills and damaged files: ``python -m reproduction.reliability`` writes ``results/RELIABILITY.md``.

A tiny pipeline on the digits is killed twice at random moments and resumed. In other trials, a file of its store is
damaged before the same command runs again. Its stages must be bit-identical, or the command must report the damage.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from kegnet_pl.pipeline.provenance import versions
from kegnet_pl.runtime.environment import display_path
from reproduction.pages import write_record
from reproduction.paths import ROOT
from reproduction.runner import say

SETTINGS = (
    "debug=fast", "sources=[normal,kegnet]", "compression.fit=weights", "student.oversampling=1",
    "latency.batch_sizes=[]", "agreement.sources=[normal]", "teacher.epochs=4", "teacher.patience=2",
    "generator.epochs=3", "student.epochs=3", "student.selection=synthetic",
)  # fmt: skip
"""The pipeline: teacher and students select an epoch, and two generators are trained one after the other."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
POINTS = ("TeacherModule/0/3", "GeneratorModule/0/2", "GeneratorModule/1/1", "StudentModule/0/2", "pictures")
"""Moments at which unfinished stages are made: module, index of the network, epoch; or after all generators."""

DAMAGES = ("one bit", "zeros", "cut", "deleted", "longer", "another stage's")
OUTCOMES = ("repaired", "refused", "harmless", "silent", "traceback")
_PATIENCE = 120.0


def _main(folder: Path, arguments: Sequence[str], stop: str) -> None:
    """Run the command line in a separate process; exit at ``stop``."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    stream = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(stream, number)
    import torch

    from kegnet_pl.pipeline import outputs
    from kegnet_pl.pipeline.cli import main
    from kegnet_pl.pipeline.stages import generators
    from kegnet_pl.training.base import TrainingModule

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Drawing the report takes longer than all the rest.
    mock.patch.object(outputs, "write_run_page", lambda run: run.folder / "report.html").start()
    if stop == "pictures":
        mock.patch.object(generators, "draw_samples", lambda *_: os._exit(9)).start()
    elif stop:
        kind, index, epoch = stop.split("/")
        start_epoch = TrainingModule.on_train_epoch_start

        def exit_at(module: TrainingModule) -> None:
            if (type(module).__name__, getattr(module, "index", 0), module.current_epoch) == (
                kind, int(index), int(epoch),
            ):  # fmt: skip
                os._exit(9)
            start_epoch(module)

        mock.patch.object(TrainingModule, "on_train_epoch_start", exit_at).start()
    sys.argv[:] = ["kegnet_pl", *arguments, f"store={folder / 'store'}", f"hydra.run.dir={folder / 'run'}"]
    main()


def _load(stage: Path) -> str | None:
    """Return a hash of the networks that the library reads from a stage; None if it refuses, or reads none."""
    from kegnet_pl import load_generators, load_network
    from kegnet_pl.runtime.errors import WeightsError

    kind = stage.name.split("-")[0]
    try:
        if kind == "generators":
            found = load_generators(stage, next(stage.parent.glob("teacher-*")))
            networks = [*found.networks, *found.decoders]
        elif kind in ("teacher", "compression", "student"):
            networks = [load_network(stage)]
        else:
            return None
    except (WeightsError, FileNotFoundError):
        return None
    digest = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def start(folder: Path, settings: Sequence[str], *, stop: str = "") -> Any:
    """Start the command line in a process with everything imported; its output is in ``folder/said``."""
    arguments = (folder, tuple(settings), stop)
    process = multiprocessing.get_context("forkserver").Process(target=_main, args=arguments)
    process.start()
    return process


def finish(process: Any, patience: float = _PATIENCE) -> int | None:
    """Wait for a process and return its exit status; kill it after a time limit and return None."""
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return int(process.exitcode)


def content_of(folder: Path) -> dict[str, Any]:
    """Return the content of a store by name, without parts that differ between runs: seconds, and files of logs."""
    from kegnet_pl.reporting.figures import read_curves

    found: dict[str, Any] = {}
    for stage in sorted((folder / "store").glob("[!.]*-*")):
        manifest = json.loads((stage / "manifest.json").read_text())
        name = re.match(r"[a-z]+-[0-9a-f]{6}", stage.name)
        assert name is not None
        for key in ("stage", "fingerprint", "config", "parents", "metrics"):
            found[f"{name[0]} {key}"] = manifest[key]
        for file in sorted(file for file in stage.rglob("*") if file.is_file()):
            path = file.relative_to(stage)
            if path.parts[0] != "logs" and path.name != "manifest.json":
                found[f"{name[0]} {path}"] = hashlib.sha256(file.read_bytes()).hexdigest()
        for logs in sorted({file.parent.parent for file in stage.rglob("metrics.csv")}):
            found[f"{name[0]} curves {logs.name}"] = read_curves(logs)
    return found


@dataclass(frozen=True)
class Trials:
    """A finished pipeline, and copies of it that are killed or damaged.

    Attributes:
        root: Folder of all trials.
        settings: Settings of the pipeline.
        whole: Content of its store.
        seconds: Time of one run.
    """

    root: Path
    settings: tuple[str, ...]
    whole: dict[str, Any]
    seconds: float

    @classmethod
    def prepare(cls, root: Path, settings: Sequence[str] = SETTINGS, points: Sequence[str] = POINTS) -> "Trials":
        """Run the pipeline once to its end, and once to each of some points, where it exits."""
        warm = multiprocessing.get_context("forkserver").Process(target=int)
        warm.start()  # the server of the processes imports everything
        warm.join()
        begun = time.perf_counter()
        status = finish(start(root / "whole", settings))
        if status != 0:
            raise RuntimeError(f"The pipeline ended with {status}: {(root / 'whole' / 'said').read_text()[-2000:]}")
        seconds = time.perf_counter() - begun
        for number, point in enumerate(points):
            if finish(start(root / f"begun{number}", settings, stop=point)) != 9:
                raise RuntimeError(f"The pipeline was not stopped at {point}.")
        return cls(root, tuple(settings), content_of(root / "whole"), seconds)

    def judge(self, folder: Path, status: int | None) -> tuple[str, str]:
        """Return the outcome of the last run in a folder, and why."""
        said = (folder / "said").read_text(errors="replace")
        if "Traceback" in said or status not in (0, 1):
            return "traceback", f"status {status}: {_around_traceback(said)}"
        warned = "Warning: " in said and ("is damaged" in said or "is missing" in said or "are lost" in said)
        if status == 1:
            return ("refused", "") if "Error: Expected" in said else ("traceback", said[-1500:])
        found = content_of(folder)
        names = sorted(name for name in self.whole.keys() | found.keys() if self.whole.get(name) != found.get(name))
        if not names:
            return ("repaired" if warned else "harmless"), ""
        return ("repaired" if warned else "silent"), f"different: {', '.join(names[:6])}"

    def kill(self, draw: random.Random, number: int) -> dict[str, Any]:
        """Kill the pipeline twice at random moments, resume it, and compare the stores."""
        folder = self.root / f"kill{number}"
        kills = []
        for _ in range(2):
            name, delay = draw.choice(SIGNALS), draw.uniform(0.05, 1.0) * self.seconds
            process = start(folder, self.settings)
            process.join(delay)
            alive = process.exitcode is None
            if alive:
                os.kill(process.pid, name)
            status = finish(process)
            kills.append({"signal": name.name, "after": round(delay, 2), "alive": alive, "status": status})
        said = (folder / "said").read_text(errors="replace")
        status = finish(start(folder, self.settings))
        outcome, why = self.judge(folder, status)
        outcome = {"harmless": "same", "repaired": "said"}.get(outcome, outcome)
        if "Traceback" in said:
            outcome, why = "traceback", _around_traceback(said)
        shutil.rmtree(folder)
        return {"kills": kills, "outcome": outcome, "why": why}

    def damage(self, draw: random.Random, number: int) -> dict[str, Any]:
        """Damage a file of a finished or an unfinished stage, run the same command again, and compare."""
        folder = self.root / f"damage{number}"
        begun = sorted(self.root.glob("begun*"))
        chosen = draw.choice(begun) if begun and draw.random() < 0.3 else self.root / "whole"
        shutil.copytree(chosen / "store", folder / "store")
        unfinished = chosen.name != "whole"
        stages = sorted((folder / "store").glob(".*.building" if unfinished else "[!.]*-*"))
        kinds: dict[str, list[Path]] = {}
        for file in sorted(file for stage in stages for file in stage.rglob("*") if file.is_file()):
            kinds.setdefault(_kind(file), []).append(file)
        kind = draw.choice(sorted(kinds))
        file = draw.choice(kinds[kind])
        how = draw.choice(DAMAGES)
        others = [other for other in kinds[kind] if other.read_bytes() != file.read_bytes()]
        _damage(file, draw, how, others)
        stage = next(stage for stage in stages if file.is_relative_to(stage))
        loaded = None if unfinished else _load(stage)
        outcome, why = self.judge(folder, finish(start(folder, self.settings)))
        if loaded not in (None, None if unfinished else _load(chosen / "store" / stage.name)):
            outcome, why = "silent", "the library loaded another network"
        shutil.rmtree(folder)
        name = f"{'unfinished' if unfinished else 'finished'}: {kind}"
        return {"file": name, "damage": how, "outcome": outcome, "why": why}


def _without_folders(traceback: str) -> str:
    """Return a traceback whose file names have two parts, without the folders of the machine."""
    return re.sub(r'File "[^"]*/(?=[^/"]+/[^/"]+")', 'File "', traceback)


def _around_traceback(said: str) -> str:
    said = _without_folders(said)
    where = said.find("Traceback") if "Traceback" in said else len(said) - 1500
    return said[max(0, where - 300) : max(0, where) + 1500]


def _kind(file: Path) -> str:
    names = {".ckpt": "checkpoints", ".safetensors": "weights", ".csv": "curves", ".yaml": "curves", ".png": "pictures"}
    special = {"manifest.json": "manifests", "costs.json": "costs"}
    return special.get(file.name) or names.get(file.suffix, "descriptions")


def _damage(file: Path, draw: random.Random, how: str, others: Sequence[Path]) -> None:
    content = bytearray(file.read_bytes())
    where = draw.randrange(len(content)) if content else 0
    if how == "another stage's" and others:
        shutil.copy(draw.choice(others), file)
        return
    if how == "deleted":
        file.unlink()
        return
    if how == "zeros" and any(content):
        first = next(index for index in (*range(where, len(content)), *range(where)) if content[index])
        content[first : first + 64] = bytes(len(content[first : first + 64]))
    elif how == "cut":
        content = content[:where]
    elif how == "longer":
        content += bytes(draw.randrange(256) for _ in range(16))
    elif content:
        content[where] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def run_kills(trials: Trials, seed: int, count: int) -> list[dict[str, Any]]:
    """Run ``count`` trials that kill the pipeline; return the outcomes."""
    return _repeat("kills", trials.kill, seed, count)


def run_damages(trials: Trials, seed: int, count: int) -> list[dict[str, Any]]:
    """Run ``count`` trials that damage a file; return the outcomes."""
    return _repeat("damages", trials.damage, seed, count)


def _repeat(
    name: str, trial: Callable[[random.Random, int], dict[str, Any]], seed: int, count: int
) -> list[dict[str, Any]]:
    made = []
    for number in range(count):
        made.append(trial(random.Random(f"{seed} {name} {number}"), number))
        if made[-1]["outcome"] in ("silent", "traceback"):
            say(f"{name} {number}: {made[-1]}")
        elif (number + 1) % 20 == 0:
            say(f"{name}: {number + 1} of {count}")
    return made


_INTRODUCTION = """
Written by `{command}`. A tiny pipeline on the digits: a teacher, two generators, two students, evaluations, an
agreement. Kills: the command is killed at a random moment, started again, killed again, and started a third time to
finish. Then all weights, metrics, curves and pictures are compared with those of an uninterrupted run. Damages: a file
of a finished or an unfinished stage is changed. Then `load_network` or `load_generators` reads the stage, and the same
command runs again. Repaired: it names the damaged file and builds the stage again. Refused: it exits with an error
message. Harmless: it prints nothing and the store is the same, since the file is written again or is not needed.
Silent: the store or the loaded weights differ, and nothing was printed.
"""


def render(record: dict[str, Any]) -> str:
    """Return the page."""
    lines = ["# Kills and damaged files", "", *textwrap.wrap(_INTRODUCTION.strip().format(**record), 120), ""]
    kills = Counter((kill["signal"], trial["outcome"]) for trial in record["kills"] for kill in trial["kills"])
    outcomes = ["same", *sorted({trial["outcome"] for trial in record["kills"]} - {"same"})]
    lines += [f"| signal | {' | '.join(outcomes)} |", f"| --- |{' ---: |' * len(outcomes)}"]
    for name in sorted({kill["signal"] for trial in record["kills"] for kill in trial["kills"]}):
        lines.append(f"| {name} | {' | '.join(str(kills[name, outcome]) for outcome in outcomes)} |")
    same = sum(trial["outcome"] == "same" for trial in record["kills"])
    lines += ["", f"{same} of {len(record['kills'])} pipelines that were killed twice end with the same bits.", ""]
    counts = Counter((trial["file"], trial["outcome"]) for trial in record["damages"])
    lines += [f"| damaged file | {' | '.join(OUTCOMES)} |", f"| --- |{' ---: |' * len(OUTCOMES)}"]
    for name in sorted({trial["file"] for trial in record["damages"]}):
        lines.append(f"| {name} | {' | '.join(str(counts[name, outcome]) for outcome in OUTCOMES)} |")
    total = Counter(trial["outcome"] for trial in record["damages"])
    lines.append(f"| all | {' | '.join(str(total[outcome]) for outcome in OUTCOMES)} |")
    return "\n".join([*lines, "", f"Seed {record['seed']}, {record['seconds']} seconds. {_tools(record)}"]) + "\n"


def _tools(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + "."


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduction.reliability", description=__doc__)
    for name, default in (("--kills", 60), ("--damages", 500), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the page (default: results)")
    options = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["kegnet_pl.pipeline.cli", "kegnet_pl.pipeline.run", "matplotlib.pyplot", "torch"]
    )
    command = "python -m reproduction.reliability" + "".join(
        f" --{name} {getattr(options, name)}"
        for name in ("kills", "damages", "seed")
        if getattr(options, name) != parser.get_default(name)
    )
    begun = time.perf_counter()
    with TemporaryDirectory() as folder:
        trials = Trials.prepare(Path(folder))
        record = {
            "command": command,
            "seed": options.seed,
            "kills": run_kills(trials, options.seed, options.kills),
            "damages": run_damages(trials, options.seed, options.damages),
            "versions": versions(),
        }
    record["seconds"] = round(time.perf_counter() - begun)
    path = options.out / "reliability.json"
    write_record(path, record, render(record))
    say(f"Written: {display_path(path)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
