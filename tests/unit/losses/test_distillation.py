import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kegnet_pl.losses import DistillationLoss

each_temperature = pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])


def _logits(count: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(count, classes, dtype=torch.float64), 3 * torch.randn(count, classes, dtype=torch.float64)


def _softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


@each_temperature
def test_equals_the_loop(temperature: float) -> None:
    student, teacher = _logits()
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        for p, q in zip(_softmax(t, temperature), _softmax(s, temperature), strict=True):
            total += p * (math.log(p) - math.log(q))
    expected = temperature**2 * total / len(student)

    assert DistillationLoss(temperature)(student, teacher).item() == pytest.approx(expected, rel=1e-11)


@each_temperature
def test_is_zero_for_equal_answers_whatever_is_added_to_the_logits(temperature: float) -> None:
    student, _ = _logits()
    loss = DistillationLoss(temperature)(student, student + 5)

    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_is_not_symmetric() -> None:
    student, teacher = _logits()
    assert abs(DistillationLoss()(student, teacher) - DistillationLoss()(teacher, student)) > 1e-3


def test_closed_form_of_two_classes() -> None:
    # A student that does not know: KL(p || 1/2) = ln 2 - H(p).
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    loss = DistillationLoss()(torch.zeros(1, 2, dtype=torch.float64), teacher)

    assert loss.item() == pytest.approx(math.log(2) - entropy, rel=1e-12)


def test_hot_limit_is_half_the_variance_of_the_logit_differences() -> None:
    # Hinton et al., section 2.1: for a high temperature it is matching logits.
    student, teacher = _logits()
    limit = 0.5 * (teacher - student).var(dim=1, correction=0).mean()

    torch.testing.assert_close(DistillationLoss(1e4)(student, teacher), limit, rtol=1e-3, atol=0)


@each_temperature
def test_gradient_of_the_student(temperature: float) -> None:
    student, teacher = _logits()
    student.requires_grad_()
    DistillationLoss(temperature)(student, teacher).backward()
    answers = functional.softmax(student / temperature, 1), functional.softmax(teacher / temperature, 1)

    torch.testing.assert_close(student.grad, temperature * (answers[0] - answers[1]).detach() / len(student))


@each_temperature
def test_gradcheck(temperature: float) -> None:
    student, teacher = _logits(3)
    student.requires_grad_()

    assert torch.autograd.gradcheck(lambda s: DistillationLoss(temperature)(s, teacher), (student,))


def test_does_not_depend_on_the_order() -> None:
    student, teacher = _logits()
    order = torch.randperm(6)

    torch.testing.assert_close(DistillationLoss()(student[order], teacher[order]), DistillationLoss()(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_on_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (values.to(dtype) for values in _logits())
    loss = DistillationLoss(2.0)(student, teacher)

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, DistillationLoss(2.0)(student.float(), teacher.float()), rtol=0, atol=0)


def test_equal_rows_and_certain_teachers_give_finite_gradients() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    teacher = torch.tensor([[200.0, 0.0, 0.0, 0.0]]).expand(3, 4)  # softmax underflows
    loss = DistillationLoss()(student, teacher)
    loss.backward()

    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"`temperature` to be a positive number, but got {temperature}"):
        DistillationLoss(temperature)
