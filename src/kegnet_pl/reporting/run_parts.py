"""Parts of the page of one run that come from its stages; a part whose files are damaged is left out."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import Field, TypeAdapter

from kegnet_pl.compression import CompressionReport
from kegnet_pl.networks.foreign import list_own_code
from kegnet_pl.reporting import figures
from kegnet_pl.reporting.classes import MOST_CLASSES, ClassCounts, shown_classes
from kegnet_pl.reporting.html import draw, embed
from kegnet_pl.reporting.results import Row, find_last
from kegnet_pl.reporting.style import looks_of
from kegnet_pl.runtime.environment import display_path
from kegnet_pl.runtime.errors import UserError, first_line
from kegnet_pl.runtime.safe_files import exists, is_inside, printable, read_json

if TYPE_CHECKING:
    from kegnet_pl.reporting.run_page import StageFolders

_MOST_SHEETS = 8
_MOST_GENERATORS = 50
_MOST_LAYERS = 300
_MOST_TEXT = 200_000
_RECOGNISED = 0.5
"""Minimum mean confidence of the teacher in a class that it recognises."""

_DAMAGED = (UserError, OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, yaml.YAMLError)

_Share = Annotated[float, Field(ge=0, le=1)]
_CONFIDENCE = TypeAdapter(list[_Share])
_WALK = dict[str, int | Annotated[list[_Share], Field(max_length=100)]]
_WALKS = TypeAdapter(Annotated[list[_WALK], Field(max_length=50)])
_COUNTS = TypeAdapter(list[Annotated[int, Field(ge=0)]])
_REPORT = TypeAdapter(CompressionReport)
_COMMIT = TypeAdapter(Annotated[str, Field(pattern="^[0-9a-f]{7,64}$")] | None)


def read_metrics(stage: Path) -> dict[str, Any]:
    """Return the metrics in the manifest of a stage.

    Raises:
        UserError: If there is no such file, or it holds something else.
    """
    content = read_json(stage / "manifest.json", stage)
    if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
        raise UserError(f"Expected metrics in {printable(stage / 'manifest.json')}, but got none. The file is damaged.")
    metrics: dict[str, Any] = content["metrics"]
    return metrics


def read_compression_report(stage: Path | None) -> CompressionReport | None:
    """Read the report in the folder of a compression; None where another network was built."""
    if stage is None or not exists(stage / "compression.json"):
        return None
    return CompressionReport.from_dict(read_json(stage / "compression.json", stage))


def make_parts(stages: "StageFolders", rows: Sequence[Row]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the page's template that depend on stages, and a sentence for each part that is left out."""
    makers: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...]]] = {
        "layers": (_layers, ("layers", "compression_picture")),
        "curves of generators": (_generator_curves, ("generator_curves",)),
        "curves of students": (_student_curves, ("student_curves",)),
        "samples": (_samples, ("sheet",)),
        "classes": (_classes, ("classes",)),
        "agreement by class": (_class_agreements, ("class_agreements",)),
        "configuration": (_config, ("config",)),
        "origin": (_origin, ("commit", "finished", "load_line")),
    }
    parts: dict[str, Any] = {}
    left_out = []
    for name, (make, keys) in makers.items():
        parts |= dict.fromkeys(keys)
        try:
            made = make(stages, rows)
            left_out += made.pop("left_out", [])
            parts |= made
        except _DAMAGED as error:
            reason = str(error) if isinstance(error, UserError) else f"its files are damaged: {first_line(error)}"
            left_out.append(f"Left out ({name}): {printable(reason)}")
    return parts, left_out


def _layers(stages: "StageFolders", rows: Sequence[Row]) -> dict[str, Any]:  # noqa: ARG001
    report = read_compression_report(stages.find("compression"))
    if report is None:
        return {}
    report = _REPORT.validate_python(report.to_dict() | {"rows": report.rows[:_MOST_LAYERS]})
    picture = draw("parameters and MACs of every layer", figures.draw_compression, report)
    return {"layers": report, "compression_picture": picture}


def _student_curves(stages: "StageFolders", rows: Sequence[Row]) -> dict[str, Any]:
    students: dict[str, dict[str, figures.Curve]] = {}
    skipped: list[str] = []
    for row in rows:
        folder = stages.networks.get(row.method, {}).get("student")
        if row.quantization is not None:  # not trained after its network in float32
            continue
        if folder is None or row.source is None or not is_inside(folder / "logs" / row.source["name"], folder):
            continue
        curves = figures.read_curves(folder / "logs" / row.source["name"], skipped)
        if "train/accuracy" in curves:  # its name in older versions
            curves["train/agreement"] = curves.pop("train/accuracy")
        if curves:
            students[row.method] = curves
    picture = draw("losses of the students", figures.draw_student_curves, students, looks_of(rows))
    return {"student_curves": picture, "left_out": _explain_skipped("students", skipped)}


def _generator_curves(stages: "StageFolders", rows: Sequence[Row]) -> dict[str, Any]:  # noqa: ARG001
    folder = stages.find("generators")
    generators: dict[str, dict[str, figures.Curve]] = {}
    skipped: list[str] = []
    for logs in sorted((folder / "logs").glob("*")) if folder is not None else ():
        if folder is not None and is_inside(logs, folder):
            for name, curves in figures.split_curves(figures.read_curves(logs, skipped), logs.name).items():
                figures.join_curves(generators.setdefault(name, {}), curves)
    names = sorted(generators, key=lambda name: (len(name), name))[:_MOST_GENERATORS]
    generators = {name: generators[name] for name in names}
    picture = draw("losses of the generators", figures.draw_generator_curves, generators)
    return {"generator_curves": picture, "left_out": _explain_skipped("generators", skipped)}


def _explain_skipped(networks: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    some = ", ".join(sorted(set(names))[:4])
    return [
        f"Left out (curves of {networks}): {len(names):,} values that are NaN, above 1e100 or no number, in {some}."
    ]


def _samples(stages: "StageFolders", rows: Sequence[Row]) -> dict[str, Any]:  # noqa: ARG001
    folder = stages.find("generators")
    if folder is None:
        return {}
    metrics = read_metrics(folder)
    confidence = _CONFIDENCE.validate_python(metrics.get("confidence", []))
    labels = _COUNTS.validate_python(metrics.get("confidence_classes", list(range(len(confidence)))))
    pairs = list(zip(labels, confidence, strict=True))
    walks = _WALKS.validate_python(metrics.get("walk", []))
    sheets = sorted((folder / "sheets" / "generator_0").glob("epoch_*.png"))
    count = min(len(sheets), _MOST_SHEETS)
    some = [sheets[index * (len(sheets) - 1) // (count - 1)] for index in range(count)] if count > 1 else []
    return {
        "sheet": embed(sheets[-1] if sheets else folder / "samples.png", folder),
        "sheets": [(int(path.stem.split("_")[1]), embed(path, folder)) for path in some],
        "tabular": len(stages.config["data"]["input_shape"]) == 1,
        "confidence": [pairs[index] for index in shown_classes(len(pairs))],
        "recognised": min(confidence, default=0.0) >= _RECOGNISED,
        "walks": [{"from": walk["from"], "to": walk["to"]} for walk in walks],
        "walk": embed(folder / "walk.png", folder) if walks else None,
        "walk_picture": draw("probabilities along the walks", figures.draw_walk, walks),
    }


def _classes(stages: "StageFolders", rows: Sequence[Row]) -> dict[str, Any]:
    plain = {row.method for row in rows if row.quantization is None}
    counts = {
        method: ClassCounts.from_metrics(read_metrics(folders["evaluation"]))
        for method, folders in stages.networks.items()
        if "evaluation" in folders and folders["evaluation"].is_dir() and method in plain
    }
    last = find_last(rows).method
    if last not in counts:
        return {}
    confusion = counts[last].confusion
    return {
        "classes": counts[last],
        "confusion": confusion and [[(count, count / max(sum(line), 1)) for count in line] for line in confusion],
        "confused": find_last(rows).name,
        "classes_picture": draw("accuracy of every class", figures.draw_classes, counts, looks_of(rows)),
    }


def _class_agreements(stages: "StageFolders", rows: Sequence[Row]) -> dict[str, Any]:
    """Return samples and equal answers by the teacher's class for the last row, of the classes that agree least."""
    folder = stages.networks.get(find_last(rows).method, {}).get("agreement")
    found = read_metrics(folder) if folder is not None and folder.is_dir() else {}
    pairs = {
        printable(name, 60): list(
            zip(_COUNTS.validate_python(one["counts"]), _COUNTS.validate_python(one["equal"]), strict=True)
        )
        for name, one in list(found.items())[:MOST_CLASSES]
    }
    lines = list(enumerate(zip(*pairs.values(), strict=True)))
    if len(lines) > MOST_CLASSES:

        def share(line: tuple[int, tuple[tuple[int, int], ...]]) -> float:
            samples = sum(count for count, _ in line[1])
            return sum(equal for _, equal in line[1]) / samples if samples else 2.0

        lines = sorted(sorted(lines, key=share)[:MOST_CLASSES])
    return {"class_agreements": pairs, "class_lines": lines}


def _origin(stages: "StageFolders", rows: Sequence[Row]) -> dict[str, Any]:
    """Return commit and time of the last network's stage, and the line that loads the network."""
    folders = stages.networks.get(find_last(rows).method, {})
    folder = next((folders[name] for name in ("student", "compression", "initial") if name in folders), None)
    if folder is None or not exists(folder / "manifest.json"):
        return {}
    made = read_json(folder / "manifest.json", folder)
    git = made.get("git") or {}
    commit = _COMMIT.validate_python(git.get("commit"))
    if commit and git.get("dirty"):
        commit += ", with changes that are not committed"
    line = None
    if exists(folder / "network.json"):
        place, trust = printable(display_path(folder), _MOST_TEXT), list_trusted(folder)
        line = f'network = kegnet_pl.load_network("{place}"{f", trust={json.dumps(trust)}" if trust else ""})'
    return {"commit": commit, "finished": printable(str(made.get("finished", "")), 40), "load_line": line}


def list_trusted(folder: Path) -> list[str]:
    """Return the modules and files that must be trusted to load the network of a stage in a new program."""
    recipe = read_json(folder / "network.json", folder).get("network")
    names = [str(display_path(Path(name))) if os.sep in name else name for name in list_own_code(recipe)]
    return [printable(name, _MOST_TEXT) for name in names]


def _config(stages: "StageFolders", rows: Sequence[Row]) -> dict[str, Any]:  # noqa: ARG001
    if not stages.config:
        return {}
    text = yaml.safe_dump(stages.config, sort_keys=False, allow_unicode=True, width=120)
    return {"config": printable(text, _MOST_TEXT, lines=True)}
