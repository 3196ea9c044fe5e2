"""Draws samples of the procedural sources of images: python examples/procedural_sources.py FILE.png.

The left half has the pixel range of MNIST, the right half that of SVHN.
"""

import sys

import torch
from PIL import Image
from torch.nn import functional

from kegnet_pl.sources import Blobs, Leaves, Procedural, Strokes, Waves

RANGES = {(1, 32, 32): (0.1307, 0.3081), (3, 32, 32): (0.4517, 0.1987)}
"""Shape -> mean and standard deviation of the pixels."""


def main(path: str, columns: int = 12) -> None:
    """Write the picture."""
    rows = []
    for kind in (Leaves, Strokes, Blobs, Waves, Procedural):
        halves = []
        for shape, (mean, std) in RANGES.items():
            x = kind(shape, mean=mean, std=std).sample(columns, seed=0) * std + mean
            x = functional.pad(x.expand(-1, 3, -1, -1), (1, 1, 1, 1), value=1.0)
            halves.append(torch.cat(list(x), dim=2))
        rows.append(torch.cat(halves, dim=2))
    picture = torch.cat(rows, dim=1)
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).resize((2 * pixels.shape[1], 2 * pixels.shape[0]), Image.Resampling.NEAREST).save(
        path
    )


if __name__ == "__main__":
    main(sys.argv[1])
