"""scikit-learn's handwritten digits, which need no download."""

import torch
from sklearn.datasets import load_digits
from torchvision.transforms.v2 import functional as vision

from kegnet_pl.data.base import RealDataModule, Split, hold_out, stratified_folds


class DigitsDataModule(RealDataModule):
    """1,797 grey digits of 8x8 pixels, resized to 32x32: 60 % for training, 10 % for validation, 30 % for test.

    They are normalised by mean 0.3053 and standard deviation 0.3761 of their grey values in [0, 1].

    The arguments are those of :class:`RealDataModule`.

    Source:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, in scikit-learn.
    """

    name, input_shape, classes = "digits", (1, 32, 32), 10

    def read(self) -> dict[str, Split]:
        """Read, resize, normalise and split the digits; the split does not depend on the seed."""
        bunch = load_digits()
        images = torch.from_numpy(bunch.images).float()[:, None] / 16
        images = vision.resize(images, [32, 32], interpolation=vision.InterpolationMode.BILINEAR, antialias=True)
        full = Split((images - 0.3053) / 0.3761, torch.from_numpy(bunch.target).long())
        rest, test = stratified_folds(full.y, (0.7, 0.3), seed=0)
        train, val = hold_out(full[rest], len(full) // 10, seed=0)
        return {"train": train, "val": val, "test": full[test]}
