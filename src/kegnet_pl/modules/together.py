"""Whether several generators are trained as one stacked module."""

from collections.abc import Callable, Sequence

import torch

from kegnet_pl.data.synthetic import draw_labels_and_noise
from kegnet_pl.errors import first_line
from kegnet_pl.modules.generator import GeneratorModule, check_separable
from kegnet_pl.networks.answers import FORWARD_ERRORS
from kegnet_pl.seeds import stream


def wants_together(training: str, count: int, device: torch.device, input_shape: Sequence[int]) -> bool:
    """Return whether generators should be trained together, if they can be (:func:`find_obstacle`).

    Where nobody says (``auto``), a CPU has enough to do with one generator of images.
    ``python -m benchmarks.bench --choices`` measures both on a device at hand; a GPU has not been measured yet.

    Args:
        training: ``"together"``, ``"one_by_one"`` or ``"auto"``.
        count: Generators; one is never stacked.
        device: Where they are trained.
        input_shape: Shape of one sample.
    """
    faster = device.type == "cuda" or len(input_shape) == 1
    return count > 1 and (training == "together" or (training == "auto" and faster))


def find_obstacle(
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
            draws = [draw_labels_and_noise(4, module.classes, module.noise_dim, stream(i, "trial")) for i in range(2)]
            z, y = (torch.stack(part) for part in zip(*draws, strict=True))
            module.step((z, y))[0].backward()
    except FORWARD_ERRORS as error:
        return first_line(error)
    return None
