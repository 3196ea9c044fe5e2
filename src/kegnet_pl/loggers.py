"""Loggers of a stage, from the configuration's ``logger`` group."""

import os
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from hydra.utils import instantiate
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

_open_runs: list[Any] = []
"""Loggers of W&B runs that :func:`finish_loggers` will close."""


def has_wandb_key() -> bool:
    """Whether Weights & Biases could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def make_loggers(
    specifications: Mapping[str, Mapping[str, Any]],
    *,
    stage: str,
    name: str,
    folder: Path,
    run_folder: Path,
    group: str,
    hyperparameters: Mapping[str, Any],
) -> list[Logger]:
    """Build the loggers of one fit.

    Args:
        specifications: Logger name -> ``_target_`` and arguments.
        stage: Stage, the W&B job type.
        name: Tells the fits of a stage apart.
        folder: The stage's folder: csv and TensorBoard files go there.
        run_folder: The run's folder: W&B files go there.
        group: W&B group, the same for all stages of a pipeline.
        hyperparameters: Resolved configuration to log.

    Returns:
        One logger for each specification.
    """
    loggers: list[Logger] = []
    for specification in specifications.values():
        target = specification["_target_"].rsplit(".", 1)[-1]
        if target == WandbLogger.__name__:
            # Without a key the client would ask for one; with WANDB_MODE the user has decided.
            offline = not has_wandb_key() and "WANDB_MODE" not in os.environ
            options: dict[str, Any] = {
                "save_dir": str(run_folder), "name": f"{stage}/{name}", "group": group, "job_type": stage,
                "reinit": "create_new",  # generators that are trained together have runs at the same time
            }  # fmt: skip
            options |= {"offline": True} if offline and "offline" not in specification else {}
        elif target in (CSVLogger.__name__, TensorBoardLogger.__name__):
            options = {"save_dir": str(folder), "name": f"logs/{name}"}
        else:
            options = {}
        logger = instantiate(specification, **options, _convert_="all")
        if target != CSVLogger.__name__:  # the manifest beside the csv file has them already
            logger.log_hyperparams(dict(hyperparameters))
        loggers.append(logger)
        if isinstance(logger, WandbLogger):
            _open_runs.append(logger)
    return loggers


def finish_loggers() -> None:
    """Close the W&B runs of a stage: they end with it, not with the program."""
    while _open_runs:
        _open_runs.pop().experiment.finish()
