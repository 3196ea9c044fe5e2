"""Optimisers, the norm of gradients, and compiled networks."""

import functools
import inspect
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kegnet_pl.runtime.errors import ConfigError

OptimizerFactory = Callable[[Iterator[nn.Parameter] | list[nn.Parameter]], torch.optim.Optimizer]
"""Function of parameters that returns an optimiser: ``functools.partial(torch.optim.Adam, lr=1e-3)``."""


def gradient_norm(gradients: Sequence[Tensor], networks: int = 1) -> Tensor:
    """Return the Euclidean norm of all gradients together, a scalar in float32 at least.

    If K ``networks`` are stacked, gradients are ``(K, ...)`` and the result is ``(K,)``.
    """
    gradients = [torch.view_as_real(value) if value.is_complex() else value for value in gradients]
    dtype = torch.promote_types(gradients[0].dtype, torch.float32)
    if networks == 1:
        norms = [torch.linalg.vector_norm(gradient, dtype=dtype) for gradient in gradients]
    else:
        norms = [torch.linalg.vector_norm(gradient.reshape(networks, -1), dim=1, dtype=dtype) for gradient in gradients]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return norm


def compiled(network: nn.Module, device: torch.device) -> Callable[..., Any]:
    """Return a network compiled for a device; on a GPU its kernels are launched together, as CUDA graphs.

    Raises:
        ConfigError: If there is no compiler.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError(
            "Expected a C++ compiler to compile networks on a CPU, but found neither g++ nor clang++ (nor $CXX). "
            "Install one, or set generator.compile=false and student.compile=false."
        )
    run: Callable[..., Any] = torch.compile(network, mode="reduce-overhead" if device.type == "cuda" else None)
    if device.type == "cpu":
        return run

    def next_step(*inputs: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be overwritten
        return run(*inputs)

    return next_step


def with_learning_rate(factory: OptimizerFactory, lr: float) -> OptimizerFactory:
    """Return a factory with another learning rate.

    It replaces the keyword of a ``functools.partial`` and does not wrap it, since :func:`fused` reads its class.
    """
    if isinstance(factory, functools.partial):
        return functools.partial(factory.func, *factory.args, **factory.keywords | {"lr": lr})
    make: Any = factory
    return functools.partial(make, lr=lr)


def fused(factory: OptimizerFactory, precision: str, parameters: Sequence[Tensor]) -> OptimizerFactory:
    """Return a factory of optimisers that update all parameters in one call, unless the user chose otherwise.

    A ``functools.partial`` of a class of torch that has such an implementation is changed; anything else is returned as
    it is. Under float16, Lightning's scaler cannot combine a fused optimiser with gradient clipping. Complex weights
    have no fused update.
    """
    if not all(value.is_floating_point() for value in parameters):
        return factory
    if not isinstance(factory, functools.partial) or not inspect.isclass(factory.func) or precision == "16-mixed":
        return factory
    offers = "fused" in inspect.signature(factory.func).parameters
    decided = {"fused", "foreach", "differentiable"} & set(factory.keywords)
    return functools.partial(factory, fused=True) if offers and not decided else factory
