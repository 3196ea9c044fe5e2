"""Tucker-2 factorisation of convolutions and Tucker factorisation of dense layers (PAPER section 4)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorly
import torch
from tensorly.decomposition import partial_tucker, tucker
from torch import Tensor, nn

Ranks = tuple[int, int]
"""``(in_rank, out_rank)``: ranks of the input side and of the output side."""

Factorisable = nn.Conv2d | nn.Linear

LARGE = 1_024
"""Inputs of a layer (channels x kernel) above which its decomposition, and the fit of a convolution, take fewer
iterations."""


def sides(layer: Factorisable) -> Ranks:
    """Return the full ranks of a layer: its input and output channels or units."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def _check_ranks(layer: Factorisable, ranks: Ranks) -> None:
    for side, rank, full in zip(("in", "out"), ranks, sides(layer), strict=True):
        if not 1 <= rank <= full:
            raise ValueError(f"Expected the {side} rank between 1 and {full} for {layer}, but got {rank}.")


def _complete(factor: np.ndarray, columns: int) -> np.ndarray:
    """Add orthonormal columns to a factor with orthonormal columns."""
    if factor.shape[1] == columns:
        return factor
    basis = np.linalg.svd(factor, full_matrices=True)[0]
    return np.hstack([factor, basis[:, factor.shape[1] : columns]])


def smaller_gram(matrix: Tensor) -> Tensor:
    """Return the Gram matrix of the rows or of the columns of a matrix, the smaller one."""
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """Return the first left singular vectors ``(n, rank)`` of a matrix ``(n, m)``, from its smaller Gram matrix."""
    vectors: Tensor = torch.linalg.eigh(smaller_gram(matrix))[1][:, -rank:]
    return vectors if len(matrix) <= matrix.shape[1] else torch.linalg.qr(matrix @ vectors)[0]


def _truncate(weight: Tensor, out_rank: int, in_rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return core, output factor and input factor by a truncated HOSVD and one round of alternating least squares."""
    tensor = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    out_factor = _leading(tensor.flatten(1), out_rank)
    in_factor = _leading(torch.einsum("oik,op->ipk", tensor, out_factor).flatten(1), in_rank)
    out_factor = _leading(torch.einsum("oik,iq->oqk", tensor, in_factor).flatten(1), out_rank)
    core = torch.einsum("oik,op,iq->pqk", tensor, out_factor, in_factor)
    return core.reshape(out_rank, in_rank, *weight.shape[2:]).numpy(), out_factor.numpy(), in_factor.numpy()


def _decompose(weight: Tensor, ranks: Ranks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return core ``(r_out, r_in, ...)``, input factor ``(in, r_in)`` and output factor ``(out, r_out)`` of a weight.

    The rank of a side is at most the product of the other side's rank and the kernel size. Further components get
    orthonormal directions, with zeros in the core: the function is the same, and they can be trained.
    """
    values = weight.detach().to("cpu", torch.float64)
    in_rank, out_rank = ranks
    kernel = math.prod(values.shape[2:])
    out_real = min(out_rank, in_rank * kernel)
    in_real = min(in_rank, out_real * kernel)
    if values[0].numel() > LARGE:
        core, out_factor, in_factor = _truncate(values, out_real, in_real)
    else:
        with tensorly.backend_context("numpy", local_threadsafe=True):
            if values.ndim == 2:
                core, (out_factor, in_factor) = tucker(values.numpy(), rank=[out_real, in_real], init="svd")
            else:
                (core, (out_factor, in_factor)), _ = partial_tucker(
                    values.numpy(), rank=[out_real, in_real], modes=[0, 1], init="svd"
                )
    padding = [(0, out_rank - out_real), (0, in_rank - in_real)] + [(0, 0)] * (values.ndim - 2)
    return np.pad(core, padding), _complete(in_factor, in_rank), _complete(out_factor, out_rank)


class TuckerConv2d(nn.Sequential):
    """A ``k x k`` convolution as 1x1 (in -> r_in), k x k core (r_in -> r_out), 1x1 (r_out -> out, with the bias).

    The core has the stride, padding and dilation of ``conv``, whose weights are not used (see :func:`factorise`).

    Raises:
        ValueError: If a rank is out of range or the convolution is grouped.

    Source:
        Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
        2016.
    """

    def __init__(self, conv: nn.Conv2d, ranks: Ranks) -> None:
        _check_ranks(conv, ranks)
        if conv.groups != 1:
            raise ValueError(f"Expected a convolution with groups=1, but got {conv}. Leave it out of the rules.")
        in_rank, out_rank = ranks
        like: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        super().__init__(
            nn.Conv2d(conv.in_channels, in_rank, 1, bias=False, **like),
            nn.Conv2d(
                in_rank,
                out_rank,
                conv.kernel_size,  # type: ignore[arg-type]
                stride=conv.stride,  # type: ignore[arg-type]
                padding=conv.padding,  # type: ignore[arg-type]
                dilation=conv.dilation,  # type: ignore[arg-type]
                padding_mode=conv.padding_mode,
                bias=False,
                **like,
            ),
            nn.Conv2d(out_rank, conv.out_channels, 1, bias=conv.bias is not None, **like),
        )


class TuckerLinear(nn.Sequential):
    """A dense layer as Linear(in, r_in), Linear(r_in, r_out), Linear(r_out, out, with the bias).

    The weights of ``linear`` are not used (see :func:`factorise`).

    Raises:
        ValueError: If a rank is out of range.

    Source:
        KegNet, experiments on unstructured data (PAPER section 4).
    """

    def __init__(self, linear: nn.Linear, ranks: Ranks) -> None:
        _check_ranks(linear, ranks)
        in_rank, out_rank = ranks
        like: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        super().__init__(
            nn.Linear(linear.in_features, in_rank, bias=False, **like),
            nn.Linear(in_rank, out_rank, bias=False, **like),
            nn.Linear(out_rank, linear.out_features, bias=linear.bias is not None, **like),
        )


def _empty_copy(layer: Factorisable, ranks: Ranks) -> TuckerConv2d | TuckerLinear:
    return TuckerConv2d(layer, ranks) if isinstance(layer, nn.Conv2d) else TuckerLinear(layer, ranks)


def factorise(layer: Factorisable, ranks: Ranks) -> TuckerConv2d | TuckerLinear:
    """Return the Tucker factorisation of a convolution (over its channel modes) or dense layer, a new module.

    TensorLy iterates until the error no longer falls, as in the paper. A layer with more than :data:`LARGE` inputs
    gets one iteration from eigenvectors of Gram matrices, many times faster; its error is nearly as low.

    Raises:
        ValueError: If a rank is out of range or a convolution is grouped.
    """
    new = _empty_copy(layer, ranks)
    core, in_factor, out_factor = _decompose(layer.weight, ranks)
    with torch.no_grad():
        for part, values in zip(new, (in_factor.T, core, out_factor), strict=True):
            weight = torch.from_numpy(np.ascontiguousarray(values)).reshape(part.weight.shape)  # type: ignore[arg-type]
            part.weight.copy_(weight)  # type: ignore[operator]
        if layer.bias is not None:
            new[-1].bias.copy_(layer.bias)  # type: ignore[operator]
    return new


def factorised_parameters(layer: Factorisable, ranks: Ranks) -> int:
    """Return the number of parameters of a layer that is factorised at these ranks."""
    (n_in, n_out), (r_in, r_out) = sides(layer), ranks
    kernel = math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
    return n_in * r_in + r_in * r_out * kernel + r_out * n_out + (0 if layer.bias is None else n_out)


def replace_layer(network: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a layer by a module, under all names of the layer in the network."""
    old = network.get_submodule(name)
    for path in [path for path, layer in network.named_modules(remove_duplicate=False) if layer is old]:
        network.set_submodule(path, new)


def restore_structure(network: nn.Module, ranks: Mapping[str, Ranks]) -> nn.Module:
    """Replace layers of a network by their compressed form, without weights, and return the network.

    Args:
        network: The uncompressed network; changed in place.
        ranks: ``(in_rank, out_rank)`` by layer name, from a report.

    Raises:
        AttributeError: If a layer does not exist.
    """
    for name, pair in ranks.items():
        replace_layer(network, name, _empty_copy(network.get_submodule(name), pair))  # type: ignore[arg-type]
    return network
