"""The context of a run: its settings, its store, its loggers, its data."""

import functools
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from kegnet_pl.api.checkpoints import load_network
from kegnet_pl.api.quantization import OnnxNetwork
from kegnet_pl.data import RealDataModule
from kegnet_pl.pipeline.loggers import Loggers
from kegnet_pl.pipeline.objects import build, code_of, own_code
from kegnet_pl.pipeline.store import Build, Stage, Store, fingerprint
from kegnet_pl.pipeline.trackers import RunInfo
from kegnet_pl.pipeline.trainer import TrainerFactory, join_processes
from kegnet_pl.reporting.names import name_compression
from kegnet_pl.reporting.run_page import StageFolders
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.devices import find_device
from kegnet_pl.runtime.distributed import barrier, exchange, in_turn, rank
from kegnet_pl.runtime.environment import launched, local_rank
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.runtime.memory import keep_freed_memory
from kegnet_pl.runtime.secrets import conceal
from kegnet_pl.settings import RunSettings, TrainerSettings
from kegnet_pl.training.fit import quiet_lightning
from kegnet_pl.training.progress import StageProgress, make_console, make_file_console

QUANTIZED = "network.onnx"
"""File of a quantised network in the folder of its stage."""

OUTPUT = "output.txt"
"""File in the folder of a job of a sweep. It has the printed output of the run."""

_ALWAYS_LOGGED = {"csv": {"_target_": "pytorch_lightning.loggers.CSVLogger"}}
"""Loggers for ``logger=[]``: the report draws its curves from the CSV files."""


@dataclass(frozen=True)
class RunContext:
    """Everything that the stages of a run share.

    Attributes:
        settings: Settings of the run.
        config: The same as a plain configuration, as it was composed.
        store: Finished stages.
        trainers: Makes trainers, callbacks and loggers.
        console: Prints messages and progress; in a sweep, to a file in the folder of the job.
        device: Device of sampling and evaluation.
        data: Real data; None without real data.
        folder: Folder of the run on rank 0. Its ``stages.json`` lists stages as soon as they are finished. So the store
            knows which stages a run uses, also if the run is stopped.
        titles: Titles of the stages that print progress, in order.
        terminal: Shows the result line and the progress bar of a job of a sweep; None outside of sweeps.
    """

    settings: RunSettings
    config: Mapping[str, Any]
    store: Store
    trainers: TrainerFactory
    console: Console
    device: torch.device
    data: RealDataModule | None
    folder: Path
    titles: Sequence[str] = ()
    terminal: Console | None = None
    _finished: dict[str, dict[str, Path]] = field(default_factory=dict, repr=False)
    _networks: dict[tuple[Path, str], nn.Module] = field(default_factory=dict, repr=False)

    def progress(self, title: str) -> StageProgress:
        """Return the progress of a stage, with its number among the stages of the run."""
        return StageProgress(self.label(title), self.console, self.terminal)

    def warn(self, sentences: Iterable[str]) -> None:
        """Print warnings."""
        for sentence in sentences:
            self.console.print(f"Warning: {sentence}", soft_wrap=True)

    def label(self, title: str) -> str:
        """Return the title of a stage with its number, such as ``[3/6] generators``."""
        return f"[{self.titles.index(title) + 1}/{len(self.titles)}] {title}" if title in self.titles else title

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.settings.seed

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.settings.data.input_shape)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.settings.data.classes

    @property
    def loggers(self) -> Loggers:
        """Loggers of the stages."""
        return self.trainers.loggers

    def network(self, stage: Stage) -> nn.Module:
        """Return the network of a stage, on the CPU in evaluation mode; it returns logits.

        It is read once and must not be changed.
        """
        key = (stage.folder, stage.fingerprint)
        if key not in self._networks and stage.name == "quantization":
            weights_only = stage.manifest["config"]["activations"] == "float"
            self._networks[key] = OnnxNetwork(stage.folder / QUANTIZED, dequantize=weights_only)
        elif key not in self._networks:
            self._networks[key] = load_network(stage.folder, logits=True, trust=own_code(self.settings))
        return self._networks[key]

    def data_fingerprint(self, *parts: str) -> dict[str, Any]:
        """Return the settings and the content of the splits of real data that are used for training or selection."""
        assert self.data is not None
        data = self.settings.data
        return data.fingerprint() | code_of(data) | {"content": self.data.digest(*parts)}

    def get_or_build(
        self,
        stage: str,
        settings: Mapping[str, Any],
        parents: Sequence[Stage],
        make: Build,
        *,
        title: str | None,
        collective: bool = False,
    ) -> Stage:
        """Find a stage in the store, or build it (see :meth:`Store.get`); then log it.

        ``title`` is the name of the stage on the terminal; None prints nothing where the stage was found.
        """
        loggers = self.loggers

        def make_without_waiting(folder: Path, costs: StageCosts) -> Mapping[str, Any]:
            if collective and self.settings.trainer.processes > 1:
                join_processes(self.trainers.make_trainer)
                barrier()  # until rank 0 has prepared the folder
            waited = loggers.waited
            try:
                return make(folder, costs)
            finally:
                costs.total -= loggers.waited - waited

        finished = self.store.get(stage, settings, parents, make_without_waiting, collective=collective)
        if rank() == 0:
            self._finished[finished.folder.name] = {stage: finished.folder}
            StageFolders(conceal(dict(self.config)), self._finished).write(self.folder)
        loggers.finish_stage(finished, parents)
        if finished.found and title is not None:
            self.console.print(
                f"{self.label(title)}: found ({finished.fingerprint}), {finished.seconds:.1f} s when it was made"
            )
        return finished


def open_context(
    settings: RunSettings,
    config: Mapping[str, Any],
    run_folder: Path,
    terminal: Console | None = None,
    gpu: int | None = None,
    *,
    titles: Sequence[str] = (),
    needs_data: bool = False,
) -> RunContext:
    """Return the context of a run; see :func:`kegnet_pl.pipeline.run.run`.

    Args:
        settings: Settings of the run.
        config: The same as a plain configuration.
        run_folder: Folder of the run.
        terminal: See :func:`kegnet_pl.pipeline.run.run`.
        gpu: Index of the reserved GPU.
        titles: Titles of the stages that print progress, in order.
        needs_data: True if a source needs the real training data.
    """
    quiet_lightning()
    if settings.trainer.accelerator == "cpu":
        keep_freed_memory()
    console = make_console() if terminal is None else make_file_console(run_folder / OUTPUT)
    make_trainer = functools.partial(build, settings.trainer, **({} if gpu is None else {"devices": [gpu]}))
    if settings.trainer.processes > 1 and launched() > 1:
        join_processes(make_trainer)
        run_folder = _share_folder(run_folder)
    trainers = TrainerFactory(
        make_trainer=make_trainer,
        make_callbacks=lambda folder: [
            build(callback, **({"dirpath": str(folder)} if name == "resume" else {}))
            for name, callback in settings.callbacks.items()
        ],
        loggers=_make_loggers(settings, config, run_folder, console.print),
    )
    device = find_run_device(settings.trainer, gpu)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # torch allocates and measures memory on it, and not on the first GPU
    return RunContext(
        settings,
        config,
        Store(settings.store, settings.resume, console.print, settings.verify_store),
        trainers,
        console,
        device,
        _open_data(settings, needs_data, console.print),
        run_folder,
        titles,
        terminal,
    )


def _share_folder(folder: Path) -> Path:
    """Return the folder of rank 0; on another rank, remove the folder that Hydra has made for it."""
    first = exchange(folder.absolute())[0]
    if folder.absolute() != first:
        shutil.rmtree(folder / ".hydra", ignore_errors=True)
        with suppress(OSError):  # not empty
            folder.rmdir()
    return first


def find_run_device(trainer: TrainerSettings, gpu: int | None) -> torch.device:
    """Return the device of sampling and evaluation: the GPU of this process, or the CPU.

    Raises:
        ConfigError: If a GPU is asked for and there is none.
    """
    if trainer.accelerator == "cpu":
        return find_device("cpu")
    # Lightning tells the processes that it starts which GPU is theirs.
    try:
        return find_device(f"cuda:{local_rank() if gpu is None else gpu}")
    except ValueError as error:
        raise ConfigError(
            "Expected a GPU for trainer.accelerator=gpu, but torch finds none. Use trainer=cpu."
        ) from error


def _open_data(settings: RunSettings, needs_data: bool, notify: Callable[[str], object]) -> RealDataModule | None:
    """Return the real data, None where there is none and none is needed.

    Raises:
        FileNotFoundError: If its files are missing and the run needs them.
    """
    if settings.data.target is None:
        return None
    data: RealDataModule = build(settings.data)
    try:
        with in_turn():  # the first process of a machine downloads what is missing
            data.prepare_data()
    except FileNotFoundError as error:
        needed = needs_data or not settings.teacher.is_given or settings.student.selection == "real"
        if needed or not data.may_be_missing:
            raise
        notify(f"Accuracy will not be measured: {error}")
        return None
    return data


def student_name(settings: RunSettings) -> str:
    """Return the name of the compression, or of the other network that is trained."""
    network = settings.student.network
    return settings.compression.name if network is None else str(network["_target_"].rsplit(".", 1)[-1])


def training_fingerprint(settings: RunSettings) -> dict[str, Any]:
    """Return the settings of the trainer and of callbacks that change a result."""
    callbacks = {name: callback for name, callback in settings.callbacks.items() if name != "resume"}
    processes, trainer = settings.trainer.processes, settings.trainer.fingerprint()
    return {"processes": processes, "trainer": trainer, "callbacks": callbacks | code_of(callbacks)}


def run_fingerprint(settings: RunSettings) -> str:
    """Return a hash of all settings that change results: runs of the same pipeline share it."""
    groups = ("data", "teacher", "generator", "student", "compression")
    content: dict[str, Any] = {group: getattr(settings, group).fingerprint() for group in groups}
    content |= {"seed": settings.seed, "sources": settings.sources, "source": settings.source}
    content |= {"recipe": settings.recipe, **training_fingerprint(settings)}
    return fingerprint("pipeline", content, [])


def _make_loggers(
    settings: RunSettings, config: Mapping[str, Any], run_folder: Path, notify: Callable[[str], object]
) -> Loggers:
    name, student = settings.data.name, name_compression(student_name(settings))
    pipeline = f"{name}-{run_fingerprint(settings)}"
    sweep = [settings.sweep] if settings.sweep else []
    info = RunInfo(
        folder=run_folder,
        pipeline=pipeline,
        label=f"{name} {student}, seed {settings.seed}",
        tags=[*dict.fromkeys([name, settings.teacher.name, student, settings.recipe]), f"seed {settings.seed}", *sweep],
        hyperparameters={**conceal(config), "pipeline": pipeline},
        notify=notify,
        sweep=settings.sweep,
        kept=Path(settings.store) / ".trackers",
    )
    return Loggers(settings.logger or _ALWAYS_LOGGED, info)
