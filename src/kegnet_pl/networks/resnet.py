"""The ResNet14 network for 32x32 images, the teacher for Fashion-MNIST and SVHN."""

from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a parameter-free shortcut.

    If the width or the resolution changes, the shortcut takes every ``stride``-th pixel and fills the new channels, at
    the end, with zeros (option A of He et al., 2016).

    Shapes:
        Input ``(B, in_channels, H, W)``, output ``(B, channels, H / stride, W / stride)``.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(residual(x) + shortcut(x))``."""
        residual = functional.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
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
