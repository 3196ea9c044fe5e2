"""Generator networks of images, signals, volumes and feature rows, from noise ``z`` and one-hot labels ``y``."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.networks.execution import at_least_float32

OutputNorm = Literal["image", "batch", "none"]
"""Standardisation of generated images: per image, over the batch, or none."""

Upsampling = Literal["transposed", "nearest"]
"""Upsampling of feature maps: transposed convolutions, or repeated pixels before a convolution."""


def standardise_images(x: Tensor) -> Tensor:
    """Give every image and channel of ``(B, C, H, W)`` zero mean and unit (unbiased) standard deviation.

    A flat image stays flat, with finite gradients.
    """
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=1, keepdim=True)
    return (x - mean) * variance.clamp_min(1e-12).rsqrt()


class ImageGenerator(nn.Module):
    """Convolutional generator of images, of 32x32 pixels in the paper.

    It has two dense layers, four convolutions and a ``tanh``. The images are then standardised, since the teacher's
    training data was. A map of n by m positions with 128 channels becomes an image of 16 (n + 1) by 16 (m + 1) pixels;
    the map is 1 by 1 for 32x32. With ``upsampling="nearest"`` the image has 8 n by 8 m pixels, and the map is 4 by 4
    for 32x32. For other sizes the map is the smallest that is large enough, and the image is cropped at its center.

    Args:
        channels: Channels of the image.
        classes: Number of classes, at least 2.
        noise_dim: Dimensions of the noise.
        size: Height and width of the images; or the shape of an image, which ends with them.
        output_norm: ``"image"`` gives every image and channel zero mean and unit deviation, as in the paper.
            ``"batch"`` standardises every channel over all images, by a batch norm without parameters, like a data
            set: images may then differ in brightness and contrast. ``"none"`` keeps the output of the ``tanh``.
        upsampling: ``"transposed"`` uses transposed convolutions, as in the paper. Their kernels overlap unevenly,
            which favours checkerboard patterns. ``"nearest"`` doubles a map three times by repeating its pixels, each
            time before a 3x3 convolution, which favours smooth images.

    Shapes:
        Input ``z (B, noise_dim)`` and one-hot ``y (B, classes)``, output ``(B, channels, *size)``.

    Raises:
        ValueError: If ``output_norm`` or ``upsampling`` is unknown, or ``size`` is not a height and width.

    Source:
        KegNet section 4.1 and its release (PAPER section 3). ``"batch"`` and ``"nearest"`` are from the generator of
        Chen et al., "Data-Free Learning of Student Networks", 2019. Odena et al., "Deconvolution and Checkerboard
        Artifacts", 2016, give the reason for ``"nearest"``.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        noise_dim: int = 10,
        size: Sequence[int] = (32, 32),
        output_norm: OutputNorm = "image",
        upsampling: Upsampling = "transposed",
    ) -> None:
        super().__init__()
        if len(size) not in (2, 3) or min(size) < 1:
            raise ValueError(f"Expected `size` to be height and width of an image, but got {size!r}.")
        if output_norm not in get_args(OutputNorm):
            raise ValueError(f"Expected `output_norm` to be one of {get_args(OutputNorm)}, but got {output_norm!r}.")
        if upsampling not in get_args(Upsampling):
            raise ValueError(f"Expected `upsampling` to be one of {get_args(Upsampling)}, but got {upsampling!r}.")
        self.noise_dim = noise_dim
        self.classes = classes
        self.output_norm = output_norm
        self.size = tuple(size[-2:])
        if upsampling == "nearest":
            self.map = [-(-side // 8) for side in self.size]
        else:
            self.map = [max(-(-side // 16) - 1, 1) for side in self.size]
        positions = self.map[0] * self.map[1]
        self.fc = nn.Sequential(
            nn.Linear(noise_dim + classes, 256), nn.BatchNorm1d(256), nn.ReLU(),
            nn.Linear(256, 128 * positions), nn.BatchNorm1d(128 * positions), nn.ReLU(),
        )  # fmt: skip
        self.conv = (_nearest_layers if upsampling == "nearest" else _transposed_layers)(channels)
        self.norm = nn.BatchNorm2d(channels, affine=False) if output_norm == "batch" else None

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return images ``(B, channels, *size)`` for noise ``(B, noise_dim)`` and one-hot labels ``(B, classes)``."""
        hidden = self.fc(torch.cat([z, y], dim=1))
        x: Tensor = self.conv(hidden.unflatten(1, (-1, *self.map)))
        x = _crop_center(x, self.size)
        if self.norm is not None:
            return self.norm(at_least_float32(x))  # type: ignore[no-any-return]
        return standardise_images(at_least_float32(x)) if self.output_norm == "image" else x


def _transposed_layers(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(128, 64, 4, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.ConvTranspose2d(64, 16, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 4, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, channels, 4, stride=2, padding=1, bias=False), nn.Tanh(),
    )  # fmt: skip


def _nearest_layers(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([128, 64, 32, 16]):
        layers += [RepeatingConv2d(before, after), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, channels, 3, padding=1), nn.Tanh())


class RepeatingConv2d(nn.Conv2d):
    """Nearest-neighbour upsampling by two and a 3x3 convolution without bias, as one operation.

    The 3x3 convolution of repeated pixels equals a 4x4 transposed convolution of the original map, with sums of the
    weights. It has less than half the products, and does not store the upsampled map.

    Shapes:
        Input ``(B, in_channels, H, W)``, output ``(B, out_channels, 2 H, 2 W)``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the upsampled map."""
        weight = self.weight.flip(2, 3).transpose(0, 1)
        sums = [functional.pad(weight, (left, 1 - left, top, 1 - top)) for left in (0, 1) for top in (0, 1)]
        return functional.conv_transpose2d(x, torch.stack(sums).sum(dim=0), stride=2, padding=1)


def _crop_center(x: Tensor, size: Sequence[int]) -> Tensor:
    """Crop images to a height and width around their center."""
    for dim, side in zip((-2, -1), size, strict=True):
        x = x.narrow(dim, (x.shape[dim] - side) // 2, side)
    return x


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
        self.output_norm = nn.BatchNorm1d(features, affine=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return rows ``(B, features)`` for noise ``(B, noise_dim)`` and one-hot labels ``(B, classes)``."""
        x: Tensor = self.output_norm(self.layers(torch.cat([z, y], dim=1)))
        return x


class ConvGenerator(nn.Module):
    """Convolutional generator of signals, images or volumes of any size, for networks other than the paper's.

    Two dense layers make a map of at most 64 positions with 128 channels. Nearest-neighbour upsampling doubles it, each
    time before a convolution of width 3, until it is as large as a sample. It is cropped at its center. A batch norm
    without parameters standardises every channel over all samples.

    Args:
        input_shape: Shape of one sample: ``(C, length)``, ``(C, H, W)`` or ``(C, D, H, W)``.
        classes: Number of classes, at least 2.
        noise_dim: Dimensions of the noise.

    Shapes:
        Input ``z (B, noise_dim)`` and one-hot ``y (B, classes)``, output ``(B, *input_shape)``.

    Raises:
        ValueError: If the shape has another number of dimensions.

    Source:
        The generator of Chen et al., "Data-Free Learning of Student Networks", 2019, in any number of dimensions.
    """

    def __init__(self, input_shape: Sequence[int], classes: int, noise_dim: int = 10) -> None:
        super().__init__()
        channels, *sizes = input_shape
        if len(sizes) not in (1, 2, 3):
            raise ValueError(
                f"Expected `input_shape` of a signal (C, length), an image (C, H, W) or a volume (C, D, H, W), but got "
                f"{tuple(input_shape)}. For rows of features use DenseGenerator (generator=dense)."
            )
        conv, norm = _LAYERS[len(sizes)]
        self.noise_dim, self.classes, self.size = noise_dim, classes, tuple(sizes)
        doublings = 3
        while math.prod(-(-size // 2**doublings) for size in sizes) > _MAP:
            doublings += 1
        self.map = [-(-size // 2**doublings) for size in sizes]
        positions = math.prod(self.map)
        self.fc = nn.Sequential(
            nn.Linear(noise_dim + classes, 256), nn.BatchNorm1d(256), nn.ReLU(),
            nn.Linear(256, 128 * positions), nn.BatchNorm1d(128 * positions), nn.ReLU(),
        )  # fmt: skip
        widths = [max(128 // 2**step, 16) for step in range(doublings + 1)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.Upsample(scale_factor=2),
                conv(before, after, 3, padding=1, bias=False),
                norm(after),
                nn.ReLU(),
            ]
        self.conv = nn.Sequential(*layers, conv(widths[-1], channels, 3, padding=1), nn.Tanh())
        self.norm = norm(channels, affine=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return samples ``(B, *input_shape)`` for noise ``(B, noise_dim)`` and one-hot labels ``(B, classes)``."""
        hidden = self.fc(torch.cat([z, y], dim=1))
        x: Tensor = self.conv(hidden.unflatten(1, (-1, *self.map)))
        for axis, size in enumerate(self.size, 2):
            x = x.narrow(axis, (x.shape[axis] - size) // 2, size)
        return self.norm(at_least_float32(x))  # type: ignore[no-any-return]


_MAP = 64
"""Most positions of the first map of :class:`ConvGenerator`."""

_LAYERS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.BatchNorm2d),
    3: (nn.Conv3d, nn.BatchNorm3d),
}
