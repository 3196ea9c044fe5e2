"""Timing of networks."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_NOISY = 0.5
"""Interquartile range, divided by the median, above which times are not reliable."""


def time_in_turns(
    calls: Sequence[tuple[nn.Module, Tensor]], *, shortest: float, rounds: tuple[int, int], seconds: float = 0.0
) -> list[list[float]]:
    """Return the seconds of a call in every round, for each network and its input; the networks take turns.

    Args:
        calls: Networks with their inputs, which are copied: a network may work in place.
        shortest: Minimum seconds of one measurement; a faster network is called several times.
        rounds: Minimum and maximum number of rounds.
        seconds: Time limit. No round begins after it if the minimum number of rounds is done.
    """
    numbers = []
    for network, x in calls:
        _seconds_per_call(network, x)
        numbers.append(max(math.ceil(shortest / _seconds_per_call(network, x)), 1))
    times: list[list[float]] = [[] for _ in calls]
    spent, (least, most) = 0.0, rounds
    for done in range(most):
        if done >= least and spent >= seconds:
            break
        for (network, x), number, found in zip(calls, numbers, times, strict=True):
            found.append(_seconds_per_call(network, x, number))
            spent += found[-1] * number
    return times


def is_noisy(milliseconds: float, spread: float) -> bool:
    """Return True if times with this median and interquartile range are not reliable."""
    return spread > _NOISY * milliseconds


def explain_noise(batch_sizes: Sequence[int]) -> str:
    """Return a sentence on batch sizes whose times are not reliable."""
    return (
        f"Speed-ups at batch size {' and '.join(map(str, batch_sizes))} are not reliable: the measured times vary by "
        f"more than half of their median, since the machine does other work."
    )


def _seconds_per_call(network: nn.Module, x: Tensor, number: int = 1) -> float:
    """Return the mean seconds of some calls of a network, on its device."""
    x = x.clone()
    _wait(x.device)
    start = time.perf_counter()
    for _ in range(number):
        network(x)
    _wait(x.device)
    return (time.perf_counter() - start) / number


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
