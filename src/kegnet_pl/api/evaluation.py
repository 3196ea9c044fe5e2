"""Accuracy of a finished network on real test data."""

import torch
from torch import Tensor, nn

from kegnet_pl.data import Split
from kegnet_pl.networks import FrozenModule, OutputKey, as_classifier
from kegnet_pl.networks.execution import chunk_size
from kegnet_pl.runtime.devices import Device, find_device
from kegnet_pl.settings import Outputs


@torch.no_grad()
def count_answers(
    network: nn.Module,
    split: Split,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    outputs: Outputs = "auto",
    output_key: OutputKey = None,
) -> Tensor:
    """Return the confusion matrix of a network.

    The network is in evaluation mode and in the precision of its weights, usually float32.

    Args:
        network: A classifier; it is copied.
        split: Samples ``(N, *input_shape)`` and classes ``(N,)``.
        device: Device of the computation.
        batch_size: Samples per forward pass; None to fit the device.
        outputs: Type of the output of the network, see :func:`train_generators`.
        output_key: Key, attribute or position of the output tensor, if it returns several; None finds it.

    Returns:
        Counts ``(C, C)``, int64, on the CPU: rows are true classes, columns are predicted classes.

    Raises:
        ValueError: If the samples have more classes than the network, or logits are not finite.
    """
    logits = find_logits(network, split.x, device, batch_size, outputs, output_key)
    classes = logits.shape[1]
    if int(split.y.min()) < 0:
        raise ValueError(f"Expected classes from 0, but got {int(split.y.min())}.")
    if int(split.y.max()) >= classes:
        raise ValueError(f"Expected a network of {int(split.y.max()) + 1} classes or more, but it has {classes}.")
    # The dtype of the labels may be too small for the product.
    cells = split.y.cpu().long() * classes + logits.argmax(dim=1)
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


@torch.no_grad()
def find_logits(
    network: nn.Module,
    x: Tensor,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    outputs: Outputs = "auto",
    output_key: OutputKey = None,
    name: str = "network",
) -> Tensor:
    """Return the logits ``(N, C)`` of a network for samples ``(N, *input_shape)``, on the CPU.

    See :func:`count_answers` for the other arguments. Error messages contain ``name``, the name of the network.

    Raises:
        ValueError: If there are no samples, they are not floating-point numbers, or logits are not finite.
    """
    device = torch.device(device)
    shape = x.shape[1:]
    dtype = next((value.dtype for value in network.parameters() if value.is_floating_point()), x.dtype)
    size = batch_size or chunk_size(shape, device)
    if not len(x):
        raise ValueError("Expected at least one sample, but got none.")
    if not x.is_floating_point():
        raise ValueError(f"Expected floating-point samples, normalised for the network, but got {x.dtype}.")
    frozen = FrozenModule(as_classifier(network, shape, outputs, output_key, name)).to(device)
    logits = torch.cat([frozen(part.to(device, dtype)).cpu() for part in x.split(size)])
    if not bool(logits.isfinite().all()):
        raise ValueError("Expected finite logits, but got NaN or infinite values. Check the weights and the samples.")
    return logits


def measure_accuracy(
    network: nn.Module,
    split: Split,
    device: Device = "auto",
    batch_size: int | None = None,
    outputs: Outputs = "auto",
    output_key: OutputKey = None,
) -> float:
    """Return the accuracy of a network, in [0, 1]; see :func:`count_answers` for the arguments."""
    answers = count_answers(network, split, find_device(device), batch_size, outputs, output_key)
    return int(answers.trace()) / len(split)
