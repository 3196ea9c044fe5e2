"""Checks of networks against the settings they are trained with, before anything takes time."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import nn

from kegnet_pl.compression import TuckerLayer, fittable_layers
from kegnet_pl.networks import lacks_statistics, match_layers
from kegnet_pl.networks.batch_norm import norm_layers
from kegnet_pl.networks.validation import check_trainable
from kegnet_pl.runtime.errors import SettingsMismatchError
from kegnet_pl.settings import DistillationSettings

LOW_AGREEMENT = 0.9
"""Agreement on held-out synthetic samples below which ``compress`` warns (measured in results/NETWORKS.md)."""


def check_student(
    student: nn.Module, teacher: nn.Module, settings: DistillationSettings, input_shape: Sequence[int]
) -> None:
    """Check that a student can be trained with its settings.

    Raises:
        ValueError: If the student fails in training mode or does not return logits.
        SettingsMismatchError: If the settings ask for batch norm, statistics or layers that a network does not have.
    """
    check_trainable(student, input_shape)
    if settings.norm == "frozen" and lacks_statistics(student):
        raise SettingsMismatchError(
            f"Expected a student whose batch norm has statistics to keep with norm=frozen, but "
            f"{type(student).__name__} has never seen a sample.",
            {"norm": "batch"},
        )
    if settings.reconstruct:
        _check_compressed(student, teacher)
    features = settings.feature_distillation
    remedy: dict[str, Any] = {"norm": "batch"} if settings.norm == "adapt" else {}
    if features.weight and features.layers is None:
        remedy["feature_distillation.weight"] = 0
    if remedy and not norm_layers(teacher):
        raise SettingsMismatchError(
            f"Expected a teacher with batch norm for {', '.join(remedy)}, but {type(teacher).__name__} has none.",
            remedy,
        )
    needed = list(norm_layers(teacher)) if settings.norm == "adapt" else []
    if features.weight:
        needed += match_layers(teacher, features.layers)
        remedy["feature_distillation.weight"] = 0
    existing = {name for name, _ in student.named_modules()}
    missing = [name for name in dict.fromkeys(needed) if name not in existing]
    if missing:
        raise SettingsMismatchError(
            f"Expected a student with the teacher's layers for {', '.join(remedy)}, but {type(student).__name__} has "
            f"no {', '.join(missing)}.",
            remedy,
        )


def _check_compressed(student: nn.Module, teacher: nn.Module) -> None:
    """Check that each layer of a student is the teacher's layer of the same name, or a factorisation of its kind."""
    modules, others = dict(student.named_modules()), []
    for name in fittable_layers(teacher):
        own, layer = modules.get(name), teacher.get_submodule(name)
        if not (isinstance(own, TuckerLayer) or (type(own) is type(layer) and str(own) == str(layer))):
            others.append(name)
    if others:
        raise SettingsMismatchError(
            f"Expected the compressed teacher as a student with reconstruct, but {type(student).__name__} has other "
            f"layers, or none, for {', '.join(others[:8])}.",
            {"reconstruct": False},
        )


def describe_agreement(agreement: float | None) -> str | None:
    """Return a sentence if a compressed network agrees with the original too little, None if it agrees enough.

    Args:
        agreement: :attr:`Compressed.agreement` of a compression by function; None if the original gives one class.
    """
    if agreement is None:
        return (
            "The network gives the same class to all held-out synthetic samples. Such samples tell little: check the "
            "network's weights and the normalisation of its inputs (`mean` and `std`), or use another source."
        )
    if agreement >= LOW_AGREEMENT:
        return None
    return (
        f"The compressed network and the original give the same class to only {agreement:.0%} of the held-out "
        f"synthetic samples. Below {LOW_AGREEMENT:.0%} some networks lost more than 3 points of accuracy, others none "
        f"(results/NETWORKS.md). Lower the target, use samples that are more like your data, or measure the accuracy."
    )


def check_counts(**at_least: tuple[int, int]) -> None:
    """Check whole numbers among the arguments of a function, given as ``name=(value, minimum)``.

    Raises:
        ValueError: If a value is too small, or no whole number.
    """
    for name, (value, least) in at_least.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"Expected `{name}` to be a whole number of at least {least}, but got {value!r}.")
