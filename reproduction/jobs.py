"""The jobs of the paper's tables: one for each recipe, cell, seed and kind of synthetic data."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from pydantic import TypeAdapter

from kegnet_pl.pipeline.suggestions import RECIPES
from kegnet_pl.runtime.errors import first_line
from kegnet_pl.settings.data import Mixtures
from kegnet_pl.sources import describe_mixture
from reproduction.paths import ROOT
from reproduction.runner import Run

KINDS = {"kegnet": ("kegnet",), "noise": ("uniform", "normal"), "preset": ()}
"""Kind of a job -> sources of its students. ``preset``: the source of the preset, and real data
(the ceiling) unless the run has ``ceiling: false``."""


@dataclass(frozen=True)
class Job:
    """One run of the product.

    Attributes:
        experiment: Name in ``conf/experiment``.
        option: Name in ``conf/compression``.
        recipe: Folder of the preset in ``conf/experiment``: best, paper or strict; fast is the experiment's own preset.
        kind: A name of KINDS.
        seed: The run's seed.
        settings: Further overrides.
        gpu: True if it needs a GPU.
        ceiling: True if a run of a preset also trains a student of real data.
    """

    experiment: str
    option: str
    recipe: str
    kind: str
    seed: int
    settings: tuple[str, ...] = ()
    gpu: bool = False
    ceiling: bool = True

    @property
    def cell(self) -> str:
        """The cell of the paper's table: ``experiment/option``."""
        return f"{self.experiment}/{self.option}"

    @property
    def name(self) -> str:
        """Name of the job's run."""
        return f"{self.experiment}-{self.option}-{self.recipe}-{self.kind}-seed{self.seed}"

    @property
    def preset(self) -> str:
        """Name of the preset in ``conf/experiment``."""
        return f"{RECIPES[self.recipe]}{self.experiment}"

    @property
    def sources(self) -> list[dict[str, float]]:
        """Sources of the students: names with shares."""
        if self.kind != "preset":
            return [{name: 1.0} for name in KINDS[self.kind]]
        preset = yaml.safe_load((ROOT / "conf" / "experiment" / f"{self.preset}.yaml").read_text())
        listed = preset.get("sources", [])
        if len(listed) != 1:
            raise ValueError(
                f"Expected one entry in `sources` of the preset {self.preset}, but got {listed}. The run itself adds "
                f"real data, for the ceiling."
            )
        return [*read_mixtures(listed), *([{"real": 1.0}] if self.ceiling else [])]

    def to_run(self, teacher: str | None, settings: Sequence[str] = ()) -> Run:
        """Return the run of the product.

        Args:
            teacher: File of the teacher's weights below KEGNET_REFERENCE_DIR/teachers; None to train one.
            settings: Further overrides. They replace the settings of the job.
        """
        seed_of_generators = next((s for s in self.settings if s.startswith("generator.seed=")), f"seed={self.seed}")
        parents = (str(self.seed),) if self.kind == "noise" else (self.recipe, seed_of_generators)
        replaced = {setting.split("=", 1)[0] for setting in settings}
        sources = self.sources
        overrides = (
            f"experiment={self.preset}", f"compression={self.option}",
            f"seed={self.seed}", f"sources=[{','.join(_spelled(shares) for shares in sources)}]",
            *(own for own in self.settings if own.split("=", 1)[0] not in replaced), *weights(teacher), *settings,
        )  # fmt: skip
        methods = tuple(f"T+{describe_mixture(shares).title}" for shares in sources)
        return Run(self.name, overrides, methods, (self.experiment, *parents))


def read_mixtures(listed: list[Any]) -> list[dict[str, float]]:
    """Return the entries of ``sources``, names or mixtures, as names with shares, in the way of the product."""
    return TypeAdapter(Mixtures).validate_python(listed)


def _spelled(shares: dict[str, float]) -> str:
    """Return a source in the form of the command line: ``kegnet`` or ``{kegnet:0.5,procedural:0.5}``."""
    parts = [f"{name}:{share}" for name, share in shares.items()]
    return next(iter(shares)) if len(shares) == 1 else f"{{{','.join(parts)}}}"


def weights(teacher: str | None) -> tuple[str, ...]:
    """Return the override with the file of a released teacher, relative to KEGNET_REFERENCE_DIR; none if None."""
    return (f"teacher.weights=${{oc.env:KEGNET_REFERENCE_DIR}}/teachers/{teacher}",) if teacher else ()


def released_teacher(teacher: str | None) -> str | None:
    """Return the file name of a released teacher, or None if KEGNET_REFERENCE_DIR is not set.

    Raises:
        ValueError: If the variable is set, but the file does not exist.
    """
    folder = os.environ.get("KEGNET_REFERENCE_DIR")
    if not teacher or not folder:
        return None
    if not (Path(folder) / "teachers" / teacher).exists():
        raise ValueError(
            f"KEGNET_REFERENCE_DIR is set to {folder}, but there is no teachers/{teacher} below it. "
            "Correct it, or unset it: then the teacher is trained here."
        )
    return teacher


def store_of(settings: Sequence[str]) -> Path:
    """Return the store of runs: the last one in their overrides, or the default of ``conf/config.yaml``.

    Raises:
        ValueError: If Hydra cannot read an override of it, or if it is not a plain path.
    """
    store = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())["store"]
    for text in settings:
        if not text.startswith("store="):
            continue
        try:
            store = OverridesParser.create().parse_override(text).value()
        except HydraException as error:
            raise ValueError(f"--set {text}: Hydra cannot read it ({first_line(error)}).") from error
        if not isinstance(store, str) or "${" in store:
            raise ValueError(
                f"--set {text}: expected the path of a folder, as teachers are put there before runs begin."
            )
    return Path(store)


SMOKE_JOBS = tuple(
    Job(experiment, option, recipe, kind, seed=0)
    for experiment, option, recipe in (
        ("mnist_lenet", "option3", "paper"),
        ("svhn_resnet", "option2", "fast"),
        ("letter_mlp", "option1", "strict"),
    )
    for kind in ("kegnet", "noise")
)
"""A small network of images, a large one, and a table."""

SMOKE_SETTINGS = (
    "teacher.epochs=1", "teacher.min_epochs=null", "teacher.patience=null", "generator.count=2", "generator.epochs=1",
    "generator.steps_per_epoch=4", "generator.batch_size=32", "student.samples=128", "student.epochs=1",
    "student.baselines.samples=128", "student.baselines.epochs=1",
)  # fmt: skip
"""The shortest schedule that runs every stage. Its accuracies have no meaning."""


def read_cells() -> dict[str, Any]:
    """Return the content of ``cells.yaml``."""
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "cells.yaml").read_text())
    return content


def all_jobs(cells: dict[str, Any]) -> Iterator[Job]:
    """Yield every job, in order."""
    for run in cells["runs"]:
        for kind in KINDS:
            for experiment in run["experiments"]:
                for seed in range(run.get(kind, 0)):
                    for option in cells["experiments"][experiment]["options"]:
                        settings = tuple(
                            s for s in run.get("settings", ()) if kind != "noise" or not s.startswith("generator.")
                        )
                        yield Job(
                            experiment, option, run["recipe"], kind, seed, settings, run.get("gpu", False),
                            run.get("ceiling", True),
                        )  # fmt: skip


def choose(
    jobs: Iterator[Job],
    cells: Sequence[str],
    recipes: Sequence[str],
    kind: str | None = None,
    seeds: int | None = None,
) -> list[Job]:
    """Return some of the jobs.

    Args:
        jobs: All jobs.
        cells: ``experiment`` or ``experiment/option``; none for all.
        recipes: Names; none for all.
        kind: A name of KINDS; None for all.
        seeds: Number of the first seeds of every row; None for all.

    Raises:
        ValueError: If a name fits no job, or no job fits all names.
    """
    everything = list(jobs)
    for names, what, known in (
        (cells, "cell", {job.cell for job in everything} | {job.experiment for job in everything}),
        (recipes, "recipe", {job.recipe for job in everything}),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"Expected a {what} out of {', '.join(sorted(known))}, but got {name!r}.")
    chosen = [
        job
        for job in everything
        if (not cells or job.cell in cells or job.experiment in cells)
        and (not recipes or job.recipe in recipes)
        and kind in (None, job.kind)
        and (seeds is None or job.seed < seeds)
    ]
    if not chosen:
        raise ValueError("Expected cells, recipes and a kind that have runs together, but there are none: see --list.")
    return chosen
