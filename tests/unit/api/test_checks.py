"""Signs that samples are not like the inputs that a classifier was trained on."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.api.checks import explain_inputs, explain_pixels, measure_scale
from kegnet_pl.api.weights import load_weights
from kegnet_pl.networks import CifarResNet, ResNet14
from kegnet_pl.sources import Procedural


class Net(nn.Module):
    """A batch norm whose statistics are those of inputs with mean 0.45 and a given deviation."""

    def __init__(self, deviation: float, spread: float = 10.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.norm.running_mean.fill_(0.45)
        self.norm.running_var.fill_(deviation**2)
        self.spread = spread

    def forward(self, x: Tensor) -> Tensor:
        parts = self.norm(x).mean(dim=(2, 3))
        return self.spread * torch.cat([parts, parts.sum(dim=1, keepdim=True)], dim=1)


X = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("deviation", "suggestion"),
    [(0.25, "[0,1]"), (0.5 * 0.5, "[0,1]"), (0.6 * 0.5, "[0,1]"), (64, "[0,255]"), (0.05, None), (8, None)],
)
def test_another_scale_is_named(deviation: float, suggestion: str | None) -> None:
    (sentence,) = [one for one in explain_inputs(Net(deviation), X) if "norm" in one]
    ratio = re.search(r"samples have (\S+) times the standard deviation of its training data", sentence)
    assert ratio is not None and float(ratio[1]) == pytest.approx(1 / deviation, rel=0.1)
    found = f"If the network takes pixels, set 'data.value_range={suggestion}'." if suggestion else None
    assert (found in sentence) if found else ("takes pixels" not in sentence)


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
def test_the_right_scale_is_silent(deviation: float) -> None:
    assert explain_inputs(Net(deviation), X) == []


def test_test_samples_of_another_range_are_named() -> None:
    pixels = torch.rand(50, 3, 8, 8)
    mean, std = [0.5, 0.4, 0.45], [0.25, 0.2, 0.3]
    shape = (1, 3, 1, 1)
    normalised = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert explain_pixels(normalised, mean, std) == [] == explain_pixels((pixels - 0.5) / 0.5, 0.5, 0.5)
    assert explain_pixels(normalised.abs().clamp(max=1), [0.01], [0.5]) == [], "pixels near black"
    for wrong in (pixels, 255 * pixels, 2 * normalised):
        (sentence,) = explain_pixels(wrong, mean, std)
        assert "normalised with data.mean and data.std have values from -2 to 3." in sentence


def test_a_network_without_statistics_is_silent() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    assert not any("norm" in sentence for sentence in explain_inputs(network, 100 * X))


def test_one_class_and_equal_probabilities_are_named() -> None:
    assert "class 1 to all of 64" in explain_inputs(nn.Sequential(Net(1.0, 1e-3), Shift()), X)[0]
    assert "nearly equal probabilities" in explain_inputs(Net(1.0, 1e-3), X)[0]


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor([0.0, 5.0, 0.0])


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_network_is_refused(value: float) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    nn.init.zeros_(network[1].weight)
    nn.init.constant_(network[1].bias, value)
    with pytest.raises(ValueError, match="output depends on its input, but Sequential returns the same logits for 64"):
        explain_inputs(network, X)


@pytest.mark.data
@pytest.mark.skipif("KEGNET_REFERENCE_DIR" not in os.environ, reason="needs the released teachers")
@pytest.mark.parametrize(
    ("file", "make", "mean", "std"),
    [
        ("svhn.pth.tar", ResNet14, [0.4378, 0.4439, 0.4729], [0.1980, 0.2011, 0.1971]),
        ("fashion.pth.tar", lambda: ResNet14(channels=1), 0.2860, 0.3530),
        ("cifar10_resnet20.th", CifarResNet, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("cifar10_resnet56.th", lambda: CifarResNet(56), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
)
def test_published_networks_have_the_scale_of_procedural_samples(file: str, make: Any, mean: Any, std: Any) -> None:
    network = make()
    load_weights(network, Path(os.environ["KEGNET_REFERENCE_DIR"]) / "teachers" / file)
    channels = 1 if isinstance(mean, float) else 3
    found = measure_scale(network, Procedural((channels, 32, 32), mean=mean, std=std).sample(64, 0))
    assert found is not None and 0.7 < found[1] < 1
