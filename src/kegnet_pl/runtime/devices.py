"""The device that computes."""

import torch

Device = torch.device | str
"""A device of torch, or ``"auto"``: a GPU if there is one."""


def find_device(device: Device) -> torch.device:
    """Return a device of torch; ``"auto"``: a GPU if there is one.

    Raises:
        ValueError: If torch has no such device.
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
