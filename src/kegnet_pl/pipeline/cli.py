"""The command line: Hydra composes the configuration, the pipeline runs it. Heavy imports come after the checks."""

import _thread
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

import kegnet_pl
from kegnet_pl.pipeline import sweep
from kegnet_pl.pipeline.configuration import as_written, conceal_hydra_files, to_plain
from kegnet_pl.pipeline.provenance import versions
from kegnet_pl.pipeline.suggestions import accept_old_spellings, explain_options, refuse_old_names, suggest
from kegnet_pl.pipeline.teacher_card import expand_card
from kegnet_pl.reporting.names import name_compression
from kegnet_pl.runtime import held
from kegnet_pl.runtime.environment import choose_ranks, global_rank, launched
from kegnet_pl.runtime.errors import ConfigError, UserError, explain_full, explain_lost, explain_memory
from kegnet_pl.runtime.secrets import conceal

if TYPE_CHECKING:
    from kegnet_pl.settings import RunSettings

_TRIAL_STEPS = 1000
"""Number of steps of a generator. Up to this number, a run counts as short as the demo."""

_NO_DATA = (
    "The command names no data, so the test data are the digits of the demo. For another network, set data=none "
    "'data.input_shape=[...]' data.classes=..., or data=files data.test=FILE."
)

_DEMO = "digits_lenet"
"""The preset that runs by default."""

_entered = False
_interrupted = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stop the command, and remember that the user stopped it: libraries may turn the exception into another one."""
    global _interrupted
    _interrupted = True
    signal.default_int_handler(number, frame)


class _Terminated(KeyboardInterrupt):
    """Raised at SIGTERM outside of a fit. In a fit, Lightning handles the signal."""


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if signal.getsignal(signal.SIGTERM) is _terminate:  # else Lightning's handler has called this one
        raise _Terminated


@hydra.main(version_base="1.3", config_path="pkg://kegnet_pl.conf", config_name="config")
def _run(cfg: DictConfig) -> float | tuple[float, ...] | None:
    global _entered
    _entered = True
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    is_main = threading.current_thread() is threading.main_thread()
    installs = is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if installs:
        signal.signal(signal.SIGTERM, _terminate)
    held.release()
    os.chdir(HydraConfig.get().runtime.cwd)  # relative paths start there, also with hydra.job.chdir=true
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        return _run_job(cfg, folder)
    except KeyboardInterrupt as stop:
        _stop(cfg, folder, code=143 if isinstance(stop, _Terminated) else 130)
    except SystemExit as stop:
        from pytorch_lightning.utilities.exceptions import SIGTERMException

        if not isinstance(stop, SIGTERMException):
            raise
        _stop(cfg, folder, code=143)  # Lightning leaves with 0, as if all had been done
    except Exception as caught:
        explained = explain_full(caught) or explain_lost(caught)
        known = explain_memory(caught) or (caught if isinstance(caught, UserError) else explained)
        error = known or caught
        # Our own checks say what to do, and a traceback would hide it.
        checked = isinstance(error, ValueError | FileNotFoundError) and re.match(r"(By \w+: )?Expected ", str(error))
        expected = bool(checked) or isinstance(error, UserError)
        if global_rank() == 0:
            with suppress(OSError):  # the folder of the run may be full
                if not (expected and sweep.discard_refused(folder)):
                    sweep.record_failure(folder, error, expected)
        if sweep.in_sweep():
            return math.nan  # sweepers need a number; the end of the sweep lists failed jobs
        if error is caught and (not expected or os.environ.get("HYDRA_FULL_ERROR")):
            raise
        _leave(f"Error: {conceal(str(error))}" if _prints_errors() else "", code=1)
    finally:
        if installs:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return None


def _prints_errors() -> bool:
    """Return True if this process prints its error: rank 0, or any rank after the processes have formed a group."""
    from kegnet_pl.runtime.distributed import distributed

    return global_rank() == 0 or launched() == 1 or distributed()


def _run_job(cfg: DictConfig, folder: Path) -> float | tuple[float, ...] | None:
    from kegnet_pl.settings import RunSettings

    settings = RunSettings.from_config(to_plain(cfg))
    conceal_hydra_files(folder)
    choose_ranks(settings.trainer.devices, settings.trainer.num_nodes)
    if sweep.in_sweep() and settings.trainer.processes > 1:
        raise ConfigError(sweep.ONE_PROCESS)
    if settings.objective == "accuracy" and sweep.searches():
        raise ConfigError(sweep.NO_ACCURACY)
    if not sweep.in_sweep() and global_rank() == 0:
        print(_introduce(settings), flush=True)  # noqa: T201  # torch is not imported yet
        if settings.teacher.is_given and not _names("data=", "experiment="):
            print(_NO_DATA, flush=True)  # noqa: T201
    from kegnet_pl.pipeline.gpus import one_gpu
    from kegnet_pl.pipeline.run import run
    from kegnet_pl.training.progress import make_console

    job = sweep.job_number() if sweep.jobs_share_the_terminal() else None
    terminal = make_console(job) if sweep.in_sweep() else None
    with one_gpu(settings.trainer) as gpu:
        automatic = _chooses_preset(settings)
        if automatic:
            cfg, settings = _apply_preset(cfg, settings, folder, gpu)
        elif HydraConfig.get().runtime.choices.get("experiment") in (None, _DEMO) and global_rank() == 0:
            _explain_trial(settings)
        return run(as_written(cfg), folder, settings=settings, terminal=terminal, gpu=gpu, estimate=automatic)


def _introduce(settings: "RunSettings") -> str:
    """Return the first line of a run: version, data, networks, sources, seed and device."""
    network, trainer = settings.student.network, settings.trainer
    smaller = name_compression(settings.compression.name) if network is None else network["_target_"].rpartition(".")[2]
    mixtures = ", ".join(" + ".join(mixture) for mixture in settings.sources) or "none"
    chosen = _chooses_preset(settings)  # a preset has other sources and another target
    sources = "" if chosen else f"sources {mixtures}, "
    student = "" if chosen and network is None else f"student {smaller}, "
    devices = f"{trainer.processes} x {trainer.accelerator}" if trainer.processes > 1 else trainer.accelerator
    return (
        f"kegnet_pl {kegnet_pl.__version__}: data {settings.data.name}, teacher {settings.teacher.title}, "
        f"{student}{sources}seed {settings.seed}, device {devices}"
    )


def _chooses_preset(settings: "RunSettings") -> bool:
    """Return True if the run chooses a preset for its teacher."""
    return settings.preset == "auto" and settings.teacher.is_given and not _names("experiment=")


def _names(*starts: str) -> bool:
    """Return True if an override of the command line begins with one of these texts."""
    return any(override.startswith(starts) for override in HydraConfig.get().overrides.task)


def _apply_preset(
    cfg: DictConfig, settings: "RunSettings", folder: Path, gpu: int | None
) -> tuple[DictConfig, "RunSettings"]:
    """Compose the configuration again with the preset for the teacher, and print what was chosen."""
    from kegnet_pl.pipeline.context import find_run_device
    from kegnet_pl.pipeline.preset import (
        build_untrained,
        choose_compression,
        choose_preset,
        describe_choice,
        fit_to_budget,
        without_given,
    )
    from kegnet_pl.settings import RunSettings

    weights = settings.teacher.weights
    network = build_untrained(settings) if weights is None or Path(weights).is_file() else None
    if network is None:  # the stage of the teacher says why
        return cfg, settings
    given = list(HydraConfig.get().overrides.task)

    def compose_again(overrides: Sequence[str]) -> tuple[DictConfig, "RunSettings"]:
        cfg = compose("config", [f"experiment={preset.name}", *overrides, *given])
        return cfg, RunSettings.from_config(to_plain(cfg))

    same_layers = settings.student.network is None
    device = find_run_device(settings.trainer, gpu)
    preset = choose_preset(network, settings.data.input_shape, same_layers)
    overrides = [*choose_compression(settings, given), *without_given(preset.overrides, given)]
    _, settings = compose_again(overrides)
    overrides = [*overrides, *without_given(fit_to_budget(settings, network, device), given)]
    cfg, settings = compose_again(overrides)
    if global_rank() == 0:
        print(describe_choice(preset, network, device, overrides), flush=True)  # noqa: T201
        with open_dict(cfg):
            saved = OmegaConf.merge(cfg, {"preset": "none"})  # a run of the saved configuration chooses nothing again
        OmegaConf.save(saved, folder / ".hydra" / "config.yaml")
        conceal_hydra_files(folder)
    return cfg, settings


def _explain_trial(settings: "RunSettings") -> None:
    """Print that a run as short as the demo is a trial, if the teacher is the user's own."""
    generator = settings.generator
    short = generator.epochs * generator.steps_per_epoch <= _TRIAL_STEPS
    if (
        settings.teacher.is_given
        and short
        and not settings.trial
        and any("kegnet" in mixture for mixture in settings.sources)
    ):
        print(  # noqa: T201
            f"This is a trial: generators train for {generator.epochs} epochs of {generator.steps_per_epoch} steps. "
            f"preset=auto without experiment=... chooses a preset for your own network: experiment=custom/batch_norm, "
            f"custom/image, custom/table or custom/signal."
        )


def _stop(cfg: DictConfig, folder: Path, code: int) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would hide the message
    offline = f" W&B runs so far: wandb sync {folder}/wandb/offline-run-*" if (folder / "wandb").is_dir() else ""
    if launched() > 1 and global_rank() > 0:
        sys.exit(code)
    _leave(
        f"Stopped. Finished stages are in {cfg.store}. Run the same command again (resume=auto) to continue this "
        f"run.{offline}",
        code,
    )


def _leave(message: str, code: int) -> None:
    try:
        sys.stdout.flush()
    except OSError:  # the stream is full or closed; Python would flush it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        print(f"\n{message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Stop the run if Ctrl-C comes while Python deletes an object: Python would print the exception and continue."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        number = signal.SIGTERM if issubclass(unraisable.exc_type, _Terminated) else signal.SIGINT
        # Without a delay, it would interrupt this function.
        threading.Timer(0.01, _thread.interrupt_main, [number]).start()
    else:
        sys.__unraisablehook__(unraisable)


def main() -> None:
    """Run the command line."""
    sys.unraisablehook = interrupt_again
    # Threads of GNU's OpenMP spin for a long while before they sleep: where other programs want the cores, too, small
    # networks then take far longer (benchmarks/waiting.py). Read when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "--version" in sys.argv[1:]:
        found = versions()
        others = ", ".join(f"{name} {version}" for name, version in found.items() if name != "kegnet_pl")
        print(f"kegnet_pl {found['kegnet_pl']} ({others})")  # noqa: T201
        return
    if {"--help", "-h", "--cfg", "-c", "--info", "-i"} & {argument.split("=")[0] for argument in sys.argv[1:]}:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # kegnet_pl --help | head
    try:
        refuse_old_names(sys.argv[1:])
        sys.argv[1:] = accept_old_spellings(expand_card(sys.argv[1:]))
    except ConfigError as error:
        _leave(f"Error: {error}", code=1)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise the user ignores or handles it
        signal.signal(signal.SIGINT, _interrupt)
    held.hold()  # Hydra's message about a wrong argument, where there is a hint of our own
    try:
        _run()
    except KeyboardInterrupt:
        held.release()
        _leave("Stopped before the run began.", code=130)
    except SystemExit as stop:
        if _interrupted and not _entered:
            held.release(show=False)
            _leave("Stopped before the run began.", code=130)
        hints = []
        if stop.code == 1 and not _entered and (sweep.started is None or not any(sweep.started.glob("*/.hydra"))):
            hints = list(suggest(sys.argv[1:]))
        if stop.code == 2 and not _entered:
            hints = list(explain_options(sys.argv[1:]))
        held.release(show=not hints or "HYDRA_FULL_ERROR" in os.environ)
        for hint in hints:
            print(f"\nError: {hint}", file=sys.stderr)  # noqa: T201
        raise
    finally:
        held.release()
        failed = False
        if sweep.started is not None:
            from kegnet_pl.reporting.sweep import finish_sweep

            failed = finish_sweep(sweep.started)
    if failed:
        sys.exit(1)
