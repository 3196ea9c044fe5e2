"""The shipped compression plans make the students of the paper."""

from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from torch import Tensor, nn

from kegnet_pl.networks import MLP
from tests.parity.conftest import Teachers, below, shipped, shipped_plan

pytestmark = pytest.mark.data


def _check(
    name: str, option: int, network: nn.Module, classes: int, expected: dict[str, float], tensors: dict[str, Tensor]
) -> None:
    config = shipped(name, option)
    shape, x = tuple(config.data.input_shape), tensors[f"{name}/x"]
    assert (config.data.classes, shape) == (classes, tuple(x.shape[1:]))
    result = shipped_plan(config).apply(network, shape)
    with torch.no_grad():
        logits = result.network.eval()(x)

    assert sum(p.numel() for p in result.network.parameters()) == expected["parameters"]
    assert result.report.parameters_after == expected["parameters"]
    assert result.report.compression_ratio == pytest.approx(expected["compression_ratio"], rel=1e-12)
    assert (logits - tensors[f"{name}/option{option}/logits_eval"]).abs().max() < 1e-3


@pytest.mark.parametrize("option", [1, 2, 3])
@pytest.mark.parametrize("name", ["mnist", "svhn", "fashion"])
def test_tucker_students(
    name: str, option: int, teacher: Teachers, golden: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    _check(name, option, teacher(name), 10, golden[name]["options"][str(option)], tensors)


@pytest.mark.parametrize("option", [1, 2])
def test_mlp_students(option: int, golden: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    network = MLP(features=9, classes=7)
    network.load_state_dict(below(tensors, "mlp/state/"))
    expected = golden["mlp_9_features_7_classes"]["options"][str(option)]

    _check("mlp", option, network, 7, expected, tensors)
    # The cut is far larger than the tolerance: the logits above are the student's, not the teacher's.
    assert expected["max_abs_logit_difference_from_uncompressed"] > 0.02


@pytest.mark.parametrize(
    ("name", "option", "classes", "features"), [("letter_mlp", 1, 26, 16), ("pendigits_mlp", 2, 10, 16)]
)
def test_mlp_experiments_choose_the_option_of_their_table(name: str, option: int, classes: int, features: int) -> None:
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        config = compose("config", overrides=[f"experiment={name}"])
    report = shipped_plan(config).apply(MLP(features, classes), (features,)).report

    assert config.compression.name == f"option{option}"
    assert round(report.compression_ratio, 2) == {"letter_mlp": 4.13, "pendigits_mlp": 8.07}[name]
