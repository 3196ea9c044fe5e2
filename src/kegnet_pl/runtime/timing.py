"""Timing of networks."""

import time

import torch
from torch import Tensor, nn


def seconds_per_call(network: nn.Module, x: Tensor, number: int = 1) -> float:
    """Return the mean seconds of some calls of a network, on its device."""
    _wait(x.device)
    start = time.perf_counter()
    for _ in range(number):
        network(x)
    _wait(x.device)
    return (time.perf_counter() - start) / number


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
