"""Where to compute, as a user says it."""

import os
from typing import Any

import torch

from kegnet_pl.runtime.errors import ConfigError

Device = torch.device | str
"""A device of torch, or ``"auto"``: a GPU if there is one."""


def find_device(device: Device) -> torch.device:
    """Return the device that is meant; ``"auto"``: a GPU if there is one.

    Raises:
        ValueError: If torch knows no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"Expected `device` to be 'auto', 'cpu', 'cuda' or 'cuda:1', but got {device!r}.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"Expected `device` to be there, but got {device!r} and torch sees {torch.cuda.device_count()} GPUs. "
            f"Use device='auto' or 'cpu'."
        )
    return found


def device_of(trainer_config: dict[str, Any], gpu: int | None = None) -> torch.device:
    """Return where drawing and evaluation compute: the GPU of this process if trainers use one, else the CPU.

    Args:
        trainer_config: The configuration's ``trainer``.
        gpu: Number of the GPU that this process has to itself; None for the one that Lightning takes.

    Raises:
        ConfigError: If trainers shall use a GPU and there is none.
    """
    if trainer_config.get("accelerator") in ("gpu", "cuda"):
        if not torch.cuda.is_available():
            raise ConfigError("Expected a GPU for trainer.accelerator=gpu, but torch finds none here. Use trainer=cpu.")
        # Lightning tells the processes it starts which GPU is theirs, before they choose it.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if gpu is None else gpu)
    return torch.device("cpu")
