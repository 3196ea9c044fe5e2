"""EVBMF finds the ranks of the authors' release."""

from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from kegnet_pl.compression import CompressionPlan, Rule, evbmf
from tests.parity.conftest import Teachers

pytestmark = pytest.mark.data

SHAPES = {"mnist": (1, 32, 32), "svhn": (3, 32, 32), "fashion": (1, 32, 32)}
each_teacher = pytest.mark.parametrize("name", SHAPES)


@pytest.mark.parametrize("index", range(5))
def test_matrices(index: int, golden: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    expected = golden["evbmf"][index]
    matrix = tensors[f"evbmf/{index}/matrix"]
    found = evbmf(matrix.double().numpy())

    assert tuple(matrix.shape) == (expected["rows"], expected["columns"])
    assert found.rank == expected["rank"]
    np.testing.assert_allclose(found.singular_values, expected["singular_values"], rtol=1e-4)
    assert found.noise_variance == pytest.approx(expected["sigma2"], rel=1e-4)


@each_teacher
def test_ranks_of_every_convolution(name: str, golden: dict[str, Any], teacher: Teachers) -> None:
    network = teacher(name)
    found = {}
    for layer, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().double()
            found[layer] = {
                "out_rank": evbmf(weight.flatten(1).numpy()).rank,
                "in_rank": evbmf(weight.transpose(0, 1).flatten(1).numpy()).rank,
            }

    assert found == golden[name]["evbmf_ranks"]


@each_teacher
def test_ranks_that_a_plan_gives_them(name: str, golden: dict[str, Any], teacher: Teachers) -> None:
    expected = golden[name]["evbmf_ranks"]
    plan = CompressionPlan([Rule(list(expected), "evbmf")], when_larger="compress")
    report = plan.apply(teacher(name), SHAPES[name]).report

    assert report.ranks == {
        layer: (max(1, ranks["in_rank"]), max(1, ranks["out_rank"])) for layer, ranks in expected.items()
    }
    raised = {row.layer for row in report.rows if "raised to 1" in row.note}
    assert raised == {layer for layer, ranks in expected.items() if 0 in ranks.values()}
