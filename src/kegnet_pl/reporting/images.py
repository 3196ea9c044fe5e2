"""Pictures of samples: grids for sheets, walks and loggers, and the sample sheet of a run.

matplotlib is imported where it draws: the library imports this module.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

_GAP = 2
_MOST_PIXELS = 500_000
_FEATURE_RANGE = 2.5
"""Features are standardised: values of this many standard deviations get the strongest red or blue."""


_SHEET_PIXELS = 88
"""Pixels of the side of a sample in a sheet, about."""

_BAND = 16
"""Height of the picture of a signal, in pixels."""


def picture(x: Tensor) -> np.ndarray:
    """Return one sample as a picture ``(H, W, 3)`` in [0, 1].

    An image ``(C, H, W)`` is stretched to its own range; a row of features ``(F,)`` becomes a strip ``(F, 1, 3)``, blue
    below the mean and red above. A signal ``(C, length)`` becomes a band for each channel, a volume ``(C, D, H, W)``
    becomes its middle slice.
    """
    values: np.ndarray = x.detach().float().cpu().numpy()
    if values.ndim == 1:
        from matplotlib import colormaps

        share = (values[:, None] / _FEATURE_RANGE + 1) / 2
        return np.asarray(colormaps["coolwarm"](share)[..., :3])
    if values.ndim == 2:
        values = values.repeat(max(_BAND // len(values), 1), axis=0)[None]
    elif values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    low, high = values.min(), values.max()
    return to_array((values - low) / max(high - low, 1e-6))


def to_array(pixels: Tensor | np.ndarray) -> np.ndarray:
    """Return an image ``(C, H, W)`` in [0, 1] as ``(H, W, 3)``: in colour, or the first channel in grey."""
    values = np.asarray(pixels)
    return values.transpose(1, 2, 0) if len(values) == 3 else values[0][..., None].repeat(3, axis=2)


def grid(rows: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """Lay samples out in rows, with transparent gaps.

    A grid of more than 500,000 pixels has only every second, third, ... pixel of each sample.

    Args:
        rows: Samples of one shape, the same number in every row.

    Returns:
        ``(H, W, 4)``, uint8.
    """
    height, width = picture(rows[0][0]).shape[:2]
    step = math.ceil(math.sqrt(max(height * width * len(rows) * len(rows[0]) / _MOST_PIXELS, 1)))
    height, width = -(-height // step), -(-width // step)
    down, across = height + _GAP, width + (_GAP if width > 1 else 0)  # no gap between strips of features
    out = np.zeros((len(rows) * down - _GAP, len(rows[0]) * across - (across - width), 4), dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, x in enumerate(row):
            top, left = i * down, j * across
            cell = np.dstack([picture(x)[::step, ::step], np.ones((height, width))])
            out[top : top + height, left : left + width] = (cell * 255).round()
    return out


def write_grid(rows: Sequence[Sequence[Tensor]], path: Path) -> None:
    """Write :func:`grid` as a PNG file; each pixel of a sample is one pixel, unless the grid is too large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = grid(rows)
    grey = bool((pixels[..., :1] == pixels[..., 1:3]).all())
    Image.fromarray(np.ascontiguousarray(pixels[..., 2:] if grey else pixels)).save(path, optimize=True)


def sheet_rows(samples: Sequence[Tensor], count: int) -> list[list[Tensor]]:
    """Arrange the first samples of every class: images with classes as columns, tables with classes as rows.

    Args:
        samples: For every class, ``(N, C, H, W)`` or ``(N, F)``.
        count: Samples of each class.
    """
    if samples[0].ndim == 2:
        return [list(of_class[:count]) for of_class in samples]
    return [[of_class[row] for of_class in samples] for row in range(count)]


def draw_sample_sheet(
    samples: Sequence[Tensor],
    path: str | Path,
    title: str,
    confidence: Sequence[float],
    labels: Sequence[int] | None = None,
) -> None:
    """Draw samples with classes as columns and write a PNG.

    Images are stretched to their own range; rows of features are strips, one color for each feature.

    Args:
        samples: For every class, samples ``(N, C, H, W)`` or ``(N, F)``.
        path: The file.
        title: Text above the sheet.
        confidence: For every class, the teacher's mean probability of that class for these samples, in [0, 1].
        labels: The classes; None for those from 0.
    """
    from matplotlib.figure import Figure

    tabular = samples[0].ndim == 2
    names = range(len(samples)) if labels is None else labels
    pictures = [[_thin(picture(one)) for one in of_class] for of_class in samples]
    if tabular:
        pictures = [[np.hstack(strips)] for strips in pictures]
    columns, rows = len(pictures), len(pictures[0])
    height = (2.8 if tabular else 0.8 * rows) + 0.95
    figure = Figure(figsize=(0.8 * columns + 0.6, height), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    for column, of_class in enumerate(pictures):
        axes[0, column].set_title(f"{names[column]}\n{100 * confidence[column]:.0f} %", fontsize=9)
        for axis, image in zip(axes[:, column], of_class, strict=True):
            axis.imshow(image, aspect="auto" if tabular else "equal", interpolation="nearest")
            axis.set(xticks=[], yticks=[], frame_on=False)
    if tabular:
        axes[0, 0].set_ylabel("features", fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", y=0.99, va="top")
    figure.subplots_adjust(
        left=0.04 if tabular else 0.01, right=0.99, bottom=0.01, top=1 - 0.78 / height, wspace=0.06, hspace=0.06
    )
    figure.savefig(path, metadata={"Software": "kegnet_pl"})


def _thin(pixels: np.ndarray) -> np.ndarray:
    """Return a picture with every second, third, ... pixel, if it has more of them than the sheet can show."""
    step = max(min(pixels.shape[:2]) // _SHEET_PIXELS, 1)
    return pixels[::step, ::step].astype(np.float32) if step > 1 else pixels
