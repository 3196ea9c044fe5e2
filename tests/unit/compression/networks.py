"""Small networks with all that a compression plan may meet."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions around a batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.norm(self.conv1(x)).relu())


class Small(nn.Module):
    """Input (3, 8, 8), 5 classes; a grouped and a transposed convolution among the others."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(12), Block(12))
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.fc1 = nn.Linear(6, 20)
        self.fc2 = nn.Linear(20, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.blocks(self.stem(x)))
        return self.fc2(self.fc1(self.up(x).relu().mean(dim=(2, 3))).relu())


LAYERS = [
    "stem",
    "blocks.0.conv1",
    "blocks.0.conv2",
    "blocks.1.conv1",
    "blocks.1.conv2",
    "depthwise",
    "up",
    "fc1",
    "fc2",
]
"""Convolutions and dense layers of :class:`Small`, in order."""


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    both = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in both.items()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Return True if two sets of tensors are bit-equal."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def storages(module: nn.Module) -> set[int]:
    """Where the tensors of a module lie in memory."""
    both = [*module.parameters(), *module.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in both}


def count(module: nn.Module) -> int:
    """Number of weights and biases."""
    return sum(parameter.numel() for parameter in module.parameters())
