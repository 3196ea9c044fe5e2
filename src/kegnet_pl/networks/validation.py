"""Checks of networks from users: classifiers, students, generators and decoders, by a trial forward pass."""

import itertools
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kegnet_pl.networks.execution import check_values, eval_mode, first_weight
from kegnet_pl.networks.handling import check_begun, copy_network, freeze, move, set_mode, unfreeze_frozen
from kegnet_pl.networks.hooks import find_calls
from kegnet_pl.runtime.errors import first_line

FORWARD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Exceptions that the forward pass of a network may raise for an input that it does not accept."""


def count_classes(network: nn.Module, input_shape: Sequence[int], name: str = "network") -> int:
    """Check that a network returns logits for two samples, and return the number of its classes.

    It is called in evaluation mode, without gradients; its modes are restored. Messages have its ``name``.

    Raises:
        ValueError: If it does not accept such samples, or does not return logits ``(2, classes)`` of two or more
            classes.
    """
    check_module(network, name)
    materialise(network, input_shape, name)
    called = f"{name} {type(network).__name__}"
    weight = first_weight(network)
    with torch.no_grad(), eval_mode(network):
        logits = call_trial(network, called, samples_for_trial(input_shape).to(weight.device))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
        received = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"Expected the {called} to return logits of shape (2, classes) for 2 samples, and nothing else, but got "
            f"{received}."
        )
    if not bool(logits.isfinite().all()):
        raise ValueError(
            f"Expected the {called} to return finite logits, but got NaN or infinite values for standard normal "
            f"samples. Check its weights."
        )
    if (logits >= 0).all() and torch.allclose(logits.sum(dim=1), logits.new_ones(2), atol=1e-4):
        raise ValueError(
            f"Expected the {called} to return logits, but got probabilities (they sum to 1). Use outputs=auto, or "
            f"outputs=probabilities."
        )
    return int(logits.shape[1])


_LAZY_INPUT = "_kegnet_lazy_input"
"""Attribute of a network that was built with lazy layers: the shape of the samples that initialised them."""


def materialise(network: nn.Module, input_shape: Sequence[int], name: str = "network") -> None:
    """Initialise the lazy layers of a network by a forward pass, before any weight is read.

    Raises:
        ValueError: If it does not accept such samples.
    """
    check_values(network, name)
    if not any(map(is_lazy, itertools.chain(network.parameters(), network.buffers()))):
        return
    weight = first_weight(network)
    x = samples_for_trial(input_shape).to(weight.device, weight.dtype)
    with torch.no_grad(), eval_mode(network):
        call_trial(network, f"{name} {type(network).__name__}", x)
    setattr(network, _LAZY_INPUT, tuple(input_shape))


def lazy_input_of(network: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of the samples that initialised lazy layers; None for other networks."""
    return getattr(network, _LAZY_INPUT, None)


def check_module(network: nn.Module, name: str) -> None:
    """Check that a network is a module whose layers can be replaced.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(network, torch.jit.ScriptModule | torch.fx.GraphModule):
        raise ValueError(
            f"Expected the {name} to be a torch.nn.Module of Python code, but got a {type(network).__name__} "
            f"(TorchScript, torch.export or torch.fx), whose layers cannot be replaced. Build it from its class and "
            f"load its state dict."
        )
    if not isinstance(network, nn.Module):
        hint, received = "Give the network.", repr(network)[:200]
        if isinstance(network, type):
            hint, received = "Give an instance of the class.", f"the class {network.__name__}"
        elif isinstance(network, Mapping):
            hint, received = "Build the network and call its load_state_dict.", f"a {type(network).__name__}"
        raise ValueError(f"Expected the {name} to be a torch.nn.Module, but got {received}. {hint}")
    check_begun(network, name)
    check_values(network, name)


def call_trial(network: nn.Module, called: str, x: Tensor) -> Any:
    """Return the answer of a network to trial samples ``(N, *input_shape)``.

    Raises:
        ValueError: If the network fails; the message calls it ``called``.
    """
    if getattr(network, "main_input_name", "pixel_values") == "input_ids":
        raise ValueError(_TOKENS.format(called))
    try:
        return network(x)
    except FORWARD_ERRORS as error:
        reason = first_line(error).rstrip(".")
        if "'indices'" in reason and "scalar types: Long" in reason:
            raise ValueError(_TOKENS.format(called)) from error
        dtype = first_weight(network).dtype
        advice = f" Its weights are {dtype}: call its method float()." if dtype != x.dtype else ""
        raise ValueError(
            f"Expected the {called} to accept samples of shape {tuple(x.shape[1:])}, but it failed: {reason}.{advice}"
        ) from error


def call_single(network: nn.Module, called: str, x: Tensor) -> Any:
    """Return the output of a network for one trial sample ``(1, *input_shape)``; a larger batch has worked before.

    Raises:
        ValueError: If the network fails; the message calls it ``called``.
    """
    try:
        return network(x)
    except FORWARD_ERRORS as error:
        raise ValueError(
            f"Expected the {called} to accept a batch of one sample, since the last batch can be that small, but it "
            f"accepts only larger batches: {first_line(error).rstrip('.')}. Set track_running_stats=True in its batch "
            f"norm, or change its forward."
        ) from error


@torch.inference_mode(mode=False)
@torch.enable_grad()
def check_gradient(network: nn.Module, input_shape: Sequence[int], name: str = "teacher") -> None:
    """Check that gradients flow from the logits of a network to its input; generators need them.

    Samples have several scales, as a network may be saturated at one of them.

    Raises:
        ValueError: If there are none, or they are zero for all samples.
    """
    copied = set_mode(freeze(copy_network(network)), training=False)
    x = samples_for_trial(input_shape, 16).to(first_weight(copied))
    scales = torch.logspace(-2, 1, 4, dtype=x.dtype, device=x.device).repeat(4)
    x = (x * scales.reshape(-1, *[1] * len(input_shape))).requires_grad_()
    reason = "its logits do not depend on the input"
    try:
        logits = copied(x.clone())  # the network may work in place
        centred = logits - logits.mean(dim=1, keepdim=True)
        if logits.requires_grad:
            direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
            (gradient,) = torch.autograd.grad((centred * direction).sum(), x, allow_unused=True)
            if gradient is not None and bool((gradient != 0).any()):
                return
        else:
            reason = "its forward runs under torch.no_grad or inference_mode, or detaches a tensor"
    except FORWARD_ERRORS as error:
        reason = first_line(error).rstrip(".")
    raise ValueError(
        f"Expected the {name} {type(network).__name__} to pass gradients from its logits to its input, which "
        f"generators need, but got none: {reason}. Change its forward (decorators, detach, rounding), or train "
        f"students on samples that need no generators ('sources=[procedural]', kegnet_pl.sources.Procedural)."
    )


_TOKENS = (
    "Expected the {} to accept floating-point inputs (images, signals, volumes or rows of features), but it accepts "
    "integer token ids. Networks for text are not supported. Choose another network."
)


def check_trainable(student: nn.Module, input_shape: Sequence[int]) -> None:
    """Check that a copy of a student returns only logits in training mode, without outputs of auxiliary heads.

    Raises:
        ValueError: If it fails, or does not return only logits.
    """
    logits = _trial_output("student", student, samples_for_trial(input_shape), training=True)
    if logits.ndim != 2:
        raise ValueError(
            f"Expected the student {type(student).__name__} to return logits (2, classes) for 2 samples also in "
            f"training mode, but got {tuple(logits.shape)}."
        )


def check_generator(generator: nn.Module, decoder: nn.Module, input_shape: Sequence[int], classes: int) -> None:
    """Check that a generator and a decoder fit the data and each other, by a call of copies of both.

    Raises:
        ValueError: If samples have another shape, the decoder does not return the noise, or a network fails.
    """
    noise_dim, generator_classes = getattr(generator, "noise_dim", None), getattr(generator, "classes", None)
    if not isinstance(noise_dim, int) or not isinstance(generator_classes, int):
        raise ValueError(
            f"Expected a generator with the attributes `noise_dim` and `classes`, but got {type(generator).__name__}. "
            f"Set them in its constructor: self.noise_dim = noise_dim; self.classes = classes."
        )
    if generator_classes != classes:
        raise ValueError(f"Expected a generator of {classes} classes, but got one of {generator_classes}.")
    x = _trial_output("generator", generator, torch.zeros(2, noise_dim), torch.eye(classes)[:2])
    if tuple(x.shape) != (2, *input_shape):
        raise ValueError(f"Expected a generator of samples {tuple(input_shape)}, but got one of {tuple(x.shape[1:])}.")
    decoded = _trial_output("decoder", decoder, x)
    if tuple(decoded.shape) != (2, noise_dim):
        raise ValueError(
            f"Expected a decoder of the generator's {noise_dim} noise dimensions, but got one of "
            f"{tuple(decoded.shape[1:])}."
        )


def _trial_output(name: str, network: nn.Module, *inputs: Tensor, training: bool = False) -> Tensor:
    """Return the output of a copy of a network on the CPU; raise a ValueError if it fails or is no tensor."""
    called, when = f"{name} {type(network).__name__}", " in training" if training else ""
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in inputs)
    try:
        with (
            torch.inference_mode(mode=False),
            torch.set_grad_enabled(training),
            torch.random.fork_rng(devices=[]),
        ):
            copied = set_mode(move(copy_network(network), "cpu"), training)
            unfreeze_frozen(copied)
            output = copied(*(value.clone() for value in inputs))  # tensors of inference mode cannot have gradients
    except FORWARD_ERRORS as error:
        raise ValueError(
            f"Expected the {called} to accept {shapes}{when}, but it failed: {first_line(error).rstrip('.')}."
            f"{_name_heads(network, inputs) if training else ''}"
        ) from error
    if not isinstance(output, Tensor):
        advice = _name_heads(network, inputs) or " Remove auxiliary heads for training." if training else ""
        raise ValueError(f"Expected the {called} to return a tensor{when}, but got a {type(output).__name__}.{advice}")
    if training and not output.requires_grad:
        raise ValueError(
            f"Expected the {called} to return logits with gradients for its weights, but got none: its forward runs "
            f"under torch.no_grad or inference_mode, or detaches a tensor. Change its forward."
        )
    return output


def _name_heads(network: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Return a sentence about the parts that a network calls only in training mode; empty if there are none."""

    def find_called(training: bool) -> set[str]:
        copied = set_mode(move(copy_network(network), "cpu"), training)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return set(find_calls(dict(copied.named_modules()), lambda: copied(*(x.clone() for x in inputs))))

    heads = sorted(find_called(training=True) - find_called(training=False))
    heads = [name for name in heads if not any(name.startswith(f"{other}.") for other in heads)]
    if not heads:
        return ""
    return (
        f" It calls {', '.join(heads)} only in training mode. Remove such auxiliary heads before the compression (set "
        f"them to None, as its class allows)."
    )


def samples_for_trial(input_shape: Sequence[int], n: int = 2) -> Tensor:
    """Return standard normal samples ``(n, *input_shape)``, always the same."""
    return torch.randn(n, *input_shape, generator=torch.Generator().manual_seed(0))


def to_shape(input_shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one sample.

    Raises:
        ValueError: If it is not a shape.
    """
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else (input_shape,)
    if not shape or not all(isinstance(size, Integral) and size > 0 for size in shape):
        raise ValueError(
            f"Expected `input_shape` as (channels, height, width) or a number of features, but got {input_shape!r}."
        )
    return tuple(int(size) for size in shape)
