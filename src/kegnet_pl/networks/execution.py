"""Execution of networks: evaluation mode, memory layout, precision and chunk size."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kegnet_pl.networks.handling import copy_network, move, set_mode


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Set a network to evaluation mode within the context; the modes of its modules are restored."""
    modes = {module: module.training for module in network.modules()}
    set_mode(network, training=False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def copy_in_channels_last(
    network: nn.Module, input_shape: Sequence[int], *, backward: bool = False
) -> nn.Module | None:
    """Return a copy of a convolutional network in channels-last memory and evaluation mode.

    Args:
        network: Any network; it is not changed.
        input_shape: Shape of one sample. Only networks for samples ``(C, H, W)`` are copied.
        backward: True if the network must also have gradients in this layout.

    Returns:
        None if the network does not accept such tensors (``x.view`` of a tensor that is not contiguous fails), or has
        no weights of convolutions.
    """
    if not _has_layouts(network, input_shape):
        return None
    weight = first_weight(network)
    try:
        with torch.inference_mode(mode=False), torch.set_grad_enabled(backward):
            copied = set_mode(move(copy_network(network), memory_format=torch.channels_last), training=False)
            x = torch.zeros(2, *input_shape, device=weight.device, dtype=weight.dtype)
            answer = copied(x.contiguous(memory_format=torch.channels_last).requires_grad_(backward))
            if backward:
                answer.sum().backward()
    except Exception:  # any, as it is the user's code
        return None
    for value in copied.parameters():
        value.grad = None
    return copied


def copies_to_time(networks: Sequence[nn.Module], input_shape: Sequence[int]) -> list[nn.Module]:
    """Return copies of networks for a comparison of their times: in evaluation mode and in one memory layout.

    The layout is channels-last memory, in which students are trained, if all convolutional networks accept it, else the
    default one. Convolutions can be faster in channels-last memory (results/SPEED.md).

    Returns:
        The copies in order; a network itself if it has no weights of convolutions for images, or cannot be copied.
    """
    copies = [copy_in_channels_last(network, input_shape) for network in networks]
    convolutional = [_has_layouts(network, input_shape) for network in networks]
    if any(copied is None for copied, matters in zip(copies, convolutional, strict=True) if matters):
        copies = [
            _copy_in_default_layout(network) if matters else None
            for network, matters in zip(networks, convolutional, strict=True)
        ]
    return [network if copied is None else copied for network, copied in zip(networks, copies, strict=True)]


def _copy_in_default_layout(network: nn.Module) -> nn.Module | None:
    """Return a copy of a network in the default memory layout and evaluation mode; None if it cannot be copied."""
    try:
        return set_mode(move(copy_network(network), memory_format=torch.contiguous_format), training=False)
    except ValueError:
        return None


def _has_layouts(network: nn.Module, input_shape: Sequence[int]) -> bool:
    """Return True if the memory layout of a network matters: samples ``(C, H, W)`` and weights of convolutions."""
    return len(input_shape) == 3 and any(value.dim() == 4 for value in network.parameters())


def is_channels_last(network: nn.Module) -> bool:
    """Return True if weights of a network are in channels-last memory."""
    return any(
        value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
        for value in network.parameters()
    )


def prefer_channels_last(network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Convert a convolutional network to channels-last memory if it accepts such tensors, and return it.

    Values and shapes are the same. :func:`copy_in_channels_last` says when a network is not converted.
    """
    if copy_in_channels_last(network, input_shape, backward=True) is None:
        return network
    return move(network, memory_format=torch.channels_last)


def first_weight(network: nn.Module) -> Tensor:
    """Return the first floating-point weight of a network; samples get its device and dtype. Empty if there is none."""
    return next((value for value in network.parameters() if value.is_floating_point()), torch.empty(0))


def check_values(network: nn.Module, name: str = "network") -> None:
    """Check that no weight or buffer of a network is on the meta device, where it has no values.

    Raises:
        ValueError: If one is.
    """
    values = [*network.named_parameters(), *network.named_buffers()]
    empty = [key for key, value in values if value.is_meta]
    if empty:
        raise ValueError(
            f"Expected the {name} {type(network).__name__} to have values in all weights, but {len(empty)} of "
            f"{len(values)} weights and buffers are on the meta device: {', '.join(empty[:4])}"
            f"{', ...' if len(empty) > 4 else ''}. Load its state dict with load_state_dict(..., assign=True), or "
            f"build it outside of torch.device('meta'). to_empty() is not enough: it leaves random values."
        )


def at_least_float32(x: Tensor) -> Tensor:
    """Return float16 and bfloat16 tensors as float32, and wider ones unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def chunk_size(sample: Sequence[int], device: torch.device) -> int:
    """Return the number of samples of one shape per forward pass if no batch size is given.

    The activations of a chunk fit into the cache of a CPU, or fill a GPU.
    """
    values = 2**20 if device.type == "cpu" else 2**25
    return min(max(values // math.prod(sample), 16), 8192)


def teacher_for(teacher: nn.Module, input_shape: Sequence[int], precision: str) -> nn.Module:
    """Return a copy of the teacher in the memory layout for training generators.

    In float32 the layout is unchanged: another layout sums in another order, and Adam amplifies rounding errors.
    """
    network = copy_network(teacher)
    return network if precision == "32-true" else prefer_channels_last(network, input_shape)
