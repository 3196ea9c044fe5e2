"""Checks of networks against the settings of their training, before any stage runs."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from kegnet_pl.compression import TuckerLayer, fittable_layers
from kegnet_pl.networks import FeatureExtractor, lacks_statistics, match_layers
from kegnet_pl.networks.answers import check_training_answers
from kegnet_pl.networks.batch_norm import norm_layers
from kegnet_pl.networks.execution import eval_mode, first_weight
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.networks.inputs import PIXEL_STD
from kegnet_pl.networks.kept import kept_channels
from kegnet_pl.networks.validation import check_trainable, samples_for_trial
from kegnet_pl.runtime.errors import SettingsMismatchError
from kegnet_pl.settings import DistillationSettings

_RANGE = " (on the command line: data.mean, data.std, data.value_range; in Python: kegnet_pl.networks.ValueRange)"

TRIAL_SAMPLES = 64
"""Samples for :func:`explain_inputs`."""

_SCALE = 3
"""Factor between standard deviations, above which the run warns of a wrong value range (docs/decisions/0003)."""

LOW_AGREEMENT = 0.9
"""Agreement on synthetic samples below which there is a warning (measured in results/AGREEMENT_LEVELS.md)."""

_LOW_AGREEMENT_OF_PRUNING = 0.8
"""The same for networks that were compressed by pruning, which lose less accuracy at the same agreement."""


def low_agreement(method: str) -> float:
    """Return the agreement on held-out synthetic samples below which a compression by a method causes a warning."""
    return _LOW_AGREEMENT_OF_PRUNING if method == "pruning" else LOW_AGREEMENT


def check_student(
    student: nn.Module, teacher: nn.Module, settings: DistillationSettings, input_shape: Sequence[int]
) -> None:
    """Check that a student can be trained with its settings.

    Raises:
        ValueError: If the student fails in training mode or does not return logits.
        SettingsMismatchError: If the settings ask for batch norm, statistics or layers that a network does not have.
    """
    check_trainable(student, input_shape)
    check_training_answers(student, input_shape)
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
    if features.weight and kept_channels(student):
        _check_widths(student, teacher, match_layers(teacher, features.layers), input_shape)


def _check_widths(student: nn.Module, teacher: nn.Module, layers: Sequence[str], input_shape: Sequence[int]) -> None:
    """Check that layers of a pruned student are as wide as the teacher's layers without the pruned channels."""
    x = samples_for_trial(input_shape)
    shapes = []
    for network, kept in ((student, {}), (teacher, kept_channels(student, teacher))):
        extractor = FeatureExtractor(network, layers, kept)
        with torch.no_grad(), eval_mode(network):
            weight = first_weight(network)
            shapes.append([tuple(value.shape) for value in extractor(x.to(weight))[1]])
        extractor.close()
    once = len(shapes[0]) == len(shapes[1]) == len(layers)  # no layer is called several times
    others = [name for name, *pair in zip(layers, *shapes, strict=True) if pair[0] != pair[1]] if once else layers
    if shapes[0] == shapes[1]:
        return
    if others:
        raise SettingsMismatchError(
            f"Expected `feature_distillation.layers` to be convolutions, dense layers and normalisations, since the "
            f"student is pruned, but got {', '.join(others[:8])}.",
            {"feature_distillation.layers": None},
        )


def _check_compressed(student: nn.Module, teacher: nn.Module) -> None:
    """Check that each layer of a student is the teacher's layer of the same name, or a factorisation of its kind."""
    modules, others = dict(student.named_modules()), []
    kept = kept_channels(student, teacher)
    for name in fittable_layers(teacher):
        own, layer = modules.get(name), teacher.get_submodule(name)
        same = type(own) is type(layer) and (name in kept or str(own) == str(layer))
        if not (isinstance(own, TuckerLayer) or same):
            others.append(name)
    if others:
        raise SettingsMismatchError(
            f"Expected the compressed teacher as a student with reconstruct, but {type(student).__name__} has other "
            f"layers, or none, for {', '.join(others[:8])}.",
            {"reconstruct": False},
        )


@torch.no_grad()
def explain_inputs(network: nn.Module, x: Tensor) -> list[str]:
    """Return a sentence for each sign that samples differ from the training data of a classifier.

    The signs are a wrong scale (:func:`explain_scale`), one class for all samples, and equal probabilities of all
    classes.

    Args:
        network: Returns logits ``(N, C)``.
        x: Samples ``(N, *input_shape)``, some tens, on the device of the network.

    Raises:
        ValueError: If the network returns the same logits for all samples.
    """
    with eval_mode(network):
        logits = network(x)
    if bool(torch.isclose(logits, logits[:1], rtol=1e-6, atol=0).all()):
        raise ValueError(
            f"Expected a network whose output depends on its input, but {type(network).__name__} returns the same "
            f"logits for {len(x)} different samples. Check its weights."
        )
    sentences = explain_scale(network, x)
    share, label = (logits.argmax(dim=1).bincount() / len(x)).max(dim=0)
    confidence, classes = float(logits.softmax(dim=1).amax(dim=1).mean()), logits.shape[1]
    if float(share) == 1:
        sentences.append(
            f"{type(network).__name__} gives class {int(label)} to all of {len(x)} synthetic samples. Check its "
            f"weights and the range of its inputs{_RANGE}."
        )
    elif confidence < 1.2 / classes:
        sentences.append(
            f"{type(network).__name__} gives nearly equal probabilities to all classes of {len(x)} synthetic samples. "
            f"Check its weights and the range of its inputs{_RANGE}."
        )
    return sentences


def explain_pixels(x: Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> list[str]:
    """Return a sentence if images do not have the range of pixels that are normalised with a mean and deviation.

    Args:
        x: Images ``(N, C, ...)``.
        mean: Mean of the pixels in [0, 1], one number or one for each channel.
        std: Their standard deviation.
    """
    means, deviations = torch.as_tensor(mean).flatten(), torch.as_tensor(std).flatten()
    low, high = float((-means / deviations).min()), float(((1 - means) / deviations).max())
    least, most = float(x.amin()), float(x.amax())
    margin = _BEYOND * (high - low)
    outside = least < low - margin or most > high + margin
    if not outside and not (least >= 0 and low < -margin):
        return []
    return [
        f"The test samples have values from {least:.3g} to {most:.3g}. Pixels in [0, 1] that are normalised with "
        f"data.mean and data.std have values from {low:.3g} to {high:.3g}. Normalise the test samples as the training "
        f"data, or correct data.mean and data.std."
    ]


def explain_scale(network: nn.Module, x: Tensor) -> list[str]:
    """Return a sentence if samples ``(N, *input_shape)`` have another scale than the training data of a network."""
    found = measure_scale(network, x)
    if found is None or 1 / _SCALE < found[1] < _SCALE:
        return []
    name, ratio = found
    return [
        f"In {name}, the first batch norm of {type(network).__name__}, synthetic samples have {ratio:.2g} times the "
        f"standard deviation of its training data.{_suggest_range(1 / ratio)} Check the mean and standard deviation by "
        f"which the inputs are normalised, or their value range{_RANGE}."
    ]


@torch.no_grad()
def measure_scale(network: nn.Module, x: Tensor) -> tuple[str, float] | None:
    """Return the first batch norm of a network, and the standard deviation of its input divided by the stored one.

    Args:
        network: Any network.
        x: Samples ``(N, *input_shape)``, on its device.

    Returns:
        Name of the layer, and the median over channels; None without batch norm that has statistics.
    """
    norms = {} if lacks_statistics(network) else norm_layers(network)
    stored = [name for name, layer in norms.items() if layer.track_running_stats]
    with LayerRecorder(network, stored, _deviations, source="input") as recorder, eval_mode(network):
        deviations = recorder.call_each(x)[1]
    if not deviations:
        return None
    name, (found, *_) = next(iter(deviations.items()))
    layer = norms[name]
    assert layer.running_var is not None
    return name, float(((found + layer.eps**0.5) / (layer.running_var + layer.eps).sqrt()).median())


def _deviations(name: str, inputs: Tensor) -> Tensor:  # noqa: ARG001
    """Return the standard deviation ``(C,)`` of the input ``(N, C, ...)`` of a layer."""
    return inputs.transpose(0, 1).flatten(1).std(dim=1)


def _suggest_range(scale: float) -> str:
    """Return a sentence on the value range whose pixels have this standard deviation, if one is near."""
    for low, high in ((0, 1), (-1, 1), (0, 255)):
        if 0.5 < scale / (PIXEL_STD * (high - low)) < 2:
            return f" If the network takes pixels, set 'data.value_range=[{low},{high}]'."
    return ""


_BEYOND = 0.1
"""Share of the range of normalised pixels by which values may exceed it."""

TRY_PRUNING = "Pruning often gives a higher agreement: pip install 'kegnet_pl[pruning]'."
"""Advice if a factorised network agrees too little and pruning was not tried."""


def describe_comparison(method: str, compared: Mapping[str, float | str | None], held_out: int) -> str:
    """Return a line on the methods of compression that were compared, see :class:`Compressed`."""
    parts = [
        f"{name} {f'failed ({one})' if isinstance(one, str) else 'unknown' if one is None else f'{one:.1%}'}"
        for name, one in compared.items()
    ]
    number = f"{held_out:,} " if held_out else ""  # stages of older versions lack it
    return f"Compression by {method}. Agreement before training, on {number}held-out samples: {', '.join(parts)}."


def describe_agreement(agreement: float | None, method: str) -> str | None:
    """Return a sentence if a compressed network agrees with the original too little, None if it agrees enough.

    Args:
        agreement: :attr:`Compressed.agreement` of a compression by function; None if the original gives one class.
        method: :attr:`Compressed.method`.
    """
    if agreement is None:
        return (
            "The network gives the same class to all held-out synthetic samples. Such samples are not informative. "
            "Check the network's weights and the normalisation of its inputs (`mean` and `std`), or use another "
            "source."
        )
    level = low_agreement(method)
    if agreement >= level:
        return None
    return (
        f"The compressed network and the original give the same class to only {agreement:.0%} of the held-out "
        f"synthetic samples. Below {level:.0%} some networks lost more than 3 points of accuracy, and others none "
        f"(results/AGREEMENT_LEVELS.md). Lower the target, use samples that are more like your data, or measure the "
        f"accuracy."
    )


def check_counts(**at_least: tuple[int, int]) -> None:
    """Check whole numbers among the arguments of a function, given as ``name=(value, minimum)``.

    Raises:
        ValueError: If a value is too small, or is not a whole number.
    """
    for name, (value, least) in at_least.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"Expected `{name}` to be a whole number of at least {least}, but got {value!r}.")
