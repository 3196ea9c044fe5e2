"""The page ``report.html`` of one run."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kegnet_pl.reporting import figures
from kegnet_pl.reporting.agreement import explain_agreement, format_agreement
from kegnet_pl.reporting.classes import ClassCounts
from kegnet_pl.reporting.front import can_draw_front, draw_front
from kegnet_pl.reporting.html import draw, write_page
from kegnet_pl.reporting.results import Row, find_last, list_warnings
from kegnet_pl.reporting.run_parts import make_parts
from kegnet_pl.reporting.run_story import write_story
from kegnet_pl.reporting.runs import FinishedRun
from kegnet_pl.reporting.summary import summarize
from kegnet_pl.reporting.tables import (
    describe_results,
    explain_names,
    explain_quantization,
    explain_speed,
    find_best,
    format_size,
)
from kegnet_pl.reporting.tradeoff import draw_accuracy, draw_bars
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.runtime.safe_files import printable, read_json

STAGES = "stages.json"
"""File in the folder of a run: the finished stages of its networks."""

PAGE = "report.html"

_CONTENT = TypeAdapter(tuple[dict[str, Any], dict[str, dict[str, str]]])


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
        """Read ``stages.json`` of a run, None if there is none.

        Raises:
            UserError: If it is damaged, or names other folders than those of stages.
        """
        path = run_folder / STAGES
        if not os.path.lexists(path):
            return None
        content = read_json(path, run_folder)
        try:
            config, folders_of = _CONTENT.validate_python((content["config"], content["networks"]))
            networks = {
                method: {stage: Path(os.path.realpath(run_folder / folder)) for stage, folder in stages.items()}
                for method, stages in folders_of.items()
            }
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"Expected `config` and `networks`, with folders by name, in {printable(path)}, but got other content. "
                f"The file is damaged. Run its command again."
            ) from error
        for folders in networks.values():
            for stage, folder in folders.items():
                if not re.fullmatch(rf"{re.escape(stage)}-[0-9a-f]{{16}}", folder.name):
                    raise UserError(
                        f"Expected folders of finished stages in {printable(path)}, such as {printable(stage, 60)}-"
                        f"0123456789abcdef, but got {printable(folder, 200)}. The file is damaged, or not from a run."
                    )
        return cls(config, networks)

    def find(self, stage: str) -> Path | None:
        """Return the folder of a stage that all networks share; None where there is none, or it was deleted."""
        found = (stages[stage] for stages in self.networks.values() if stage in stages)
        return next((folder for folder in found if folder.is_dir()), None)


def write_run_page(run: FinishedRun) -> Path:
    """Write the page of a run that has results into its folder.

    The page has no sections for stages that were deleted from the store or are damaged; a note names the damaged ones.

    Raises:
        UserError: If ``stages.json`` is damaged.
    """
    stages = StageFolders.read(run.folder) or StageFolders({}, {})
    rows, best = run.rows, find_best(run.rows)
    of_stages, left_out = make_parts(stages, rows)
    notes = [*explain_names(rows), *explain_speed(rows), *explain_quantization(rows), *left_out]
    points = summarize([run] if best else [])
    agreeing = [] if best else [point for point in summarize([run]) if point.agreement is not None]
    parts = {
        "tradeoff": draw("accuracy", draw_accuracy, points) or draw("agreement", draw_bars, agreeing),
        "front": draw(
            "accuracy against size on disk, and against speed", draw_front, points if can_draw_front(points) else []
        ),
        **of_stages,
        "costs": draw("seconds by kind of work", figures.draw_costs, _spent(rows)),
    }
    agreements = any(row.agreement is not None for row in rows)
    sections = {
        "results": "Results",
        "layers": "Layers" if parts["layers"] else None,
        "samples": "Samples" if parts["sheet"] else None,
        "curves": "Training" if parts["generator_curves"] or parts["student_curves"] else None,
        "classes": "Classes" if parts["classes"] else None,
        "agreement": "Agreement" if agreements else None,
        "costs": "Costs",
        "settings": "Settings",
    }
    first = rows[0]
    return write_page(
        "run.html",
        run.folder / PAGE,
        f"{first.teacher}{'' if first.dataset in ('none', 'files') else f' on {first.dataset}'}: "
        f"{find_last(rows).compression_ratio:.2f} times smaller, without its data",
        [(key, name) for key, name in sections.items() if name],
        rows=rows,
        format_size=format_size,
        format_agreement=format_agreement,
        best=best,
        last=find_last(rows).name,
        agreements=agreements,
        agreement_text=explain_agreement(rows),
        story=write_story(rows, stages.config),
        facts=_facts(rows, parts["classes"]),
        machine=_machine(rows),
        has_int8=any(row.quantization is not None for row in rows),
        batch_sizes=list(find_last(rows).speedups),
        description=describe_results(rows),
        notes=notes,
        warnings=list_warnings(rows),
        **parts,
    )


def _facts(rows: Sequence[Row], classes: ClassCounts | None = None) -> list[tuple[str, str]]:
    last, teacher = find_last(rows), rows[0]
    facts = [
        (f"{100 * row.accuracy:.2f} %", f"accuracy: {row.name}") for row in (last, teacher) if row.accuracy is not None
    ]
    if last.accuracy is None and last.mean_agreement is not None:
        facts.append(
            (
                format_agreement(last.mean_agreement, last.agreement_samples),
                "agreement with the teacher on synthetic samples (not accuracy)",
            )
        )
    weakest = classes and classes.find_weakest()
    worst = last.agreement["worst"] if last.agreement is not None and last.accuracy is None else None
    if weakest:
        facts.append((f"{100 * weakest[1]:.1f} %", f"accuracy of class {weakest[0]}, the worst of {last.name}"))
    elif worst:
        facts.append((f"{100 * worst['agreement']:.0f} %", f"agreement on class {worst['label']}, the worst"))
    facts.append((f"{last.compression_ratio:.2f}x", "fewer parameters"))
    if last.size and teacher.size:
        facts.append(
            (f"{format_size(last.size)} MB", f"file of weights; {format_size(teacher.size)} MB of the teacher")
        )
    if last.macs:
        facts.append((f"{teacher.macs / last.macs:.2f}x", "fewer multiply-accumulates"))
    for size, speedup in last.speedups.items():
        assert last.latency is not None
        ms = f"{last.latency['batches'][str(size)]['ms']:.3g} ms"
        facts.append((ms, f"for a batch of {size}: {speedup:.2f}x the teacher's speed"))
    facts.append((figures.clock(sum(_spent(rows).values())), "total, in this run or before"))
    return facts


def _machine(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return device, threads and versions of a run; the device is known if the latency was measured."""
    latency = next((row.latency for row in rows if row.latency is not None), None)
    found = [] if latency is None else [("device", str(latency["device"]))]
    if latency is not None and latency["threads"] is not None:
        found.append(("threads of PyTorch", str(latency["threads"])))
    return [*found, *rows[0].versions.items()]


def _spent(rows: Sequence[Row]) -> dict[str, float]:
    """Return the seconds by kind of work of all rows; shared stages count once."""
    shared = next(row for row in reversed(rows) if row.source is None and row.quantization is None).costs["seconds"]
    total = dict(shared)
    for row in rows:
        total["evaluation"] += row.stage_seconds.get("evaluation", 0.0)
        total["compression"] += row.stage_seconds.get("quantization", 0.0)
        if row.source is not None and row.quantization is None:
            for work, seconds in row.costs["seconds"].items():
                total[work] += max(0.0, seconds - shared[work])
    return total
