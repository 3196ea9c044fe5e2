"""scikit-learn's handwritten digits, which need no download."""

from collections.abc import Sequence
from typing import Any

import torch
from torchvision.transforms.v2 import functional as vision

from kegnet_pl.data.base import RealDataModule, Split, hold_out, stratified_folds


class DigitsDataModule(RealDataModule):
    """1,797 grey digits of 8x8 pixels, resized to 32x32: 60 % for training, 10 % for validation, 30 % for test.

    Args:
        mean: Mean by which the grey values in [0, 1] are normalised.
        std: Standard deviation by which they are normalised.
        options: See :class:`RealDataModule`.

    Source:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, in scikit-learn.
    """

    name, input_shape, classes = "digits", (1, 32, 32), 10

    def __init__(
        self,
        name: str | None = None,
        input_shape: Sequence[int] | None = None,
        classes: int | None = None,
        *,
        mean: Sequence[float] = (0.3053,),
        std: Sequence[float] = (0.3761,),
        **options: Any,
    ) -> None:
        super().__init__(name, input_shape, classes, **options)
        (self.mean,), (self.std,) = mean, std

    def read(self) -> dict[str, Split]:
        """Read, resize, normalise and split the digits; the split does not depend on the seed."""
        from sklearn.datasets import load_digits  # slow to import, and only these digits need it

        bunch = load_digits()
        images = torch.from_numpy(bunch.images).float()[:, None] / 16
        images = vision.resize(images, [32, 32], interpolation=vision.InterpolationMode.BILINEAR, antialias=True)
        full = Split((images - self.mean) / self.std, torch.from_numpy(bunch.target).long())
        rest, test = stratified_folds(full.y, (0.7, 0.3), seed=0)
        train, val = hold_out(full[rest], len(full) // 10, seed=0)
        return {"train": train, "val": val, "test": full[test]}
