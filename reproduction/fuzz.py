"""Damaged and hostile inputs for all readers: ``python -m reproduction.fuzz`` writes ``results/fuzz.json``.

Each input is a valid one with random changes. A reader either reads it or raises an error whose message is a sentence;
anything else is a crash. The same seed makes the same inputs.
"""

import argparse
import copy
import json
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import save_file
from torch import nn

from kegnet_pl.api.checkpoints import load_network, save_network
from kegnet_pl.api.sampling import load_generators
from kegnet_pl.api.weights import load_weights
from kegnet_pl.networks import Decoder, DenseGenerator
from kegnet_pl.pipeline.configuration import to_plain
from kegnet_pl.pipeline.objects import make_plan
from kegnet_pl.pipeline.provenance import versions
from kegnet_pl.pipeline.store import Store
from kegnet_pl.pipeline.teacher_card import expand_card
from kegnet_pl.reporting import run_parts
from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.run_page import StageFolders
from kegnet_pl.reporting.runs import FinishedRun, read_runs
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.settings import RunSettings
from kegnet_pl.sources.registry import find_builtin
from reproduction.commands import positive
from reproduction.paths import ROOT

COUNT = 10_000
SECONDS = 20
"""Time limit of a reader, in seconds."""

Reader = Callable[[random.Random], object]

_ODD: list[Any] = [
    None, True, False, -1, 0, 1, 3, 10**6, 10**30, 0.5, -1e308, 1e308, float("nan"), float("inf"), "", " ", "x",
    "../../x", "/etc/passwd", "<script>alert(1)</script>", "\x1b[31m\u202e", "${oc.env:HOME}", "${nothing}", "${",
    "$\\frac{", "a" * 5_000, "\ud800", "os.system", "torch.nn.Linear", "1", "nan", [], {}, [None], [[]], [1, 2, 3],
    {"_target_": "os.system", "command": "false"}, {"": ""}, {"a": {"b": {"c": []}}}, list(range(3_000)),
]  # fmt: skip


def mutate(value: Any, draw: random.Random) -> Any:
    """Return plain values with one to three random changes at random places."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places or draw.random() < 0.01:
            return copy.deepcopy(draw.choice(_ODD))
        holder, key = draw.choice(places)
        kind = draw.random()
        if kind < 0.6:
            holder[key] = copy.deepcopy(draw.choice(_ODD))
        elif kind < 0.75:
            del holder[key]
        elif kind < 0.85:
            holder[key] = copy.deepcopy(draw.choice(places)[0])
        elif isinstance(holder, dict):
            holder[draw.choice(("x", "", "../y", "_target_", "path"))] = copy.deepcopy(draw.choice(_ODD))
        else:
            holder.extend(copy.deepcopy(holder[:50]))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every dict and list within a value with each of its keys."""
    for key, one in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(one, dict | list) and len(one) < 1_000:
            yield from _places(one)


def damage(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with random changes: cut, repeated, zeroed, overwritten or flipped."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        start = draw.randrange(max(len(changed), 1))
        stop = start + draw.choice((1, 8, 64))
        kind = draw.randrange(6)
        if kind == 0:
            changed = changed[:start]
        elif kind == 1:
            changed[start:start] = changed[start:stop]
        elif kind == 2:
            changed[start:stop] = bytes(len(changed[start:stop]))
        elif kind == 3:
            changed[start:stop] = draw.randbytes(len(changed[start:stop]))
        elif changed:
            changed[start % len(changed)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _write(path: Path, value: Any, draw: random.Random, *, as_yaml: bool = False) -> None:
    """Write a changed value, or its damaged text."""
    if draw.random() < 0.8:
        value = mutate(value, draw)
        text = yaml.safe_dump(value) if as_yaml else json.dumps(value)
        path.write_bytes(text.encode(errors="surrogatepass"))
    else:
        text = yaml.safe_dump(value) if as_yaml else json.dumps(value)
        path.write_bytes(damage(text.encode(), draw))


def make_readers(folder: Path) -> dict[str, Reader]:
    """Return a function for each kind of input, which makes one of it and reads it, in its own folder."""
    GlobalHydra.instance().clear()
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        config = to_plain(compose("config", overrides=["debug=fast"]))
    rows = _rows()
    return {
        "settings": lambda draw: make_plan(RunSettings.from_config(mutate(config, draw)).compression),
        "plans": lambda draw: _apply_plan(config, draw),
        "rows": lambda draw: _read_rows(folder / "rows", rows, draw),
        "card": lambda draw: _read_card(folder / "card", draw),
        **_stage_readers(folder / "stages", config, rows),
        **_weight_readers(folder / "weights"),
    }


def _rows() -> list[dict[str, Any]]:
    """Return rows of a teacher, a student and a network in int8, as ``results.json`` has them."""
    source = find_builtin("KegNet")
    assert source is not None
    costs = StageCosts().to_dict() | {"peak_memory": {"host_mb": 1.0, "device_mb": 0.0}}
    agreement = {
        "over": ["fields"], "mean": 0.5, "worst": {"label": 1, "source": "fields", "samples": 20, "agreement": 0.5},
        "unreached": [2], "unreached_classes": 1, "sources": {"fields": {
            "own": False, "samples": 20, "agreement": 0.5, "share": 0.5, "divergence": 0.1, "classes": 2,
            "same_class": False,
        }},
    }  # fmt: skip
    teacher = Row(
        dataset="toy", test_set="toy", teacher="net", student=None, method="teacher", seed=0, recipe="strict",
        selection=None, accuracy=0.9, teacher_accuracy=0.9, parameters=1000, teacher_parameters=1000,
        compression_ratio=1.0, size=4000, macs=5000, teacher_macs=5000, samples=None, label_entropy=None,
        precision="32-true", seconds=3.0, stage_seconds={"teacher": 3.0}, costs=costs, fingerprint="0" * 16,
        command="python -m kegnet_pl", versions={"python": "3.11.0"},
        latency={"device": "CPU", "threads": 1, "batches": {"1": {"ms": 1.0, "spread": 0.1, "speedup": 1.0}}},
    )  # fmt: skip
    student = replace(
        teacher, student="ratio8", method="T+KegNet", source=source.to_dict(), selection="last", epochs=2, epoch=1,
        parameters=500, compression_ratio=2.0, samples=64, label_entropy=0.5, agreement=agreement,
    )  # fmt: skip
    description = {
        "format": "int8", "activations": "int8", "source": source.to_dict(), "samples": 9, "agreement": 0.9,
        "runtime": "x",
    }  # fmt: skip
    return [
        asdict(row) for row in (teacher, student, replace(student, method="T+KegNet int8", quantization=description))
    ]


def _apply_plan(config: dict[str, Any], draw: random.Random) -> object:
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    plan = mutate({**config["compression"], "target": 1.5}, draw)
    settings = RunSettings.from_config({**config, "compression": plan})
    return make_plan(settings.compression).apply(network, (6,))


def _read_rows(folder: Path, rows: list[dict[str, Any]], draw: random.Random) -> object:
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    _write(folder / "results.json", rows, draw)
    _write(folder / ".hydra" / "overrides.yaml", ["seed=0", "data=digits"], draw, as_yaml=True)
    return read_runs(folder)


def _read_card(folder: Path, draw: random.Random) -> object:
    folder.mkdir(exist_ok=True)
    network = {"_target_": "kegnet_pl.networks.MLP", "widths": [4]}
    card = {
        "teacher": "custom",
        "network": network,
        "weights": "t.pt",
        "input_shape": [1, 8, 8],
        "classes": 10,
        "mean": [0.5],
    }
    _write(folder / "card.yaml", card, draw, as_yaml=True)
    return expand_card([f"teacher_card={folder / 'card.yaml'}"])


def _stage_readers(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Reader]:
    key = "0123456789abcdef"
    for stage in ("teacher", "generators", "evaluation", "run"):
        (folder / f"{stage}-{key}").mkdir(parents=True)
    run, generators = folder / f"run-{key}", folder / f"generators-{key}"
    save_network(
        nn.Linear(4, 3),
        folder / f"teacher-{key}",
        "network",
        {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 3},
    )
    parts = {"generator_0": DenseGenerator(4, 3, 2), "decoder_0": Decoder((4,), 2)}
    arguments: dict[str, dict[str, Any]] = {
        "generator_0": {"features": 4, "classes": 3, "noise_dim": 2},
        "decoder_0": {"input_shape": [4], "noise_dim": 2},
    }
    for name, network in parts.items():
        recipe = {"_target_": f"kegnet_pl.networks.{type(network).__name__}", **arguments[name]}
        save_network(network, generators, name, recipe)
    metrics = {
        "generators": {"0": {"train/loss": 1.0}},
        "confidence": [0.5, 0.5, 0.5],
        "walk": [{"from": 0, "to": 1, "p_from": [1.0, 0.0], "p_to": [0.0, 1.0]}],
    }
    store = Store(folder)
    made = store.get("teacher", {}, [], lambda *_: metrics)
    manifest = json.loads((made.folder / "manifest.json").read_text())
    plain = {
        **manifest,
        "stage": "generators",
        "parents": {"teacher": key},
        "config": {"input_shape": [4], "classes": 3},
    }
    (generators / "manifest.json").write_text(json.dumps(plain))
    of_evaluation = {**manifest, "metrics": {"confusion": [[1, 2], [3, 4]]}}
    names = {"teacher": f"../teacher-{key}", "generators": f"../generators-{key}", "evaluation": f"../evaluation-{key}"}
    stages = {"config": config, "networks": {"teacher": names, rows[-1]["method"]: names}}
    recipe_file = generators / "generator_0.json"
    recipe = json.loads(recipe_file.read_text())

    def read_manifest(draw: random.Random) -> object:
        _write(made.folder / "manifest.json", manifest, draw)
        return Store(folder, "require").get("teacher", {}, [], lambda *_: {})

    def read_generators(draw: random.Random) -> object:
        try:
            _write(generators / "manifest.json", plain, draw)
            return load_generators(generators, folder / f"teacher-{key}", "cpu")
        finally:
            (generators / "manifest.json").write_text(json.dumps(plain))

    def read_recipe(draw: random.Random) -> object:
        try:
            _write(recipe_file, recipe, draw)
            return load_network(generators, "generator_0")
        finally:
            recipe_file.write_text(json.dumps(recipe))

    def read_stages(draw: random.Random) -> object:
        _write(run / "stages.json", stages, draw)
        return StageFolders.read(run)

    (run / "results.json").write_text(json.dumps(rows))
    finished = FinishedRun(run, rows=read_runs(run)[0].rows)

    def write_page(draw: random.Random) -> object:
        (run / "stages.json").write_text(json.dumps(stages))
        _write(folder / f"evaluation-{key}" / "manifest.json", of_evaluation, draw)
        try:
            _write(generators / "manifest.json", plain, draw)
            with mock.patch.object(run_parts, "draw", lambda *_: None):  # pictures take a second each
                return run_parts.make_parts(StageFolders.read(run) or StageFolders({}, {}), finished.rows)
        finally:
            (generators / "manifest.json").write_text(json.dumps(plain))

    return {
        "manifests": read_manifest,
        "generators": read_generators,
        "recipes": read_recipe,
        "stages": read_stages,
        "pages": write_page,
    }


def _weight_readers(folder: Path) -> dict[str, Reader]:
    folder.mkdir()
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    state = network.state_dict()
    save_file(state, folder / "a.safetensors")
    torch.save(state, folder / "a.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "b.pt", _use_new_zipfile_serialization=False)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def read(draw: random.Random) -> None:
        name = draw.choice(sorted(files))
        path = folder / f"damaged_{name}"
        path.write_bytes(damage(files[name], draw))
        load_weights(copy.deepcopy(network), path)

    return {"weights": read}


def is_sentence(error: BaseException) -> bool:
    """Return True for an error that the command line prints as a sentence."""
    return isinstance(error, UserError) or (
        isinstance(error, ValueError | FileNotFoundError | IndexError) and str(error).startswith("Expected ")
    )


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Pass inputs to all readers in turn.

    Returns:
        For each reader the number of inputs that it read and refused, and the crashes with their tracebacks.
    """
    readers = make_readers(folder)
    read, refused, crashes = Counter[str](), Counter[str](), []
    names = sorted(readers)
    for index in range(count):
        name, draw = names[index % len(names)], random.Random(f"{seed}-{index}")
        try:
            with _limit(SECONDS):
                readers[name](draw)
            read[name] += 1
        except Exception as error:  # what a reader may raise is what is tested
            if is_sentence(error):
                refused[name] += 1
            else:
                crashes.append({"reader": name, "index": index, "traceback": traceback.format_exc()})
    return {"read": dict(read), "refused": dict(refused), "crashes": crashes}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduction.fuzz", description=__doc__)
    parser.add_argument("--count", type=positive, default=COUNT, help="inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "fuzz.json", help="default: results/fuzz.json")
    options = parser.parse_args()
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        found = fuzz(options.count, options.seed, Path(folder))
    seconds = round(time.perf_counter() - start, 1)
    record = {"inputs": options.count, "seed": options.seed, "seconds": seconds, **found, "versions": versions()}
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    for crash in found["crashes"][:20]:
        print(crash["reader"], crash["index"], crash["traceback"].strip().splitlines()[-1], sep=": ")  # noqa: T201
    print(f"{options.count:,} inputs in {seconds} s: {len(found['crashes'])} crashes")  # noqa: T201
    return 1 if found["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main())
