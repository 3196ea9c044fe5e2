"""Confidence of a teacher in the intended classes."""

import math

import pytest
import torch

from kegnet_pl.api.sampling import class_confidence


def test_mean_probability_of_the_intended_class() -> None:
    logits = torch.zeros(2, 3, 2)
    logits[1, 0, 1] = math.log(3)  # 0.75, 0.5, 0.5
    logits[1, 1, 0] = 50.0  # sure of the other class: 0
    assert class_confidence(logits).tolist() == pytest.approx([0.5, (0.75 + 0 + 0.5) / 3])


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 2)])
def test_there_are_samples_for_every_class(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected `logits` of shape \(K, N, C\) for K = \d+ classes, but got"):
        class_confidence(torch.zeros(shape))
