"""Accuracy of a finished network on real test data."""

import hashlib

import torch
from torch import nn

from kegnet_pl.data import Split
from kegnet_pl.data.loading import chunk_size
from kegnet_pl.networks import FrozenModule, prefer_channels_last


def digest(split: Split) -> str:
    """Return a hash of samples and classes, so that a result says which data it was measured on."""
    found = hashlib.sha256(str(tuple(split.x.shape)).encode())
    for tensor in (split.x, split.y):
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


@torch.no_grad()
def measure_accuracy(
    network: nn.Module, split: Split, device: torch.device | str = "cpu", batch_size: int | None = None
) -> float:
    """Return the share of samples, in [0, 1], that a network puts into their class.

    In float32 and evaluation mode, whatever precision the network was trained in.

    Args:
        network: Returns logits ``(B, C)``; it is copied.
        split: Samples ``(N, *input_shape)`` and classes ``(N,)``.
        device: Where to compute.
        batch_size: Samples at a time; None for what suits the device.
    """
    device = torch.device(device)
    shape = split.x.shape[1:]
    frozen = prefer_channels_last(FrozenModule(network).to(device), shape)
    size = batch_size or chunk_size(shape, device)
    right = torch.zeros((), dtype=torch.int64, device=device)
    for x, y in zip(split.x.split(size), split.y.split(size), strict=True):
        right += (frozen(x.to(device)).argmax(dim=1) == y.to(device)).sum()
    return int(right) / len(split)
