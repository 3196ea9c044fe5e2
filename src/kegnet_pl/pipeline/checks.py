"""The check of a network against the data of a run."""

from torch import nn

from kegnet_pl.networks import count_classes
from kegnet_pl.runtime.errors import ConfigError


def check_network(network: nn.Module, name: str, input_shape: tuple[int, ...], classes: int) -> None:
    """Pass a blank batch through a network.

    Raises:
        ConfigError: If it does not take such samples, or does not return logits of so many classes.
    """
    try:
        found = count_classes(network, input_shape, name)
    except ValueError as error:
        raise ConfigError(
            f"{str(error).rstrip('.')}. Choose data and network that fit: data=..., {name}=..., data.input_shape."
        ) from error
    if found != classes:
        raise ConfigError(
            f"Expected the {name} {type(network).__name__} to have {classes} classes, as the data has, but it has "
            f"{found}. Set data.classes to that, or choose data and network that fit."
        )
