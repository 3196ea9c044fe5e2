"""Convolutions run faster on channels-last tensors; not every network can."""

import copy
from collections.abc import Sequence

import torch
from torch import nn


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
