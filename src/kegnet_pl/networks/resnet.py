"""Residual networks for 32x32 images: ResNet14 of Fashion-MNIST and SVHN, and ResNets for CIFAR-10 of depth 6n + 2."""

from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a parameter-free shortcut.

    If the width or the resolution changes, the shortcut takes every ``stride``-th pixel and fills the new channels with
    zeros (option A of He et al., 2016).

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output, at least ``in_channels``.
        stride: Stride of the first convolution and of the shortcut.
        bias: True if the convolutions have a bias.
        centered: True if half of the new channels come before those of the input; by default, all come after them.

    Shapes:
        Input ``(B, in_channels, H, W)``, output ``(B, channels, H / stride, W / stride)``.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, bias: bool = True, centered: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels
        self.new_before = self.new_channels // 2 if centered else 0

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(residual(x) + shortcut(x))``."""
        residual = functional.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            after = self.new_channels - self.new_before
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.new_before, after))
        return functional.relu(residual + shortcut)


class ResNet14(nn.Module):
    """Three stages of two basic blocks with 16, 32 and 64 filters: 172,970 parameters for 3 channels, 10 classes.

    Args:
        channels: Channels of the input image.
        classes: Number of classes, at least 2.

    Shapes:
        Input ``(B, channels, 32, 32)``, output logits ``(B, classes)``.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2; convolutions with bias as in the
        KegNet release.
    """

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.layers1 = nn.Sequential(BasicBlock(16, 16, stride=1), BasicBlock(16, 16, stride=1))
        self.layers2 = nn.Sequential(BasicBlock(16, 32, stride=2), BasicBlock(32, 32, stride=1))
        self.layers3 = nn.Sequential(BasicBlock(32, 64, stride=2), BasicBlock(64, 64, stride=1))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` of images ``(B, channels, 32, 32)``."""
        x = functional.relu(self.norm1(self.conv1(x)))
        x = self.layers3(self.layers2(self.layers1(x)))
        x = functional.avg_pool2d(x, 8).flatten(1)
        logits: Tensor = self.linear(x)
        return logits


class CifarResNet(nn.Module):
    """Three stages of ``(depth - 2) / 6`` basic blocks with 16, 32 and 64 filters.

    For 3 channels and 10 classes it has 269,722 parameters at depth 20 and 853,018 at depth 56. Layers have the names
    of the published weights of pytorch_resnet_cifar10.

    Args:
        depth: Number of convolutions and linear layers, 6n + 2: 20, 32, 44, 56, 110, ...
        channels: Channels of the input image.
        classes: Number of classes, at least 2.

    Shapes:
        Input ``(B, channels, H, W)``, usually 32x32, output logits ``(B, classes)``.

    Raises:
        ValueError: If there is no network of this depth.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2; new channels of a shortcut lie on
        both sides, as in pytorch_resnet_cifar10.
    """

    def __init__(self, depth: int = 20, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"Expected `depth` to be 6n + 2 with n of at least 1 (20, 32, 44, 56), but got {depth}.")
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` of images ``(B, channels, H, W)``."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Return blocks of a :class:`CifarResNet`; the first changes the width and the resolution."""
    shapes = [(in_channels, stride), *[(channels, 1)] * (blocks - 1)]
    return nn.Sequential(*(BasicBlock(width, channels, step, bias=False, centered=True) for width, step in shapes))
