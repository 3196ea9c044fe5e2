"""The distillation loss: the student's predictions match the teacher's."""

import math

from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.networks.execution import at_least_float32


class DistillationLoss(nn.Module):
    r"""Kullback-Leibler divergence of the student's prediction from the teacher's, in nats.

    .. math:: T^2 \cdot \frac{1}{B} \sum_i KL(softmax(t_i / T) \,||\, softmax(s_i / T))

    Args:
        temperature: T, divides the logits of both; 1 in the paper.

    Shapes:
        Student logits ``(B, C)``, teacher logits ``(B, C)``; output a scalar.

    Raises:
        ValueError: If ``temperature`` is not positive.

    Source:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; KegNet section 4.4 (PAPER section 5).
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"Expected `temperature` to be a positive number, but got {temperature}.")
        self.temperature = temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the mean divergence, times the temperature squared."""
        student = functional.log_softmax(at_least_float32(student_logits) / self.temperature, dim=1)
        teacher = functional.log_softmax(at_least_float32(teacher_logits) / self.temperature, dim=1)
        # Not functional.kl_div: under vmap, torch loops over the students.
        loss = (teacher.exp() * (teacher - student)).sum() / len(student)
        return loss * self.temperature**2
