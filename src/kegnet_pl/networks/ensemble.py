"""K networks of one structure as one stacked module, and the vectorised map behind it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kegnet_pl.networks.handling import copy_network, move, set_mode

_AUTOCAST_FUNCTIONS = frozenset(
    {
        functional.linear,
        functional.conv1d, functional.conv2d, functional.conv3d,
        functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
    }
)  # fmt: skip
"""Functions that autocast runs in half precision, except under vmap."""


class _HalfPrecision(TorchFunctionMode):
    """Autocast for the layers of a vectorised network, to bfloat16 or float16."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is functional.batch_norm:
            # Under vmap, batch norm accepts only statistics of the precision of its input.
            x, *rest = args
            return func(x.float(), *rest, **kwargs).to(x.dtype)
        if func in _AUTOCAST_FUNCTIONS:
            args = [self._cast(value) for value in args]
            kwargs = {name: self._cast(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def over_stack(function: Callable[..., Any], *inputs: Any) -> Any:
    """Map a function over the slices of its inputs with vmap, in half precision under autocast.

    Inputs are tensors ``(K, ...)``, or dicts of such tensors; results have a leading dimension of K. Random numbers of
    the function differ between slices.
    """
    device = next(value.device for value in tree_leaves(inputs) if isinstance(value, Tensor)).type
    precision = _HalfPrecision(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else nullcontext()

    def call(*slices: Any) -> Any:  # torch.compile requires a function with a name, which modules lack
        return function(*slices)

    with precision:
        return vmap(call, randomness="different")(*inputs)


class StackedModule(nn.Module):
    """K networks of one structure as one module: weights and buffers are stacked, and every layer is one operation.

    Convolutions become grouped convolutions, dense layers become batched products, and batch norm normalises each
    network by its own batch. The function is that of the K networks one after another, up to rounding.

    Args:
        networks: Two or more networks of one structure. They are copied.

    Shapes:
        Inputs ``(K, ...)``, one slice per network; outputs ``(K, ...)``.

    Raises:
        ValueError: If there are fewer than two networks.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(networks) < 2:
            raise ValueError(f"Expected two or more networks to stack, but got {len(networks)}.")
        self.count = len(networks)
        parameters, buffers = stack_module_state(list(networks))
        # PyTorch forbids dots in names of parameters.
        self.weights = nn.ParameterDict({_flat(name): nn.Parameter(value) for name, value in parameters.items()})
        for name, value in self.weights.items():
            value.requires_grad_(networks[0].get_parameter(_dotted(name)).requires_grad)
        self.statistics = nn.Module()
        for name, value in buffers.items():
            self.statistics.register_buffer(_flat(name), value.clone())
        # A tuple hides the structure from the optimiser, from checkpoints and from moves between devices.
        self._structure = (move(copy_network(networks[0]), "meta"),)

    @property
    def structure(self) -> nn.Module:
        """One of the networks on the meta device, with the attributes that all share and without values."""
        return self._structure[0]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all networks."""
        super().train(mode)
        set_mode(self.structure, mode)
        return self

    def forward(self, *inputs: Tensor) -> Any:
        """Return the outputs of the K networks, each for its slice of the inputs."""
        structure = self.structure

        def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *slices: Tensor) -> Any:
            return functional_call(structure, (parameters, buffers), slices)

        weights = {_dotted(name): value for name, value in self.weights.items()}
        statistics = {_dotted(name): value for name, value in self.statistics.named_buffers()}
        return over_stack(call, weights, statistics, *inputs)

    @torch.no_grad()
    def take(self, index: int, network: nn.Module) -> nn.Module:
        """Copy the values of one network into a module of the same structure, and return the module."""
        values = {**self.weights, **dict(self.statistics.named_buffers())}
        network.load_state_dict({name: values[_flat(name)][index] for name in network.state_dict()})
        return network


def _flat(name: str) -> str:
    return name.replace(".", "/")


def _dotted(name: str) -> str:
    return name.replace("/", ".")
