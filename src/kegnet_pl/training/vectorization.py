"""The decision to train several generators as one stacked module."""

from collections.abc import Callable, Sequence

import torch

from kegnet_pl.networks.validation import FORWARD_ERRORS
from kegnet_pl.runtime.errors import first_line
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources import sample_labels_and_noise
from kegnet_pl.training.generator_module import GeneratorModule, check_separable


def should_vectorize(training: str, count: int, device: torch.device, input_shape: Sequence[int]) -> bool:
    """Return True if generators are to be trained together, provided that torch can vectorise them.

    ``"auto"`` trains them together on a GPU and for feature rows: one generator of images occupies a CPU.
    ``python -m benchmarks.bench --choices`` measures both on a device; a GPU has not been measured yet.
    """
    faster = device.type == "cuda" or len(input_shape) == 1
    return count > 1 and (training == "vmap" or (training == "auto" and faster))


def vectorization_error(
    make_module: Callable[[], GeneratorModule], clip: float | None = None, algorithm: str | None = None
) -> str | None:
    """Return the reason why torch cannot train a module of stacked generators, None if it can.

    Args:
        make_module: Returns a module of two stacked generators, which makes one step on the CPU.
        clip: The trainer's ``gradient_clip_val``.
        algorithm: The trainer's ``gradient_clip_algorithm``.
    """
    try:
        with torch.random.fork_rng([]):
            module = make_module()
            check_separable(module.optimizer_of(module.trained_parameters()), clip, algorithm)
            draws = [sample_labels_and_noise(4, module.classes, module.noise_dim, stream(i, "trial")) for i in range(2)]
            z, y = (torch.stack(part) for part in zip(*draws, strict=True))
            module.step((z, y))[0].backward()
    except FORWARD_ERRORS as error:
        return first_line(error)
    return None
