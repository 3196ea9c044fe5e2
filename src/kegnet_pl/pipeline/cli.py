"""The door: Hydra composes the configuration, the pipeline runs it. Heavy imports stay behind it."""

import difflib
import itertools
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from kegnet_pl.pipeline import sweep
from kegnet_pl.runtime.errors import ConfigError, UserError
from kegnet_pl.schema import check, to_plain

_TRIAL_STEPS = 1000
"""Steps of a generator, up to which a run is as short as the demo."""

_LAUNCHERS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
"""Launchers of Hydra, and our extra that installs each."""

_entered = False


@hydra.main(version_base="1.3", config_path="pkg://kegnet_pl.conf", config_name="config")
def _run(cfg: DictConfig) -> float | None:
    global _entered
    _entered = True
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        return _run_job(cfg, folder)
    except KeyboardInterrupt:
        _stop(cfg, folder, code=130)
    except SystemExit as stop:
        from pytorch_lightning.utilities.exceptions import SIGTERMException

        if not isinstance(stop, SIGTERMException):
            raise
        _stop(cfg, folder, code=143)  # Lightning leaves with 0, as if all had been done
    except Exception as error:
        # Our own checks say what to do, and a traceback would hide it.
        ours = isinstance(error, UserError | ValueError | FileNotFoundError)
        expected = ours and (isinstance(error, UserError) or str(error).startswith("Expected "))
        if _first_process():
            sweep.record_failure(folder, error, expected)
        if sweep.in_sweep():
            return math.nan  # a number, as sweepers look at it; what failed is told when the sweep ends
        if not expected or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        _leave(f"Error: {error}", code=1)
    return None


def _run_job(cfg: DictConfig, folder: Path) -> float | None:
    config = to_plain(cfg)
    check(config)
    schedule = HydraConfig.get().runtime.choices.get("schedule")
    if config["recipe"] == "fast" and schedule in (None, "released", "batch_norm"):
        raise ConfigError(
            f"Expected an experiment beside recipe=fast, which shortens the schedules of the paper's experiments, but "
            f"got {f'schedule={schedule}' if schedule else 'none'}: nothing would change. Add +experiment=..., or "
            f"schedule=... (mnist_lenet, svhn_resnet, fashion_resnet, table_mlp), or leave recipe=fast out. For a "
            f"network of your own with batch norm there is schedule=batch_norm, without recipe=fast."
        )
    if sweep.in_sweep() and config["trainer"]["devices"] > 1:
        raise ConfigError(sweep.ONE_PROCESS)
    if schedule is None and _first_process():
        _say_how_short(config)
    from kegnet_pl.pipeline.gpus import one_gpu
    from kegnet_pl.pipeline.run import run

    job = sweep.job_number() if sweep.in_sweep() and sweep.jobs_share_the_terminal() else None
    with one_gpu(config) as gpu:
        return run(config, folder, job=job, gpu=gpu)


def _first_process() -> bool:
    """Whether this is the process that speaks; before torch is imported, which :func:`kegnet_pl.runtime.distributed.rank` needs."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _say_how_short(config: dict[str, Any]) -> None:
    """Tell users who bring a network that a run as short as the demo is a trial."""
    generator = config["generator"]
    short = generator["epochs"] * generator["steps_per_epoch"] <= _TRIAL_STEPS and "kegnet" in config["sources"]
    if config["teacher"]["weights"] is not None and short:
        print(  # noqa: T201
            f"This is a trial: generators train for {generator['epochs']} epochs of {generator['steps_per_epoch']} "
            f"steps. Schedules for a network of your own are in README: schedule=batch_norm for images and a teacher "
            f"with batch norm, schedule=mnist_lenet recipe=fast without, schedule=table_mlp recipe=fast for rows."
        )


def _stop(cfg: DictConfig, folder: Path, code: int) -> None:
    offline = f" W&B runs so far: wandb sync {folder}/wandb/offline-run-*" if (folder / "wandb").is_dir() else ""
    _leave(
        f"Stopped. Finished stages stay in {cfg.store}; run the same command again (resume=auto) to go on from "
        f"where this one was.{offline}",
        code,
    )


def _leave(message: str, code: int) -> None:
    sys.stdout.flush()
    print(f"\n{message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def main() -> None:
    """Run the command line."""
    # Threads of GNU's OpenMP spin for a long while before they sleep: where other programs want the cores, too, small
    # networks then take far longer (benchmarks/waiting.py). Read when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if {"--help", "-h", "--cfg", "-c", "--info", "-i"} & {argument.split("=")[0] for argument in sys.argv[1:]}:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # kegnet_pl --help | head
    try:
        _run()
    except SystemExit as stop:
        if stop.code == 1 and not _entered and (sweep.begun is None or not any(sweep.begun.glob("*/.hydra"))):
            _explain_overrides(sys.argv[1:])
        raise
    finally:
        failed = sweep.begun is not None and _finish_sweep(sweep.begun)
    if failed:
        sys.exit(1)


def _finish_sweep(folder: Path) -> bool:
    """Put the results of all jobs together; return whether one of them failed."""
    from kegnet_pl.reporting.sweep import finish_sweep

    return finish_sweep(folder)


def _explain_overrides(arguments: list[str]) -> None:
    """Say what exists where an override names what does not."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    overrides = [argument for argument in arguments if re.match(r"[~+]{0,2}[\w.@/]+=", argument)]
    wrong = [override for override in overrides if not override.startswith(("+", "~", "hydra."))]
    experiment = [override for override in overrides if override.startswith("+experiment=") and "," not in override]
    GlobalHydra.instance().clear()
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        try:
            cfg = compose("config", overrides=experiment)
        except HydraException:
            cfg = compose("config")
        loader = GlobalHydra.instance().config_loader()
        groups = {str(key): loader.get_group_options(str(key)) for key in cfg if str(key) in loader.list_groups("")}
        plans = loader.get_group_options("compression/plans")
    for folder in _config_folders(arguments):
        for group, options in groups.items():
            options += [path.stem for path in (folder / group).glob("*.yaml")]
        plans += [path.stem for path in (folder / "compression" / "plans").glob("*.yaml")]
    teacher = next((override.partition("=")[2] for override in wrong if override.startswith("teacher=")), None)
    for override in wrong:
        key, _, value = override.partition("=")
        hint = _option_hint(key, value, groups[key], plans, teacher) if key in groups else None
        if hint is not None:
            print(f"\n{hint}", file=sys.stderr)  # noqa: T201
            continue
        if key == "hydra/launcher":
            if value in _LAUNCHERS:
                what = f"hydra/launcher={value} is a plugin of its own: pip install '.[{_LAUNCHERS[value]}]'"
                print(f"\n{what}", file=sys.stderr)  # noqa: T201
            continue
        missing = _first_missing(cfg, key)
        if missing is None:
            continue
        parent, known = missing
        wanted, *rest = key.removeprefix(f"{parent}.").split(".")
        close = [".".join([name, *rest]) for name in difflib.get_close_matches(wanted, known or [], n=1)]
        hint = f" Did you mean {parent + '.' if parent else ''}{close[0]}?" if close else ""
        if known is None and OmegaConf.select(cfg, parent) is None:
            what = f"`{parent}` is null, a whole by itself: {parent}=..., or +{key}=... to make one of parts"
        elif known is None:
            what = f"`{parent}` is a setting by itself: {parent}=..."
        else:
            what = f"`{parent}` has: " if parent else "The configuration has: "
            what += ", ".join(known)
        print(f"\n{key!r} does not exist.{hint}\n{what}", file=sys.stderr)  # noqa: T201


def _config_folders(arguments: list[str]) -> list[Path]:
    """Return the user's own folders of configuration."""
    named = [value for name, value in itertools.pairwise(arguments) if name in ("--config-dir", "-cd")]
    named += [argument.partition("=")[2] for argument in arguments if argument.startswith("--config-dir=")]
    return [Path(folder) for folder in named]


def _option_hint(group: str, value: str, options: list[str], plans: list[str], teacher: str | None) -> str | None:
    """Return what to choose in place of an option that cannot be; None if nothing is wrong with it."""
    if re.search(r"[,(\[{$]", value):
        return None  # several, or computed
    if value not in options:
        close = difflib.get_close_matches(value, options, n=1)
        hint = f" Did you mean {group}={close[0]}?" if close else ""
        return f"There is no {group}={value}.{hint}\nThere are: {', '.join(sorted(set(options)))}"
    if group == "compression" and re.fullmatch(r"option\d", value) and teacher and f"{teacher}_{value}" not in plans:
        return (
            f"compression={value} is a plan of the paper for its own networks; there is none for teacher={teacher}. "
            f"Choose compression=ratio (and compression.target=4), evbmf or fraction, or write a plan: a file "
            f"compression/plans/{teacher}_{value}.yaml in the folder of --config-dir."
        )
    return None


def _first_missing(cfg: Any, key: str) -> tuple[str, list[str] | None] | None:
    """Return where a dotted key leaves the configuration, and what is beneath (None: a value); None if it exists."""
    node: Any = cfg
    seen: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            known = [str(name) for name in node] if isinstance(node, DictConfig) else None
            return ".".join(seen), known
        seen.append(part)
        node = OmegaConf.to_container(node).get(part) if OmegaConf.is_missing(node, part) else node[part]  # type: ignore[union-attr]
    return None
