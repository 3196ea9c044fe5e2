"""``report.html`` of one run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import relpath
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kegnet_pl.compression import CompressionReport
from kegnet_pl.reporting import figures
from kegnet_pl.reporting.html import draw, embed, write_page
from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.runs import FinishedRun
from kegnet_pl.reporting.style import house_style
from kegnet_pl.reporting.summary import summarize
from kegnet_pl.reporting.tradeoff import draw_tradeoff
from kegnet_pl.runtime.atomic_files import write_whole
from kegnet_pl.runtime.errors import UserError

STAGES = "stages.json"
"""What a run leaves beside its results: which finished stages its networks are made of."""

PAGE = "report.html"
_SHEETS_SHOWN = 8
_RECOGNISED = 0.5
"""What the teacher takes for a class it gives at least this probability."""


@dataclass(frozen=True)
class StageFolders:
    """The finished stages behind a run.

    Attributes:
        config: The resolved configuration.
        networks: Row's method -> its stages by name; ``evaluation`` is one of them where accuracy was measured.
    """

    config: dict[str, Any]
    networks: dict[str, dict[str, Path]]

    def write(self, run_folder: Path) -> None:
        """Leave ``stages.json`` in a run's folder; folders are seen from there."""
        networks = {
            method: {stage: relpath(folder, run_folder) for stage, folder in stages.items()}
            for method, stages in self.networks.items()
        }
        content = {"config": self.config, "networks": networks}
        write_whole(run_folder / STAGES, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, run_folder: Path) -> "StageFolders | None":
        """Read it again; None where the run left none."""
        path = run_folder / STAGES
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        networks = {
            method: {stage: (run_folder / folder).resolve() for stage, folder in stages.items()}
            for method, stages in content["networks"].items()
        }
        return cls(content["config"], networks)

    def find(self, stage: str) -> Path | None:
        """Return the folder of a stage that all networks share; None where there is none, or it was deleted."""
        found = (stages[stage] for stages in self.networks.values() if stage in stages)
        return next((folder for folder in found if folder.is_dir()), None)


def write_run_page(run: FinishedRun) -> Path:
    """Write the page of a finished run into its folder.

    What lies in the store is shown as far as it is still there.

    Raises:
        UserError: If the run has no results.
    """
    if not run.rows:
        raise UserError(f"Expected results in {run.folder}, but the run failed or was stopped.")
    stages = StageFolders.read(run.folder) or StageFolders({}, {})
    rows = run.rows
    with house_style():
        parts = {
            "tradeoff": draw(partial(draw_tradeoff, summarize([run])), "accuracy against size")
            if _measured(rows)
            else None,
            **_layers(stages),
            **_curves(stages),
            **_samples(stages),
            **_classes(stages, rows),
            "costs": draw(partial(figures.draw_costs, _spent(rows)), "seconds by kind of work"),
        }
    sections = {
        "results": "Results",
        "layers": "Layers" if parts["layers"] else None,
        "samples": "Samples" if parts["sheet"] else None,
        "curves": "Training" if parts["generator_curves"] or parts["student_curves"] else None,
        "classes": "Classes" if parts["confusion"] else None,
        "costs": "StageCosts",
        "settings": "Settings",
    }
    first = rows[0]
    return write_page(
        "run.html",
        run.folder / PAGE,
        f"{first.teacher}{'' if first.dataset == 'none' else f' on {first.dataset}'}: "
        f"{rows[-1].compression_ratio:.2f} times smaller, without its data",
        [(key, name) for key, name in sections.items() if name],
        rows=rows,
        best=_best(rows),
        story=tell(rows, stages.config),
        facts=_facts(rows),
        test_set=first.test_set,
        config=OmegaConf.to_yaml(OmegaConf.create(stages.config)) if stages.config else None,
        **parts,
    )


def tell(rows: Sequence[Row], config: Mapping[str, Any]) -> list[str]:
    """Say in sentences what was done and what came of it."""
    teacher, last = rows[0], rows[-1]
    small = next((row for row in rows if row.method in ("T", "S")), last)
    known = "" if teacher.accuracy is None else f"; accuracy {100 * teacher.accuracy:.2f} % on {teacher.test_set}"
    made = "compressed" if small.method.startswith("T") else "replaced by another network"
    text = [
        f"The teacher {teacher.teacher} ({teacher.parameters:,} parameters{known}) was {made}: {last.student} has "
        f"{small.parameters:,} parameters, {small.compression_ratio:.2f} times fewer, and takes {small.macs:,} "
        f"multiply-accumulates for a sample instead of {teacher.macs:,}."
    ]
    kegnet = next((row for row in rows if row.method.endswith("KegNet")), None)
    if kegnet is not None and kegnet.samples is not None:
        count = config.get("generator", {}).get("count")
        by = f"{count} generators" if count and count > 1 else "a generator"
        text.append(
            f"It was then trained on {kegnet.samples:,} samples that {by} invented with the teacher's help, "
            + (
                "and the epoch to keep was chosen on real validation data."
                if kegnet.selection == "real"
                else "with no real data in training or selection."
            )
        )
        if kegnet.accuracy is not None and teacher.accuracy is not None:
            text.append(_judge(rows, kegnet, teacher))
    if teacher.accuracy is None:
        text.append("There was no test data: accuracy was not measured.")
    return text


def _judge(rows: Sequence[Row], kegnet: Row, teacher: Row) -> str:
    """Compare a measured student with the teacher, with itself untrained, and with noise."""
    assert kegnet.accuracy is not None and teacher.accuracy is not None
    points = 100 * (teacher.accuracy - kegnet.accuracy)
    where = f"{abs(points):.2f} points {'below' if points >= 0 else 'above'} the teacher"
    others = []
    for row in rows:
        if row is not kegnet and row is not teacher and row.accuracy is not None:
            name = "untrained" if "+" not in row.method else f"trained on {row.method.split('+')[1].lower()} noise"
            others.append(f"{100 * row.accuracy:.2f} % {name}")
    compared = f" (the same network: {', '.join(others)})" if others else ""
    return f"{kegnet.method} is right on {100 * kegnet.accuracy:.2f} %, {where}{compared}."


def _measured(rows: Sequence[Row]) -> bool:
    return any(row.accuracy is not None and row.method != "teacher" for row in rows)


def _best(rows: Sequence[Row]) -> Row | None:
    measured = [row for row in rows if row.accuracy is not None and row.method != "teacher"]
    return max(measured, key=lambda row: row.accuracy or 0.0, default=None)


def _facts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    last, teacher = rows[-1], rows[0]
    facts = []
    if last.accuracy is not None:
        facts.append((f"{100 * last.accuracy:.2f} %", f"accuracy of {last.method}"))
    if teacher.accuracy is not None:
        facts.append((f"{100 * teacher.accuracy:.2f} %", "accuracy of the teacher"))
    facts.append((f"{last.compression_ratio:.2f}x", "fewer parameters"))
    if last.macs:
        facts.append((f"{teacher.macs / last.macs:.2f}x", "fewer multiply-accumulates"))
    facts.append((figures.clock(sum(_spent(rows).values())), "in all, in this run or before"))
    return facts


def _spent(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds by kind of work of all rows; what they share counts once."""
    shared = next(row for row in reversed(rows) if "+" not in row.method).costs["seconds"]
    total = dict(shared)
    for row in rows:
        total["evaluation"] += row.stage_seconds.get("evaluation", 0.0)
        if "+" in row.method:
            for work, seconds in row.costs["seconds"].items():
                total[work] += max(0.0, seconds - shared[work])
    return total


def _layers(stages: StageFolders) -> dict[str, Any]:
    folder = stages.find("compression")
    path = folder / "compression.json" if folder is not None else None
    report = CompressionReport.from_dict(json.loads(path.read_text())) if path is not None and path.exists() else None
    picture = (
        None
        if report is None
        else draw(partial(figures.draw_compression, report), "parameters and MACs of every layer")
    )
    return {"layers": report, "compression_picture": picture}


def _curves(stages: StageFolders) -> dict[str, Any]:
    generators, students = stages.find("generators"), {}
    for method, mine in stages.networks.items():
        if "student" in mine and mine["student"].is_dir():
            name = method.split("+")[1].lower()
            students[name] = figures.read_curves(mine["student"] / "logs" / name)
    made: dict[str, dict[str, figures.Curve]] = {}
    if generators is not None:
        for logs in (generators / "logs").glob("*"):
            made |= figures.split_curves(figures.read_curves(logs), logs.name)
    made = {name: made[name] for name in sorted(made, key=lambda name: (len(name), name))}
    students = {name: curves for name, curves in students.items() if curves}
    return {
        "generator_curves": draw(partial(figures.draw_generator_curves, made), "losses of the generators")
        if made
        else None,
        "student_curves": draw(partial(figures.draw_student_curves, students), "losses of the students")
        if students
        else None,
    }


def _samples(stages: StageFolders) -> dict[str, Any]:
    folder = stages.find("generators")
    shown: dict[str, Any] = {
        "sheet": None, "sheets": [], "confidence": [], "walks": [], "walk": None, "walk_picture": None,
        "tabular": len(stages.config.get("data", {}).get("input_shape", [])) == 1,
    }  # fmt: skip
    if folder is None:
        return shown
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    shown["confidence"] = metrics.get("confidence", [])
    shown["recognised"] = bool(shown["confidence"]) and min(shown["confidence"]) >= _RECOGNISED
    sheets = sorted((folder / "sheets" / "generator_0").glob("epoch_*.png"))
    shown["sheet"] = embed(sheets[-1] if sheets else folder / "samples.png")
    if len(sheets) > 1:
        wanted = min(len(sheets), _SHEETS_SHOWN)
        some = [sheets[index * (len(sheets) - 1) // (wanted - 1)] for index in range(wanted)]
        shown["sheets"] = [(int(path.stem.split("_")[1]), embed(path)) for path in some]
    if metrics.get("walk"):
        shown["walks"] = metrics["walk"]
        shown["walk"] = embed(folder / "walk.png")
        shown["walk_picture"] = draw(partial(figures.draw_walk, metrics["walk"]), "probabilities along the walks")
    return shown


def _classes(stages: StageFolders, rows: Sequence[Row]) -> dict[str, Any]:
    confusions: dict[str, list[list[int]]] = {}
    for method, mine in stages.networks.items():
        if "evaluation" in mine and mine["evaluation"].is_dir():
            metrics = json.loads((mine["evaluation"] / "manifest.json").read_text())["metrics"]
            confusions[method] = metrics["confusion"]
    if not confusions:
        return {"confusion": None, "confused": "", "classes_picture": None}
    last = rows[-1].method
    shown = confusions[last]
    return {
        "confusion": [[(count, count / max(sum(line), 1)) for count in line] for line in shown],
        "confused": last,
        "classes_picture": draw(partial(figures.draw_classes, confusions), "accuracy of every class"),
    }
