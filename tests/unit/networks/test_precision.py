import pytest
import torch

from kegnet_pl.networks.execution import at_least_float32


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_widens_half_precision_alone(before: torch.dtype, after: torch.dtype) -> None:
    x = torch.tensor([0.5, -2.0], dtype=before)

    assert at_least_float32(x).dtype == after
    assert at_least_float32(x).tolist() == [0.5, -2.0]
