import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kegnet_pl.losses import ClassifierLoss
from tests.unit.losses.samples import permuted, random_batch


def _loop(y: Tensor, logits: Tensor) -> float:
    total = 0.0
    for label, row in zip(y.tolist(), logits.tolist(), strict=True):
        normaliser = sum(math.exp(value) for value in row)
        for share, value in zip(label, row, strict=True):
            if share > 0:
                total += share * (math.log(share) - math.log(math.exp(value) / normaliser))
    return total / len(y)


@pytest.mark.parametrize("soft", [False, True])
def test_equals_the_loop(soft: bool) -> None:
    batch = random_batch()
    if soft:
        batch = replace(batch, y=functional.softmax(torch.randn(7, 4, dtype=torch.float64), dim=1))

    assert ClassifierLoss()(batch).item() == pytest.approx(_loop(batch.y, batch.logits), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 10.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    batch = random_batch()
    expected = _loop(batch.y, batch.logits / temperature)
    assert ClassifierLoss(temperature)(batch).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_wrong_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="Expected `temperature` to be a positive number"):
        ClassifierLoss(temperature)


def test_is_the_cross_entropy_for_one_hot_labels() -> None:
    batch = random_batch()
    expected = functional.cross_entropy(batch.logits, batch.y.argmax(dim=1))

    torch.testing.assert_close(ClassifierLoss()(batch), expected)


def test_closed_form() -> None:
    batch = random_batch(classes=4)
    silent = replace(batch, logits=torch.zeros_like(batch.logits))

    assert ClassifierLoss()(silent).item() == pytest.approx(math.log(4), rel=1e-12)


def test_does_not_depend_on_the_order() -> None:
    batch = random_batch()
    torch.testing.assert_close(ClassifierLoss()(permuted(batch, torch.randperm(7))), ClassifierLoss()(batch))


def test_gradcheck() -> None:
    batch = random_batch()
    batch.logits.requires_grad_()

    assert torch.autograd.gradcheck(lambda logits: ClassifierLoss()(replace(batch, logits=logits)), (batch.logits,))


def test_extreme_logits_stay_finite() -> None:
    batch = random_batch(count=2, classes=2)
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = ClassifierLoss()(replace(batch, logits=logits, y=torch.tensor([[0.0, 1.0], [0.0, 1.0]])))
    loss.backward()

    assert loss.item() == pytest.approx(1e4)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -0.5], [0.0, 0.0]]))


def test_needs_no_decoder() -> None:
    assert not ClassifierLoss.uses_decoder
    assert ClassifierLoss()(replace(random_batch(), z_decoded=None)).isfinite()
