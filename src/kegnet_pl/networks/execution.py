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


def prefer_channels_last(network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Convert a convolutional network to channels-last memory if it accepts such tensors, and return it.

    Values and shapes are the same. Some networks fail in this layout (``x.view`` of a tensor that is not contiguous).
    Only networks for samples ``(C, H, W)`` are converted.
    """
    if len(input_shape) != 3:
        return network
    device = next((value.device for value in network.parameters()), torch.device("cpu"))
    x = torch.zeros(2, *input_shape, device=device, requires_grad=True)
    try:
        trial = set_mode(move(copy_network(network), memory_format=torch.channels_last), training=False)
        trial(x.contiguous(memory_format=torch.channels_last)).sum().backward()
    except RuntimeError:
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
