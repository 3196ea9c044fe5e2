"""Generators: from a label and noise to a sample that the teacher knows."""

import itertools

import torch
from torch import Tensor, nn

from kegnet_pl.networks.precision import at_least_float32


def standardise_images(x: Tensor) -> Tensor:
    """Give every image and channel zero mean and unit (unbiased) standard deviation.

    A flat image stays flat, with finite gradients.

    Args:
        x: Images ``(B, C, H, W)``.

    Returns:
        Images of the same shape.
    """
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=1, keepdim=True)
    return (x - mean) * variance.clamp_min(1e-12).rsqrt()


class ImageGenerator(nn.Module):
    """Deconvolutional generator of 32x32 images.

    Two dense layers, four transposed convolutions and a ``tanh``; then every image and channel is standardised, as
    the teacher's own input was by its data set's statistics.

    Args:
        channels: Channels of the image.
        classes: Number of classes, at least 2.
        noise_dim: Dimensions of the noise.
        adjust: Whether to standardise the images (the paper does).

    Shapes:
        Input ``z (B, noise_dim)`` and one-hot ``y (B, classes)``, output ``(B, channels, 32, 32)``.

    Source:
        KegNet section 4.1 and its release (PAPER section 3).
    """

    def __init__(self, channels: int, classes: int, noise_dim: int = 10, adjust: bool = True) -> None:
        super().__init__()
        self.noise_dim = noise_dim
        self.classes = classes
        self.adjust = adjust
        self.fc = nn.Sequential(
            nn.Linear(noise_dim + classes, 256), nn.BatchNorm1d(256), nn.ReLU(),
            nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(),
        )  # fmt: skip
        self.conv = nn.Sequential(
            nn.ConvTranspose2d(128, 64, 4, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.ConvTranspose2d(64, 16, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 4, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.ConvTranspose2d(4, channels, 4, stride=2, padding=1, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return images ``(B, channels, 32, 32)`` for noise ``(B, noise_dim)`` and one-hot labels ``(B, classes)``."""
        hidden = self.fc(torch.cat([z, y], dim=1))
        x: Tensor = self.conv(hidden[:, :, None, None])
        return standardise_images(at_least_float32(x)) if self.adjust else x


class DenseGenerator(nn.Module):
    """Dense generator of feature rows: hidden blocks Linear - ELU - BatchNorm, a Linear, a non-affine batch norm.

    Args:
        features: Number of features of a row.
        classes: Number of classes, at least 2.
        noise_dim: Dimensions of the noise.
        blocks: Number of hidden blocks.
        width: Units of every hidden block.

    Shapes:
        Input ``z (B, noise_dim)`` and one-hot ``y (B, classes)``, output ``(B, features)``.

    Source:
        KegNet, experiments on unstructured data (PAPER section 3).
    """

    def __init__(self, features: int, classes: int, noise_dim: int = 10, blocks: int = 2, width: int = 120) -> None:
        super().__init__()
        self.noise_dim = noise_dim
        self.classes = classes
        sides = [noise_dim + classes] + [width] * blocks
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sides):
            layers += [nn.Linear(before, after), nn.ELU(), nn.BatchNorm1d(after)]
        self.layers = nn.Sequential(*layers, nn.Linear(sides[-1], features))
        self.adjust = nn.BatchNorm1d(features, affine=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return rows ``(B, features)`` for noise ``(B, noise_dim)`` and one-hot labels ``(B, classes)``."""
        x: Tensor = self.adjust(self.layers(torch.cat([z, y], dim=1)))
        return x
