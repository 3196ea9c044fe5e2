"""The diversity loss never holds a tensor of batch x batch x pixels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kegnet_pl.losses import DiversityLoss, GeneratedBatch
from kegnet_pl.losses.diversity import Distance
from tests.unit.losses.test_diversity import direct

DISTANCES: tuple[Distance, ...] = ("l1", "l2", "cosine")
each_distance = pytest.mark.parametrize("distance", DISTANCES)

BATCH, PIXELS = 256, 3072  # SVHN at the paper's batch size: 805 MB in float32 for batch x batch x pixels


class _Recorder(TorchDispatchMode):
    """Notes every operator and the size of everything that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators.add(func.overloadpacket.__name__)
        self.largest = max([self.largest, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


def _record(
    loss: Callable[[Tensor, Tensor], Tensor], batch: int, pixels: int, device: str = "cpu"
) -> tuple[_Recorder, _Recorder]:
    """Recorders of the forward and the backward pass."""
    z = torch.randn(batch, 10, device=device, requires_grad=True)
    x = torch.randn(batch, pixels, device=device, requires_grad=True)
    forward, backward = _Recorder(), _Recorder()
    with forward:
        value = loss(z, x)
    with backward:
        value.backward()
    assert x.grad is not None
    return forward, backward


def _ours(distance: Distance) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(z: Tensor, x: Tensor) -> Tensor:
        empty = torch.zeros(len(z), 2)
        return DiversityLoss(distance)(GeneratedBatch(z, empty, x, empty))

    return loss


@each_distance
def test_the_recorder_sees_what_it_looks_for(distance: Distance) -> None:
    """The direct formula is caught in both passes."""
    for recorder in _record(lambda z, x: direct(z, x, distance), 16, 40):
        assert recorder.largest == 16 * 16 * 40


@each_distance
def test_no_operator_returns_batch_x_batch_x_pixels(distance: Distance) -> None:
    for recorder in _record(_ours(distance), BATCH, PIXELS):
        assert BATCH * BATCH <= recorder.largest <= 2 * (BATCH * BATCH + BATCH * PIXELS)


def test_l1_never_looks_at_pairs() -> None:
    """On CUDA the kernel of ``_cdist_backward`` allocates (B, B, D) inside, where no dispatch mode sees it.

    See ``cdist_backward_kernel_impl`` in torch's aten/src/ATen/native/cuda/DistanceKernel.cu and pytorch#24345.
    """

    def ours(z: Tensor, x: Tensor) -> Tensor:
        return _ours("l1")(z.detach(), x)

    forward, backward = _record(ours, BATCH, 300)
    assert not {name for name in forward.operators | backward.operators if "cdist" in name}
    assert max(forward.largest, backward.largest) <= (BATCH + 1) * 300  # one running sum more than samples


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_distance
def test_peak_memory_on_a_gpu(distance: Distance) -> None:
    _record(_ours(distance), BATCH, PIXELS, "cuda")  # workspaces of the libraries
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _record(_ours(distance), BATCH, PIXELS, "cuda")

    assert torch.cuda.max_memory_allocated() - before < 4 * BATCH * BATCH * PIXELS / 4
