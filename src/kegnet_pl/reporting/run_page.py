"""The page ``report.html`` of one run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kegnet_pl.compression import CompressionReport
from kegnet_pl.reporting import figures
from kegnet_pl.reporting.agreement import explain_agreement
from kegnet_pl.reporting.front import can_draw_front, draw_front
from kegnet_pl.reporting.html import draw, embed, write_page
from kegnet_pl.reporting.results import Row, find_last
from kegnet_pl.reporting.run_story import write_story
from kegnet_pl.reporting.runs import FinishedRun
from kegnet_pl.reporting.style import looks_of
from kegnet_pl.reporting.summary import summarize
from kegnet_pl.reporting.tables import explain_quantization, find_best, format_size
from kegnet_pl.reporting.tradeoff import draw_tradeoff
from kegnet_pl.runtime.atomic_files import atomic_write

STAGES = "stages.json"
"""File in the folder of a run: the finished stages of its networks."""

PAGE = "report.html"
_MAX_SHEETS = 8
_RECOGNISED = 0.5
"""The teacher recognises a class if its mean confidence is at least this."""


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
        """Write ``stages.json`` into the folder of a run, with folders relative to it."""
        networks = {
            method: {stage: relpath(folder, run_folder) for stage, folder in stages.items()}
            for method, stages in self.networks.items()
        }
        content = {"config": self.config, "networks": networks}
        atomic_write(run_folder / STAGES, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, run_folder: Path) -> "StageFolders | None":
        """Read ``stages.json`` of a run, None if there is none."""
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


def read_compression_report(stage: Path | None) -> CompressionReport | None:
    """Read the report in the folder of a compression; None where another network was built."""
    path = stage / "compression.json" if stage is not None else None
    return CompressionReport.from_dict(json.loads(path.read_text())) if path is not None and path.exists() else None


def write_run_page(run: FinishedRun) -> Path:
    """Write the page of a run that has results into its folder.

    Sections of stages that were deleted from the store are left out.
    """
    stages = StageFolders.read(run.folder) or StageFolders({}, {})
    rows, best = run.rows, find_best(run.rows)
    notes = explain_quantization(rows)
    layers, by_class = read_compression_report(stages.find("compression")), _class_agreements(stages, rows)
    points = summarize([run] if best else [])
    parts = {
        "tradeoff": draw("accuracy against size", draw_tradeoff, points),
        "front": draw(
            "accuracy against size on disk, and against speed", draw_front, points if can_draw_front(points) else []
        ),
        "layers": layers,
        "compression_picture": draw("parameters and MACs of every layer", figures.draw_compression, layers),
        **_curves(stages, rows),
        **_samples(stages),
        **_classes(stages, rows),
        "class_agreements": by_class,
        "class_lines": list(zip(*by_class.values(), strict=True)),
        "costs": draw("seconds by kind of work", figures.draw_costs, _spent(rows)),
    }
    agreements = any(row.agreement is not None for row in rows)
    sections = {
        "results": "Results",
        "layers": "Layers" if layers else None,
        "samples": "Samples" if parts["sheet"] else None,
        "curves": "Training" if parts["generator_curves"] or parts["student_curves"] else None,
        "classes": "Classes" if parts["confusion"] else None,
        "agreement": "Agreement" if agreements else None,
        "costs": "Costs",
        "settings": "Settings",
    }
    first = rows[0]
    return write_page(
        "run.html",
        run.folder / PAGE,
        f"{first.teacher}{'' if first.dataset == 'none' else f' on {first.dataset}'}: "
        f"{find_last(rows).compression_ratio:.2f} times smaller, without its data",
        [(key, name) for key, name in sections.items() if name],
        rows=rows,
        format_size=format_size,
        best=best,
        last=find_last(rows).method,
        agreements=agreements,
        agreement_text=explain_agreement(rows),
        story=write_story(rows, stages.config),
        facts=_facts(rows),
        test_set=first.test_set,
        notes=notes,
        config=OmegaConf.to_yaml(OmegaConf.create(stages.config)) if stages.config else None,
        **parts,
    )


def _facts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    last, teacher = find_last(rows), rows[0]
    facts = [
        (f"{100 * row.accuracy:.2f} %", f"accuracy of {name}")
        for row, name in ((last, last.method), (teacher, "the teacher"))
        if row.accuracy is not None
    ]
    if last.accuracy is None and last.mean_agreement is not None:
        facts.append(
            (f"{100 * last.mean_agreement:.1f} %", "agreement with the teacher on synthetic samples (not accuracy)")
        )
    facts.append((f"{last.compression_ratio:.2f}x", "fewer parameters"))
    if last.macs:
        facts.append((f"{teacher.macs / last.macs:.2f}x", "fewer multiply-accumulates"))
    speedups = last.speedups
    if speedups:
        size = max(speedups)
        facts.append((f"{speedups[size]:.2f}x", f"the teacher's speed, for batches of {size}"))
    facts.append((figures.clock(sum(_spent(rows).values())), "in all, in this run or before"))
    return facts


def _spent(rows: Sequence[Row]) -> dict[str, float]:
    """Return the seconds by kind of work of all rows; what they share counts once."""
    shared = next(row for row in reversed(rows) if row.source is None and row.quantization is None).costs["seconds"]
    total = dict(shared)
    for row in rows:
        total["evaluation"] += row.stage_seconds.get("evaluation", 0.0)
        total["compression"] += row.stage_seconds.get("quantization", 0.0)
        if row.source is not None and row.quantization is None:
            for work, seconds in row.costs["seconds"].items():
                total[work] += max(0.0, seconds - shared[work])
    return total


def _curves(stages: StageFolders, rows: Sequence[Row]) -> dict[str, Any]:
    students = {}
    for row in rows:
        folder = stages.networks.get(row.method, {}).get("student")
        curves = figures.read_curves(folder / "logs" / row.source["name"]) if folder and row.source else None
        if curves:
            students[row.method] = curves
    folder = stages.find("generators")
    generators: dict[str, dict[str, figures.Curve]] = {}
    for logs in (folder / "logs").glob("*") if folder is not None else ():
        generators |= figures.split_curves(figures.read_curves(logs), logs.name)
    generators = {name: generators[name] for name in sorted(generators, key=lambda name: (len(name), name))}
    return {
        "generator_curves": draw("losses of the generators", figures.draw_generator_curves, generators),
        "student_curves": draw("losses of the students", figures.draw_student_curves, students, looks_of(rows)),
    }


def _samples(stages: StageFolders) -> dict[str, Any]:
    folder = stages.find("generators")
    if folder is None:
        return {"sheet": None}
    metrics = _metrics(folder)
    confidence, walks = metrics.get("confidence", []), metrics.get("walk", [])
    sheets = sorted((folder / "sheets" / "generator_0").glob("epoch_*.png"))
    count = min(len(sheets), _MAX_SHEETS)
    some = [sheets[index * (len(sheets) - 1) // (count - 1)] for index in range(count)] if count > 1 else []
    return {
        "sheet": embed(sheets[-1] if sheets else folder / "samples.png"),
        "sheets": [(int(path.stem.split("_")[1]), embed(path)) for path in some],
        "tabular": len(stages.config["data"]["input_shape"]) == 1,
        "confidence": confidence,
        "recognised": min(confidence, default=0.0) >= _RECOGNISED,
        "walks": walks,
        "walk": embed(folder / "walk.png") if walks else None,
        "walk_picture": draw("probabilities along the walks", figures.draw_walk, walks),
    }


def _classes(stages: StageFolders, rows: Sequence[Row]) -> dict[str, Any]:
    plain = {row.method for row in rows if row.quantization is None}
    confusions: dict[str, list[list[int]]] = {
        method: _metrics(folders["evaluation"])["confusion"]
        for method, folders in stages.networks.items()
        if "evaluation" in folders and folders["evaluation"].is_dir() and method in plain
    }
    if not confusions:
        return {"confusion": None}
    last = find_last(rows).method
    return {
        "confusion": [[(count, count / max(sum(line), 1)) for count in line] for line in confusions[last]],
        "confused": last,
        "classes_picture": draw("accuracy of every class", figures.draw_classes, confusions, looks_of(rows)),
    }


def _class_agreements(stages: StageFolders, rows: Sequence[Row]) -> dict[str, list[tuple[int, int]]]:
    """Return source -> samples of each of the teacher's classes, and those with the same class, for the last row."""
    folder = stages.networks.get(find_last(rows).method, {}).get("agreement")
    found = _metrics(folder) if folder is not None and folder.is_dir() else {}
    return {name: list(zip(one["counts"], one["equal"], strict=True)) for name, one in found.items()}


def _metrics(stage: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((stage / "manifest.json").read_text())["metrics"]
    return metrics
