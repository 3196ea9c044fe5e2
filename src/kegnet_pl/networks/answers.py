"""Outputs of classifiers: tuples, dicts, probabilities or one sigmoid, converted to logits ``(B, C)``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kegnet_pl.networks.execution import eval_mode, first_weight
from kegnet_pl.networks.handling import copy_network, set_mode
from kegnet_pl.networks.hooks import find_hook, hook_output, remove_hooks
from kegnet_pl.networks.validation import call_single, call_trial, check_module, materialise, samples_for_trial

Outputs = Literal["auto", "logits", "probabilities", "log_probabilities", "sigmoid"]
"""Type of the output of a classifier."""

OutputKey = str | int | None
"""Key, attribute or position of the output tensor; None finds it."""

_TRIAL = 16
"""Number of trial samples that determine the type of an output."""


@dataclass(frozen=True)
class Answers:
    """Forward hook that converts the output of a classifier to logits ``(B, C)``.

    Attributes:
        outputs: Type of the output. One logit or sigmoid ``(B,)`` or ``(B, 1)`` becomes two classes; several sigmoids
            become the logits of their classes.
        key: Key, attribute or position of the tensor in the output; None for ``.logits``, the key ``"logits"``, or the
            first tensor.
    """

    outputs: Literal["logits", "probabilities", "log_probabilities", "sigmoid"]
    key: OutputKey = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], answer: Any) -> Tensor:  # noqa: ARG002
        """Return logits ``(B, C)`` for the output of a network."""
        values = find_tensor(answer, self.key)
        if values.dim() < 2:  # after squeeze(), a batch of one has no dimension for the batch
            values = values.reshape(len(inputs[0]) if inputs else -1, -1)
        values = values.flatten(1)
        if self.outputs == "sigmoid":
            values = torch.special.logit(values, eps=torch.finfo(values.dtype).eps)
        elif self.outputs == "probabilities":
            values = values.clamp_min(torch.finfo(values.dtype).tiny).log()
        return torch.cat([torch.zeros_like(values), values], dim=1) if values.shape[1] == 1 else values

    def attach(self, network: nn.Module) -> nn.Module:
        """Make a network return logits, in place, and return it."""
        hook_output(network, self)
        return network

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)


def find_tensor(answer: Any, key: OutputKey = None) -> Tensor:
    """Return the tensor in a classifier's output: the output itself, or one in a tuple, list, dict or ``ModelOutput``.

    Raises:
        ValueError: If there is none, or none at ``key``.
    """
    if key is not None:
        if isinstance(key, str) and not isinstance(answer, Mapping):
            found = getattr(answer, key, None)
        else:
            try:
                found = answer[key]
            except (LookupError, TypeError):
                found = None
        if not isinstance(found, Tensor):
            raise ValueError(f"no tensor at {key!r} ({_describe(answer)})")
        return found
    if isinstance(answer, Tensor):
        return answer
    candidates: Sequence[Any] = ()
    if isinstance(answer, Mapping):
        candidates = (answer.get("logits"), *answer.values())
    elif isinstance(answer, Sequence) and not isinstance(answer, str):
        candidates = (getattr(answer, "logits", None), *answer)
    else:
        candidates = (getattr(answer, "logits", None),)
    for value in candidates:
        if isinstance(value, Tensor):
            return value
    raise ValueError(f"no tensor ({_describe(answer)})")


def _describe(answer: Any) -> str:
    if isinstance(answer, Mapping):
        return f"its keys are {', '.join(map(repr, answer)) or '(none)'}"
    if isinstance(answer, Tensor):
        return f"it is a tensor of shape {tuple(answer.shape)}"
    size = f" of {len(answer)}" if isinstance(answer, Sequence) else ""
    return f"it is a {type(answer).__name__}{size}"


def answers_of(network: nn.Module) -> Answers | None:
    """Return the hook that converts the output of a network to logits; None for a network without one."""
    return find_hook(network._forward_hooks, Answers)


def restore_answers(network: nn.Module) -> nn.Module:
    """Remove the conversion to logits from a network, in place, and return the network."""
    remove_hooks(network._forward_hooks, Answers)
    return network


def as_classifier(
    network: nn.Module,
    input_shape: Sequence[int],
    outputs: Outputs | Answers = "auto",
    key: OutputKey = None,
    name: str = "network",
) -> nn.Module:
    """Return a network that returns logits ``(B, C)``: the network itself if it does, else a copy with a hook.

    ``"auto"`` decides with 16 normal samples, half of them multiplied by 100. Rows in [0, 1] that sum to 1 are
    probabilities. Other rows in [0, 1], or one number per sample in [0, 1], are sigmoids. Everything else is logits,
    also an output that is the same for all samples.

    Args:
        network: A classifier; it is not changed.
        input_shape: Shape of one sample.
        outputs: Type of its output; or the :class:`Answers` of another network with the same type of output.
        key: See :class:`Answers`.
        name: Name of the network in messages.

    Raises:
        ValueError: If the network does not accept such samples, or its output cannot be converted to logits.
    """
    check_module(network, name)
    if answers_of(network) is not None:
        return network
    answers = outputs if isinstance(outputs, Answers) else _decide(network, input_shape, outputs, key, name)
    if answers is None:
        return network
    return answers.attach(copy_network(network))


def _decide(
    network: nn.Module, input_shape: Sequence[int], outputs: Outputs, key: OutputKey, name: str
) -> Answers | None:
    """Return the hook that a network needs, or None if it returns logits of two or more classes."""
    if outputs not in get_args(Outputs):
        raise ValueError(f"Expected `outputs` to be one of {get_args(Outputs)}, but got {outputs!r}.")
    called = f"{name} {type(network).__name__}"
    materialise(network, input_shape, name)
    weight = first_weight(network)
    x = samples_for_trial(input_shape, _TRIAL)
    x[::2] *= 100  # logits grow with the samples, probabilities do not
    with torch.no_grad(), eval_mode(network):
        answer = call_trial(network, called, x.to(weight))
        single = call_single(network, called, x[:1].to(weight))
    try:
        values = find_tensor(answer, key)
    except ValueError as error:
        raise ValueError(
            f"Expected the output of the {called} to contain a tensor of logits, but got {error}. Set `output_key` to "
            f"its key, attribute or position."
        ) from error
    shape = tuple(values.shape)
    if shape[:1] != (_TRIAL,) or any(size != 1 for size in shape[2:]) or 0 in shape:
        raise ValueError(
            f"Expected the {called} to return one row of logits for each of {_TRIAL} samples, but got {shape}. Give "
            f"a classifier, or set `output_key` if the network returns several tensors."
        )
    rows = values.reshape(_TRIAL, -1)
    if outputs == "auto":
        outputs = _guess(rows)
    elif outputs == "log_probabilities" and rows.shape[1] == 1:
        raise ValueError(
            f"Expected the {called} to return log-probabilities of two or more classes, but got one number for each "
            f"sample. Use outputs=logits or outputs=sigmoid."
        )
    elif outputs in ("probabilities", "sigmoid") and not _in_unit_range(rows):
        raise ValueError(
            f"Expected the {called} to return numbers in [0, 1] with outputs={outputs}, but got "
            f"{float(rows.min()):.3g} to {float(rows.max()):.3g}. Use outputs=logits."
        )
    if outputs == "probabilities" and rows.shape[1] == 1:
        outputs = "sigmoid"
    plain = isinstance(answer, Tensor) and key is None and values.dim() == 2 and rows.shape[1] > 1
    plain = plain and isinstance(single, Tensor) and single.dim() == 2  # squeeze() removes that of a batch of one
    return None if plain and outputs in ("logits", "log_probabilities") else Answers(outputs, key)  # type: ignore[arg-type]


def _in_unit_range(rows: Tensor) -> bool:
    return bool(((rows >= 0) & (rows <= 1)).all())


def _guess(rows: Tensor) -> Outputs:
    """Return the type of the rows of a network's outputs."""
    if not _in_unit_range(rows) or bool((rows == rows[0]).all()):
        return "logits"  # so are log-probabilities; a network that returns the same for all samples tells nothing
    tolerance = max(1e-4, 4 * torch.finfo(rows.dtype).eps)
    if rows.shape[1] > 1 and bool(((rows.double().sum(dim=1) - 1).abs() < tolerance).all()):
        return "probabilities"
    return "sigmoid"


def check_training_answers(network: nn.Module, input_shape: Sequence[int], name: str = "student") -> None:
    """Check that a network returns the same kind of numbers in training mode as in evaluation mode.

    Raises:
        ValueError: If it returns probabilities in one mode only.
    """
    answers = answers_of(network)
    key, bounded = (None, False) if answers is None else (answers.key, answers.outputs in ("probabilities", "sigmoid"))
    copied = set_mode(restore_answers(copy_network(network)), training=True)
    x = samples_for_trial(input_shape, _TRIAL)
    x[::2] *= 100
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        answer = copied(x.to(first_weight(copied)))
    rows = find_tensor(answer, key).reshape(_TRIAL, -1)
    found = _guess(rows)
    if (bounded and not _in_unit_range(rows)) or (not bounded and found == "probabilities"):
        kinds = ("logits", "probabilities") if bounded else ("probabilities", "logits")
        raise ValueError(
            f"Expected the {name} {type(network).__name__} to return the same kind of numbers in both modes, but got "
            f"{kinds[0]} in training and {kinds[1]} in evaluation. Change its forward: return logits in both modes."
        )


def explain_answers(network: nn.Module) -> str:
    """Return a sentence that explains how the output of a network is interpreted."""
    answers = answers_of(network) or Answers("logits")
    place = "" if answers.key is None else f" at {answers.key!r}"
    return f"The output of {type(network).__name__}{place} is read as {answers.outputs.replace('_', '-')}."
