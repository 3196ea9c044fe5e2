"""Confidence of a teacher in the intended classes of samples."""

from torch import Tensor


def class_confidence(logits: Tensor) -> Tensor:
    """Return the teacher's mean probability of the intended class, for every class: ``(C,)``, in [0, 1].

    The first dimension of ``logits (C, N, C)`` is the class that the ``N`` samples were generated for.

    Raises:
        ValueError: If the first and the last dimension differ.
    """
    if logits.ndim != 3 or logits.shape[0] != logits.shape[2]:
        raise ValueError(f"Expected `logits` of shape (C, N, C), but got {tuple(logits.shape)}.")
    return logits.softmax(dim=2).diagonal(dim1=0, dim2=2).mean(dim=0)
