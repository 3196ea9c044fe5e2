"""Whether several generators are trained as one stacked module."""

from collections.abc import Callable, Sequence

import torch

from kegnet_pl.networks.validation import FORWARD_ERRORS
from kegnet_pl.runtime.errors import first_line
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources import sample_labels_and_noise
from kegnet_pl.training.generator_module import GeneratorModule, check_separable


def should_vectorize(training: str, count: int, device: torch.device, input_shape: Sequence[int]) -> bool:
    """Return whether generators should be trained together, if they can be (:func:`vectorization_error`).

    Where nobody says (``auto``), a CPU has enough to do with one generator of images.
    ``python -m benchmarks.bench --choices`` measures both on a device at hand; a GPU has not been measured yet.

    Args:
        training: ``"vmap"``, ``"sequential"`` or ``"auto"``.
        count: Generators; one is never stacked.
        device: Where they are trained.
        input_shape: Shape of one sample.
    """
    faster = device.type == "cuda" or len(input_shape) == 1
    return count > 1 and (training == "vmap" or (training == "auto" and faster))


def vectorization_error(
    make_module: Callable[[], GeneratorModule], clip: float | None = None, algorithm: str | None = None
) -> str | None:
    """Try to train generators together: torch cannot vectorise every network and every loss.

    Args:
        make_module: Returns a module of two stacked generators, with which one step is made, on the CPU.
        clip: The trainer's ``gradient_clip_val``.
        algorithm: Its ``gradient_clip_algorithm``.

    Returns:
        What is in the way, None if nothing is.
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
