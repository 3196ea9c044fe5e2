"""The sample sheet: what the generators make, classes as columns."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from kegnet_pl.reporting.pixels import picture


def draw_sample_sheet(samples: Sequence[Tensor], path: str | Path, title: str, confidence: Sequence[float]) -> None:
    """Draw samples with classes as columns and write a PNG.

    Images are shown as they are, each stretched to its own range; feature rows as strips of one colour a feature.

    Args:
        samples: For every class, samples ``(N, C, H, W)`` or ``(N, F)``.
        path: The file.
        title: Above the sheet.
        confidence: For every class, the teacher's mean probability of that class for these samples, in [0, 1].
    """
    tabular = samples[0].ndim == 2
    columns, rows = len(samples), 1 if tabular else len(samples[0])
    width = 0.8 * columns + 0.6
    height = (2.8 if tabular else 0.8 * rows) + 0.95
    figure = Figure(figsize=(width, height), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    for column, x in enumerate(samples):
        axes[0, column].set_title(f"{column}\n{100 * confidence[column]:.0f} %", fontsize=9)
        for row in range(rows):
            axis = axes[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if tabular:
                axis.imshow(x.T.numpy(), cmap="coolwarm", vmin=-2.5, vmax=2.5, aspect="auto", interpolation="nearest")
                if column == 0:
                    axis.set_ylabel("features", fontsize=8)
            else:
                axis.imshow(picture(x[row]), interpolation="nearest")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", y=0.99, va="top")
    figure.subplots_adjust(
        left=0.04 if tabular else 0.01, right=0.99, bottom=0.01, top=1 - 0.78 / height, wspace=0.06, hspace=0.06
    )
    figure.savefig(path, metadata={"Software": "kegnet_pl"})
