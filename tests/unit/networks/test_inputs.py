"""Networks that take pixels, called with standardised samples."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kegnet_pl
from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.networks import ValueRange, restore_inputs, value_range_of


class Recorder(nn.Module):
    """Remembers its input."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x.flatten(1)


@pytest.mark.parametrize("mean", [(0.2,), (0.2, 0.5, 0.7)])
@pytest.mark.parametrize("bounds", [(0, 1), (0, 255), (-1, 1)])
def test_samples_become_pixels_and_pixels_become_samples(bounds: tuple[int, int], mean: tuple[float, ...]) -> None:
    low, high = bounds
    values, network, x = ValueRange.of(bounds, mean, 0.25), Recorder(), torch.randn(2, 3, 4, 4)
    values.attach(network)(x)
    pixels = torch.stack([0.25 * x[:, c] + mean[c % len(mean)] for c in range(3)], dim=1)
    torch.testing.assert_close(network.seen, low + (high - low) * pixels)
    torch.testing.assert_close(values.standardise(network.seen), x, atol=1e-5, rtol=1e-5)


def test_volumes_have_channels_too() -> None:
    network, x = Recorder(), torch.randn(2, 2, 3, 3, 3)
    ValueRange.of((0, 1), (0.2, 0.6), (0.1, 0.3)).attach(network)(x)
    torch.testing.assert_close(network.seen[:, 1], 0.6 + 0.3 * x[:, 1])


def test_gradients_reach_the_samples_in_functional_calls() -> None:
    network, x = Recorder(), torch.randn(5, 2, 3, 3)
    ValueRange.of((0, 255), (0.4, 0.5), (0.2, 0.3)).attach(network)
    grads = torch.vmap(torch.func.grad(lambda one: torch.func.functional_call(network, {}, (one[None],)).sum()))(x)
    torch.testing.assert_close(grads[:, 1], torch.full((5, 3, 3), 0.3 * 255))


def test_a_stored_network_takes_pixels_unless_logits_are_asked_for(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x = torch.randn(3, 1, 2, 2)
    values = ValueRange.of((0, 255))
    values.attach(network)
    recipe = {
        "_target_": "torch.nn.Sequential",
        "_args_": [
            {"_target_": "torch.nn.Flatten"},
            {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 2},
        ],
    }
    save_network(network, tmp_path, "network", recipe)
    plain, hooked = kegnet_pl.load_network(tmp_path), kegnet_pl.load_network(tmp_path, logits=True)
    assert value_range_of(plain) is None and value_range_of(hooked) == values
    torch.testing.assert_close(hooked(x), network(x), atol=0, rtol=0)
    torch.testing.assert_close(plain(255 * (0.45 + 0.25 * x)), network(x))
    torch.testing.assert_close(restore_inputs(hooked)(x), plain(x), atol=0, rtol=0)
