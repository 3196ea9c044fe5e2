"""Factorisation of convolutions (Tucker-2 over the channels) and of dense layers (PAPER section 4)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorly
import torch
from tensorly.decomposition import partial_tucker, tucker
from torch import Tensor, nn

Ranks = tuple[int, int]
"""``(in_rank, out_rank)``: ranks of the input side and of the output side."""

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Factorisable = nn.Linear | Convolution

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

LARGE = 1_024
"""Inputs of a layer (channels x kernel) above which its decomposition, and the fit of a convolution, take fewer
iterations."""


def is_transposed(layer: nn.Module) -> bool:
    """Return True for a transposed convolution, plain or factorised."""
    if isinstance(layer, TuckerLayer):
        return any(is_transposed(part) for part in layer)
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)


def read_weight(layer: nn.Module) -> Tensor:
    """Return the weight ``(out, in, *kernel)`` of a layer, in the order in which a convolution reads it.

    A transposed convolution is a convolution of its input with zeros between the positions; its kernel is reversed.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return _reverse(weight) if is_transposed(layer) else weight


def _reverse(weight: Tensor) -> Tensor:
    """Return a weight with exchanged sides and reversed kernel, as a transposed convolution needs it."""
    return weight.transpose(0, 1).flip(tuple(range(2, weight.dim())))


def write_weight(layer: nn.Module, values: Tensor) -> None:
    """Set the weight of a layer to ``values (out, in, *kernel)``, as :func:`read_weight` returns them."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if is_transposed(layer):
        values = _reverse(values)
    weight.copy_(values.reshape(weight.shape).to(weight))


def kernel_size(layer: Factorisable) -> int:
    """Return the number of positions of a layer's kernel, 1 for a dense layer."""
    return 1 if isinstance(layer, nn.Linear) else math.prod(layer.kernel_size)


def sides(layer: Factorisable) -> Ranks:
    """Return the full ranks of a layer: its input and output channels or units."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


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


HUGE = 2**22
"""Weights of a matrix above which single precision and random projections are used."""


def is_huge(weight: Tensor) -> bool:
    """Return True for a matrix (a layer without a kernel) of millions of weights."""
    return weight.numel() > HUGE and math.prod(weight.shape[2:]) == 1


def matrix_energies(weight: Tensor) -> np.ndarray:
    """Return the share of the squared singular values of a huge matrix in the first r components, for r = 1, 2, ..."""
    matrix = weight.detach().to("cpu", torch.float32).flatten(1)
    squares = torch.linalg.eigvalsh(smaller_gram(matrix)).flip(0).clamp_min(0).double().numpy()
    total = squares.sum()
    return np.cumsum(squares / total).round(6) if total > 0 else np.ones_like(squares)


def _project(matrix: Tensor, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return core, output factor and input factor of a huge matrix by subspace iteration from a random start.

    Source:
        Halko et al., "Finding Structure with Randomness: Probabilistic Algorithms for Constructing Approximate Matrix
        Decompositions", 2011, algorithm 4.4.
    """
    matrix = matrix.float()
    start = torch.randn(
        matrix.shape[1], min(rank + rank // 10 + 16, *matrix.shape), generator=torch.Generator().manual_seed(0)
    )
    basis = torch.linalg.qr(matrix @ start)[0]
    for _ in range(3):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    small = (basis.T @ matrix).double()
    values, vectors = torch.linalg.eigh(small @ small.T)
    squares, vectors = values[-rank:].clamp_min(1e-30), vectors[:, -rank:]
    in_factor = small.T @ vectors / squares.sqrt()
    return torch.diag(squares.sqrt()).numpy(), (basis.double() @ vectors).numpy(), in_factor.numpy()


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
    values = weight.detach().to("cpu", torch.float64).contiguous()
    in_rank, out_rank = ranks
    kernel = math.prod(values.shape[2:])
    out_real = min(out_rank, in_rank * kernel)
    in_real = min(in_rank, out_real * kernel)
    if is_huge(values) and 3 * out_real <= min(values.shape[:2]):
        core, out_factor, in_factor = _project(values.flatten(1), out_real)
        core = core.reshape(out_real, out_real, *values.shape[2:])
    elif values[0].numel() > LARGE:
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


class TuckerLayer(nn.Sequential):
    """A convolution or dense layer as a chain of smaller ones; it has the attributes of the layer that it replaces.

    The parts are a factor of the inputs (in -> r_in), a core (r_in -> r_out) and a factor of the outputs (r_out -> out,
    with the bias). With ``fold`` redundant parts are merged into others: the core of a layer without a kernel, and the
    factor of a side at its full rank. A slice is an ``nn.Sequential``.

    Attributes:
        ranks: ``(in_rank, out_rank)``.
        fold: True if redundant parts are merged.
    """

    __jit_unused_properties__ = ("weight", "bias")

    ranks: Ranks
    fold: bool
    _roles: tuple[str, ...]

    def __getitem__(self, index: int | slice) -> Any:
        """Return a part, or several as an ``nn.Sequential``."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    @property
    def weight(self) -> Tensor:
        """The weight that the parts make together, in the shape of the layer that they replace; a new tensor."""
        parts = [read_weight(part) for part in self]
        weight = parts[0]
        for part in parts[1:]:
            weight = _multiply(part, weight)
        return _reverse(weight) if is_transposed(self) else weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, a parameter of the last part."""
        return self[-1].bias  # type: ignore[no-any-return]

    @torch.no_grad()
    def set_factors(self, in_factor: Tensor, core: Tensor, out_factor: Tensor) -> None:
        """Set the weights of the parts.

        Args:
            in_factor: ``(in, r_in)``.
            core: ``(r_out, r_in, *kernel)``.
            out_factor: ``(out, r_out)``.
        """
        values = {"in": in_factor.T, "core": core, "out": out_factor}
        if "in" not in self._roles:
            values["core"] = _multiply(values["core"], values["in"])
        if "out" not in self._roles:
            values["core"] = _multiply(values["out"], values["core"])
        if "core" not in self._roles:
            values["out"] = values["out"] @ core.flatten(1)
        for role, part in zip(self._roles, self, strict=True):
            write_weight(part, values[role])


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """Return the weight of two layers in a row, of which at most one has a kernel."""
    if right.dim() == 2 or math.prod(right.shape[2:]) == 1:
        return torch.einsum("or...,ri->oi...", left, right.flatten(1))
    return torch.einsum("or,ri...->oi...", left.flatten(1), right)


def _roles(layer: Factorisable, ranks: Ranks, fold: bool) -> tuple[str, ...]:
    """Return the parts that a factorised layer has."""
    if not fold:
        return ("in", "core", "out")
    if has_one_rank(layer):
        return ("in", "out")
    n_in, n_out = sides(layer)
    return (*(["in"] if ranks[0] < n_in else []), "core", *(["out"] if ranks[1] < n_out else []))


def has_one_rank(layer: Factorisable) -> bool:
    """Return True for a layer without a kernel, whose weight is a matrix."""
    return isinstance(layer, nn.Linear) or (kernel_size(layer) == 1 and not any(layer.padding))


class TuckerConv(TuckerLayer):
    """A convolution as three: pointwise (in -> r_in), a core with the kernel (r_in -> r_out), pointwise (r_out -> out).

    The core has the stride, padding and dilation of ``conv``, whose weights are not used (see :func:`factorise`). It is
    transposed if ``conv`` is.

    Args:
        conv: The convolution to replace, of one, two or three dimensions.
        ranks: ``(in_rank, out_rank)``.
        fold: True to leave out redundant parts, see :class:`TuckerLayer`.

    Raises:
        ValueError: If a rank is out of range or the convolution is grouped.

    Source:
        Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
        2016.
    """

    def __init__(self, conv: Convolution, ranks: Ranks, fold: bool = False) -> None:
        _check_ranks(conv, ranks)
        if conv.groups != 1:
            raise ValueError(f"Expected a convolution with groups=1, but got {conv}. Leave it out of the rules.")
        in_rank, out_rank = ranks
        roles = _roles(conv, ranks, fold)
        like: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        plain = _CONVOLUTIONS[len(conv.kernel_size)]
        spatial: dict[str, Any] = {
            name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        if is_transposed(conv):
            spatial["output_padding"] = conv.output_padding
        bias = conv.bias is not None
        parts: dict[str, nn.Module] = {}
        if "in" in roles:
            parts["in"] = plain(conv.in_channels, in_rank, 1, bias=False, **like)
        if "core" in roles:
            before = in_rank if "in" in roles else conv.in_channels
            after = out_rank if "out" in roles else conv.out_channels
            parts["core"] = type(conv)(before, after, **spatial, bias=bias and "out" not in roles, **like)
        else:
            parts["in"] = type(conv)(conv.in_channels, in_rank, **spatial, bias=False, **like)
        if "out" in roles:
            parts["out"] = plain(out_rank, conv.out_channels, 1, bias=bias, **like)
        super().__init__(*(parts[role] for role in roles))
        self.ranks, self.fold, self._roles = ranks, fold, roles
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, 1
        for name, value in spatial.items():
            setattr(self, name, value)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the output; ``output_size`` is that of a transposed convolution."""
        for part in self:
            x = part(x, output_size) if output_size is not None and is_transposed(part) else part(x)
        return x


class TuckerLinear(TuckerLayer):
    """A dense layer as Linear(in, r_in), Linear(r_in, r_out), Linear(r_out, out, with the bias).

    With ``fold``: Linear(in, r), Linear(r, out, with the bias); both ranks are equal. The weights of ``linear`` are not
    used (see :func:`factorise`).

    Args:
        linear: The dense layer to replace.
        ranks: ``(in_rank, out_rank)``.
        fold: True to leave out redundant parts.

    Raises:
        ValueError: If a rank is out of range.

    Source:
        KegNet, experiments on unstructured data (PAPER section 4).
    """

    def __init__(self, linear: nn.Linear, ranks: Ranks, fold: bool = False) -> None:
        _check_ranks(linear, ranks)
        in_rank, out_rank = ranks
        roles = _roles(linear, ranks, fold)
        like: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        units = {
            "in": (linear.in_features, in_rank, False),
            "core": (in_rank, out_rank, False),
            "out": (out_rank, linear.out_features, linear.bias is not None),
        }
        super().__init__(*(nn.Linear(*units[role], **like) for role in roles))
        self.ranks, self.fold, self._roles = ranks, fold, roles
        self.in_features, self.out_features = linear.in_features, linear.out_features


def empty_copy(layer: Factorisable, ranks: Ranks, fold: bool = False) -> TuckerLayer:
    """Return the factorised form of a layer, with weights of no meaning; it is frozen if the layer is."""
    if fold and has_one_rank(layer):
        ranks = (min(ranks),) * 2
    new = TuckerLinear(layer, ranks, fold) if isinstance(layer, nn.Linear) else TuckerConv(layer, ranks, fold)
    return new.requires_grad_(layer.weight.requires_grad)


def factorise(layer: Factorisable, ranks: Ranks, fold: bool = False) -> TuckerLayer:
    """Return the Tucker factorisation of a convolution (over its channel modes) or dense layer, a new module.

    TensorLy iterates until the error no longer falls, as in the paper. A layer with more than :data:`LARGE` inputs gets
    one iteration from eigenvectors of Gram matrices. This is many times faster, and the error is nearly as low. A
    matrix of millions of weights is projected on a random subspace (ranks up to a third of its side), also with nearly
    the same error.

    Args:
        layer: A dense layer or a convolution of any dimension, possibly transposed.
        ranks: ``(in_rank, out_rank)``.
        fold: True to merge redundant parts, see :class:`TuckerLayer`. A layer without a kernel gets the smaller rank.

    Raises:
        ValueError: If a rank is out of range or a convolution is grouped.
    """
    new = empty_copy(layer, ranks, fold)
    core, in_factor, out_factor = _decompose(read_weight(layer), new.ranks)
    with torch.no_grad():
        new.set_factors(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (in_factor, core, out_factor)))
        if layer.bias is not None:
            new[-1].bias.copy_(layer.bias)
    return new


def same_function(layer: Factorisable) -> TuckerLayer:
    """Return a factorised layer of full rank that computes what a layer does, without a decomposition."""
    weight = read_weight(layer).detach()
    n_out, n_in = weight.shape[:2]
    new = empty_copy(layer, (n_in, n_out), fold=True)
    like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    narrow = new.ranks[0] == n_in  # of a layer without a kernel, both ranks are the smaller side
    with torch.no_grad():
        if new._roles == ("core",):
            write_weight(new[0], weight)
        elif narrow:
            new.set_factors(torch.eye(n_in, **like), torch.eye(n_in, **like), weight.flatten(1))
        else:
            new.set_factors(weight.flatten(1).T, torch.eye(n_out, **like), torch.eye(n_out, **like))
        if layer.bias is not None:
            new[-1].bias.copy_(layer.bias)
    return new


def factorised_parameters(layer: Factorisable, ranks: Ranks, fold: bool = False) -> int:
    """Return the number of parameters of a layer that is factorised at these ranks; arrays of ranks give arrays."""
    (n_in, n_out), (r_in, r_out) = sides(layer), ranks
    bias = 0 if layer.bias is None else n_out
    if fold and has_one_rank(layer):
        return np.minimum(r_in, r_out) * (n_in + n_out) + bias  # type: ignore[no-any-return]
    first, last = n_in * r_in, r_out * n_out
    if fold:
        first, last = first * (np.asarray(r_in) < n_in), last * (np.asarray(r_out) < n_out)  # type: ignore[assignment]
    return first + r_in * r_out * kernel_size(layer) + last + bias


def replace_layer(network: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a layer by a module, under all names of the layer in the network."""
    old = network.get_submodule(name)
    for path in [path for path, layer in network.named_modules(remove_duplicate=False) if layer is old]:
        network.set_submodule(path, new)
