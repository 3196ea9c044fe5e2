import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kegnet_pl.losses import DiversityLoss, GeneratedBatch
from kegnet_pl.losses.diversity import Distance
from tests.unit.losses.samples import permuted, random_batch

DISTANCES: tuple[Distance, ...] = ("l1", "l2", "cosine")
each_distance = pytest.mark.parametrize("distance", DISTANCES)


def _row_distance(a: Sequence[float], b: Sequence[float], distance: Distance) -> float:
    pairs = list(zip(a, b, strict=True))
    if distance == "l1":
        return sum(abs(p - q) for p, q in pairs) / len(pairs)
    if distance == "l2":
        return sum((p - q) ** 2 for p, q in pairs) / len(pairs)
    return 1 - sum(p * q for p, q in pairs) / (math.hypot(*a) * math.hypot(*b))


def _loop(batch: GeneratedBatch, distance: Distance) -> float:
    z, x = batch.z.tolist(), batch.x.flatten(1).tolist()
    total = sum(
        _row_distance(z[i], z[j], "l2") * _row_distance(x[i], x[j], distance)
        for i in range(len(z))
        for j in range(len(z))
    )
    return math.exp(-total / len(z) ** 2)


def direct(z: Tensor, x: Tensor, distance: Distance) -> Tensor:
    """The formula as it is written in the paper, with (B, B, D) tensors."""
    x = x.flatten(1)
    d_z = (z[:, None] - z[None]).square().mean(dim=2)
    if distance == "cosine":
        norms = x.norm(dim=1)
        d_x = 1 - (x[:, None] * x[None]).sum(dim=2) / (norms[:, None] * norms[None])
    else:
        difference = x[:, None] - x[None]
        d_x = (difference.abs() if distance == "l1" else difference.square()).mean(dim=2)
    return torch.exp(-(d_z * d_x).mean())


def _gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@each_distance
def test_equals_the_loop(distance: Distance) -> None:
    batch = random_batch()
    assert DiversityLoss(distance)(batch).item() == pytest.approx(_loop(batch, distance), rel=1e-12)


@each_distance
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_value_and_gradient_equal_the_direct_formula(distance: Distance, offset: float) -> None:
    batch = random_batch(count=12, shape=(3, 4, 4))
    z, x = (batch.z + offset).requires_grad_(), (0.5 * batch.x + offset).requires_grad_()
    loss, expected = DiversityLoss(distance)(replace(batch, z=z, x=x)), direct(z, x, distance)

    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for actual, wanted in zip(_gradients(loss, z, x), _gradients(expected, z, x), strict=True):
        assert (actual - wanted).abs().max() < 1e-9 * wanted.abs().max()


@each_distance
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_is_close_to_float64(distance: Distance, offset: float) -> None:
    batch = random_batch(count=32, shape=(3, 8, 8))
    single = replace(batch, z=(batch.z + offset).float(), x=(batch.x + offset).float())
    double = replace(batch, z=single.z.double(), x=single.x.double())

    assert DiversityLoss(distance)(single).item() == pytest.approx(DiversityLoss(distance)(double).item(), rel=1e-5)


@each_distance
def test_does_not_depend_on_the_order(distance: Distance) -> None:
    batch, loss = random_batch(), DiversityLoss(distance)
    torch.testing.assert_close(loss(permuted(batch, torch.randperm(7))), loss(batch))


@each_distance
def test_depends_on_which_noise_made_which_sample(distance: Distance) -> None:
    batch, loss = random_batch(), DiversityLoss(distance)
    assert abs(loss(replace(batch, x=batch.x.roll(1, dims=0))) - loss(batch)) > 1e-4


@each_distance
@pytest.mark.parametrize("equal", ["two samples", "all samples", "two noises", "all noises", "everything"])
def test_equal_rows_give_finite_and_right_gradients(distance: Distance, equal: str) -> None:
    batch = random_batch(count=6)
    rows = slice(0, 2) if "two" in equal else slice(None)
    z, x = batch.z.clone(), batch.x.clone()
    if "sample" in equal or equal == "everything":
        x[rows] = batch.x[0]
    if "noise" in equal or equal == "everything":
        z[rows] = batch.z[0]
    z.requires_grad_()
    x.requires_grad_()
    loss = DiversityLoss(distance)(replace(batch, z=z, x=x))
    expected = direct(z, x, distance)

    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for actual, wanted in zip(_gradients(loss, z, x), _gradients(expected, z, x), strict=True):
        assert actual.isfinite().all()
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)


@each_distance
def test_equal_values_here_and_there_give_the_right_gradients(distance: Distance) -> None:
    # Few different values, so that most columns hold groups of equal ones between others.
    batch = random_batch(count=40, shape=(30,))
    z, x = batch.z.clone().requires_grad_(), batch.x.mul(2).round().requires_grad_()
    loss, expected = DiversityLoss(distance)(replace(batch, z=z, x=x)), direct(z, x, distance)
    for actual, wanted in zip(_gradients(loss, z, x), _gradients(expected, z, x), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)


@each_distance
def test_several_batches_at_once_equal_one_after_another(distance: Distance) -> None:
    batches = [random_batch(seed=seed) for seed in range(3)]
    z = torch.stack([batch.z for batch in batches]).requires_grad_()
    x = torch.stack([batch.x for batch in batches]).requires_grad_()

    def loss(z: Tensor, x: Tensor) -> Tensor:
        return DiversityLoss(distance)(replace(batches[0], z=z, x=x))

    together, separate = torch.func.vmap(loss)(z, x), torch.stack([loss(*pair) for pair in zip(z, x, strict=True)])
    torch.testing.assert_close(together, separate)
    for actual, wanted in zip(_gradients(together.sum(), z, x), _gradients(separate.sum(), z, x), strict=True):
        torch.testing.assert_close(actual, wanted)


@each_distance
def test_flat_samples_give_finite_gradients(distance: Distance) -> None:
    batch = random_batch(count=6)
    x = batch.x.clone()
    x[:2] = 0
    x.requires_grad_()
    DiversityLoss(distance)(replace(batch, x=x)).backward()

    assert x.grad is not None
    assert x.grad.isfinite().all()


@each_distance
def test_gradcheck(distance: Distance) -> None:
    batch = random_batch(count=5)

    def loss(z: Tensor, x: Tensor) -> Tensor:
        return DiversityLoss(distance)(replace(batch, z=z, x=x))

    assert torch.autograd.gradcheck(loss, (batch.z.requires_grad_(), batch.x.requires_grad_()))


@each_distance
def test_falls_from_one_as_samples_spread(distance: Distance) -> None:
    batch, loss = random_batch(), DiversityLoss(distance)
    collapsed = replace(batch, x=batch.x[:1].expand_as(batch.x))
    near = replace(batch, x=collapsed.x + 0.1 * batch.x)

    assert loss(collapsed).item() == pytest.approx(1, abs=1e-12)
    assert 0 < loss(batch) < loss(near) < 1


def test_closed_form_of_two_samples() -> None:
    # Two of the four pairs differ: d_z = (2^2 + 0^2) / 2 = 2, d_x = (1 + 3) / 4 = 1, so the mean product is 1.
    z = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    x = torch.tensor([[0.0, 0.0, 5.0, 5.0], [1.0, -3.0, 5.0, 5.0]])
    batch = GeneratedBatch(z, torch.zeros(2, 2), x, torch.zeros(2, 2))

    assert DiversityLoss("l1")(batch).item() == pytest.approx(math.exp(-1), rel=1e-6)
    assert DiversityLoss("l2")(batch).item() == pytest.approx(math.exp(-2.5), rel=1e-6)


def test_l1_is_the_default() -> None:
    batch = random_batch()
    assert DiversityLoss()(batch) == DiversityLoss("l1")(batch)


def test_unknown_distance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`distance`.*'l1', 'l2', 'cosine'.*got 'euclid'"):
        DiversityLoss("euclid")  # type: ignore[arg-type]
