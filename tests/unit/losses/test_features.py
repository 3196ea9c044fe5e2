"""The student's layers shall return what the teacher's do."""

import pytest
import torch

from kegnet_pl.losses import FeatureLoss


def test_equals_the_loop() -> None:
    shapes = [(6, 3, 4, 5), (6, 2)]
    student, teacher = ([torch.randn(shape, dtype=torch.float64) * 3 + 1 for shape in shapes] for _ in range(2))
    layers = []
    for s, t in zip(student, teacher, strict=True):
        channels = []
        for c in range(s.shape[1]):
            mine, target = s[:, c].flatten().tolist(), t[:, c].flatten().tolist()
            mean = sum(target) / len(target)
            variance = sum((value - mean) ** 2 for value in target) / len(target)
            error = sum((a - b) ** 2 for a, b in zip(mine, target, strict=True)) / len(target)
            channels.append(error / variance)
        layers.append(sum(channels) / len(channels))
    assert FeatureLoss()(student, teacher).item() == pytest.approx(sum(layers) / len(layers), rel=1e-11)


def test_units_do_not_matter() -> None:
    student, teacher = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4)
    scale, shift = torch.tensor([1e-2, 1.0, 50.0]).view(3, 1, 1), torch.tensor([5.0, 0.0, -9.0]).view(3, 1, 1)
    plain = FeatureLoss()([student], [teacher])
    other = FeatureLoss()([student * scale + shift], [teacher * scale + shift])
    assert other.item() == pytest.approx(plain.item(), rel=1e-4)


def test_zero_where_layers_agree_and_one_at_their_mean() -> None:
    teacher = torch.randn(50, 3, 2, 2)
    assert FeatureLoss()([teacher.clone()], [teacher]).item() == 0
    mean = teacher.mean(dim=(0, 2, 3), keepdim=True).expand_as(teacher)
    assert FeatureLoss()([mean], [teacher]).item() == pytest.approx(1, rel=1e-5)


def test_a_dead_channel_of_the_teacher_is_measured_by_the_others() -> None:
    teacher = torch.randn(500, 2)
    teacher[:, 1] = 3.0
    student = teacher.clone()
    student[:, 1] += 0.1
    # One of two channels is wrong by 0.1, in units of half the other one's variance.
    assert FeatureLoss()([student], [teacher]).item() == pytest.approx(
        0.1**2 / (teacher[:, 0].var().item() / 2) / 2, rel=1e-2
    )


def test_a_dead_channel_of_the_teacher_gives_a_finite_gradient() -> None:
    student = torch.randn(5, 2, requires_grad=True)
    FeatureLoss()([student], [torch.zeros(5, 2)]).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_computes_in_float32_at_least() -> None:
    loss = FeatureLoss()([torch.randn(4, 2, dtype=torch.bfloat16)], [torch.randn(4, 2, dtype=torch.bfloat16)])
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("student", [[], [torch.zeros(4, 3)], [torch.zeros(4, 2), torch.zeros(4, 2)]])
def test_outputs_that_do_not_fit(student: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="outputs of the teacher's shapes"):
        FeatureLoss()(student, [torch.zeros(4, 2)])
