"""Samples as pixels: small pictures in rows, for sheets, walks and loggers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

_GAP = 2
_FEATURE_RANGE = 2.5
"""Features are standardised: this many deviations are as red or as blue as it gets."""


def picture(x: Tensor) -> np.ndarray:
    """Return one sample as ``(H, W, 3)`` in [0, 1].

    An image ``(C, H, W)`` is stretched to its own range; a row of features ``(F,)`` becomes a strip ``(F, 1, 3)``, blue
    below the mean and red above.
    """
    values: np.ndarray = x.detach().float().cpu().numpy()
    if values.ndim == 1:
        share = (values[:, None] / _FEATURE_RANGE + 1) / 2
        strip: np.ndarray = colormaps["coolwarm"](share)[..., :3]
        return strip
    low, high = values.min(), values.max()
    scaled = (values - low) / max(high - low, 1e-6)
    image: np.ndarray = scaled.transpose(1, 2, 0) if len(scaled) == 3 else scaled[0][..., None].repeat(3, axis=2)
    return image


def grid(rows: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """Lay samples out in rows, with transparent gaps.

    Args:
        rows: Samples of one shape, the same number in every row.

    Returns:
        ``(H, W, 4)``, uint8.
    """
    cells = [[picture(x) for x in row] for row in rows]
    height, width = cells[0][0].shape[:2]
    down, across = height + _GAP, width + (_GAP if width > 1 else 0)  # strips of features stand side by side
    out = np.zeros((len(cells) * down - _GAP, len(cells[0]) * across - (across - width), 4))
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            out[i * down : i * down + height, j * across : j * across + width] = np.dstack(
                [cell, np.ones(cell.shape[:2])]
            )
    pixels: np.ndarray = (out * 255).round().astype(np.uint8)
    return pixels


def write_grid(rows: Sequence[Sequence[Tensor]], path: Path) -> None:
    """Write :func:`grid` as a PNG file, a pixel of a sample a pixel of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = grid(rows)
    grey = bool((pixels[..., :1] == pixels[..., 1:3]).all())
    Image.fromarray(np.ascontiguousarray(pixels[..., 2:] if grey else pixels)).save(path, optimize=True)


def sheet_rows(samples: Sequence[Tensor], count: int) -> list[list[Tensor]]:
    """Arrange the first samples of every class: images with classes as columns, tables with classes as rows.

    Args:
        samples: For every class, ``(N, C, H, W)`` or ``(N, F)``.
        count: Samples of a class to show.
    """
    if samples[0].ndim == 2:
        return [list(mine[:count]) for mine in samples]
    return [[mine[row] for mine in samples] for row in range(count)]
