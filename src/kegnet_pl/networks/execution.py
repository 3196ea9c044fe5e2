"""How networks are executed: training mode, memory layout, precision."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode for a while, so that looking at a network does not move its statistics."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def prefer_channels_last(network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Put the weights of a convolutional network into channels-last memory if it works on such tensors.

    Values and shapes stay the same; some networks refuse the layout (``x.view`` of what is not contiguous).

    Args:
        network: Any network; changed in place.
        input_shape: Shape of one sample; networks for samples that are not ``(C, H, W)`` are left alone.

    Returns:
        The same network.
    """
    if len(input_shape) != 3:
        return network
    device = next((value.device for value in network.parameters()), torch.device("cpu"))
    x = torch.zeros(2, *input_shape, device=device, requires_grad=True)
    try:
        trial = copy.deepcopy(network).to(memory_format=torch.channels_last).eval()
        trial(x.contiguous(memory_format=torch.channels_last)).sum().backward()
    except RuntimeError:
        return network
    return network.to(memory_format=torch.channels_last)


def at_least_float32(x: Tensor) -> Tensor:
    """Return float16 and bfloat16 tensors as float32, wider ones as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def chunk_size(sample: Sequence[int], device: torch.device) -> int:
    """Return how many samples of a shape to compute at a time where no batch size is given.

    Activations of a chunk should stay in a CPU's cache, and fill a GPU.
    """
    values = 2**20 if device.type == "cpu" else 2**25
    return min(max(values // math.prod(sample), 64), 8192)


def teacher_for(teacher: nn.Module, input_shape: Sequence[int], precision: str) -> nn.Module:
    """Return a copy of the teacher, in the layout of memory that its answers to generators are computed in.

    In float32 the layout stays: another one adds up in another order, and Adam makes steps of the last digit.
    """
    mine = copy.deepcopy(teacher)
    return mine if precision == "32-true" else prefer_channels_last(mine, input_shape)


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in evaluation mode, without gradients of its weights."""
    return copy.deepcopy(network).cpu().eval().requires_grad_(False)
