"""What a network returns for a sample."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kegnet_pl.errors import first_line
from kegnet_pl.networks.modes import evaluating

FORWARD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the forward pass of somebody's network fails with where it is given something else than it takes."""


def count_classes(network: nn.Module, input_shape: Sequence[int], name: str = "network") -> int:
    """Pass two samples through a network and return the number of its classes.

    Args:
        network: Called in evaluation mode, without gradients; its modes stay.
        input_shape: Shape of one sample.
        name: What messages call it.

    Raises:
        ValueError: If it does not take such samples, or does not return logits ``(2, classes)`` of two classes or more.
    """
    if isinstance(network, torch.jit.ScriptModule | torch.fx.GraphModule):
        raise ValueError(
            f"Expected the {name} to be a torch.nn.Module of Python code, but got a {type(network).__name__} "
            f"(TorchScript, torch.export or torch.fx), whose layers cannot be replaced. Build it from its class and "
            f"load its state dict."
        )
    if not isinstance(network, nn.Module):
        raise ValueError(f"Expected the {name} to be a torch.nn.Module, but got {network!r}.")
    called = f"{name} {type(network).__name__}"
    place = next(network.parameters(), torch.empty(0))
    x = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), evaluating(network):
            logits = network(x.to(place.device))
    except FORWARD_ERRORS as error:
        advice = f" Its weights are {place.dtype}: call its method float()." if place.dtype != x.dtype else ""
        raise ValueError(
            f"Expected the {called} to take samples of shape {tuple(input_shape)}, but it failed: "
            f"{first_line(error).rstrip('.')}.{advice}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"Expected the {called} to return logits of shape (2, classes) for 2 samples, and nothing else, but got "
            f"{came}."
        )
    if not bool(logits.isfinite().all()):
        raise ValueError(
            f"Expected the {called} to return finite logits, but got NaN or infinite ones for standard normal samples: "
            f"check its weights."
        )
    if (logits >= 0).all() and torch.allclose(logits.sum(dim=1), logits.new_ones(2), atol=1e-4):
        raise ValueError(
            f"Expected the {called} to return logits, but got probabilities: they add up to 1. Leave out its last "
            f"softmax, or return their logarithms."
        )
    return int(logits.shape[1])
