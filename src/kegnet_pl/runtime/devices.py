"""Choice of the device."""

import torch

Device = torch.device | str
"""A torch device, or ``"auto"`` for a GPU if there is one."""


def find_device(device: Device) -> torch.device:
    """Return a torch device; ``"auto"`` is a GPU if there is one, otherwise the CPU.

    Raises:
        ValueError: If torch has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"Expected `device` to be 'auto', 'cpu', 'cuda' or 'cuda:1', but got {device!r}.") from error
    if result.type == "meta" or (result.type == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"Expected `device` to compute on this machine, but got {device!r}. Use device='cpu'.")
    if result.type == "cuda" and (result.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"Expected `device` to exist, but got {device!r}, and torch sees {torch.cuda.device_count()} GPUs. "
            f"Use device='auto' or 'cpu'."
        )
    return result
