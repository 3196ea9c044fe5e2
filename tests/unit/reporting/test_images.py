"""Samples as pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kegnet_pl.reporting.images import draw_sample_sheet, grid, picture, sheet_rows, write_grid


def test_an_image_is_stretched_to_its_own_range() -> None:
    x = torch.tensor([[[-3.0, 1.0], [5.0, 1.0]]])
    np.testing.assert_allclose(picture(x)[..., 0], [[0, 0.5], [1, 0.5]])
    assert picture(x).shape == (2, 2, 3)
    colours = picture(torch.stack([torch.zeros(2, 2), torch.ones(2, 2), torch.full((2, 2), 0.5)]))
    np.testing.assert_allclose(colours[0, 0], [0, 1, 0.5])
    assert np.isfinite(picture(torch.zeros(1, 2, 2))).all()


def test_features_are_blue_below_the_mean_and_red_above() -> None:
    strip = picture(torch.tensor([-2.5, 0.0, 2.5, 99.0]))
    assert strip.shape == (4, 1, 3)
    assert strip[0, 0, 2] > strip[0, 0, 0] and strip[2, 0, 0] > strip[2, 0, 2]
    np.testing.assert_allclose(strip[3], strip[2])


def test_rows_lie_where_they_should_with_clear_gaps(tmp_path: Path) -> None:
    low, high = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])
    pixels = grid([[low, high], [high, low]])
    assert pixels.shape == (1 + 2 + 1, 2 + 2 + 2, 4)
    assert pixels[0, :, 0].tolist() == [0, 255, 0, 0, 255, 0]
    assert pixels[0, :, 3].tolist() == [255, 255, 0, 0, 255, 255]
    write_grid([[low, high], [high, low]], tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as stored:
        assert stored.mode == "LA" and stored.size == (6, 4)


@pytest.mark.parametrize(("shape", "rows", "columns"), [((1, 4, 4), 2, 3), ((5,), 3, 2)])
def test_classes_are_columns_of_images_and_rows_of_tables(shape: tuple[int, ...], rows: int, columns: int) -> None:
    samples = [torch.full((4, *shape), float(label)) for label in range(3)]
    sheet = sheet_rows(samples, 2)
    assert len(sheet) == rows and {len(row) for row in sheet} == {columns}
    labels = [[float(x.flatten()[0]) for x in row] for row in sheet]
    assert labels == ([[0, 1, 2]] * 2 if len(shape) == 3 else [[0, 0], [1, 1], [2, 2]])


def test_large_sheets_are_thinned_out(tmp_path: Path) -> None:
    x = torch.rand(3, 224, 224)
    small = grid([[x] * 10] * 4)
    assert small.shape[0] * small.shape[1] < 600_000 and small.shape[:2] == (4 * 77 - 2, 10 * 77 - 2)
    np.testing.assert_array_equal(small[:75, :75, :3], (picture(x)[::3, ::3] * 255).round())
    draw_sample_sheet([x[None]] * 2, tmp_path / "sheet.png", "title", [0.5, 0.5], [7, 99])
    assert (tmp_path / "sheet.png").stat().st_size > 1_000
