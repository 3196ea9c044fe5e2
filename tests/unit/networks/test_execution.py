"""Execution of networks: modes, memory layout, precision and chunk size."""

import copy

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.networks import MLP, ResNet14, prefer_channels_last
from kegnet_pl.networks.execution import at_least_float32, copies_to_time, copy_in_channels_last, is_channels_last


class _Viewing(nn.Module):
    """Takes it for granted that its tensors are contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4 * 30 * 30, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        logits: Tensor = self.linear(h.view(len(h), -1))
        return logits


def test_execution_same_values_in_another_layout() -> None:
    network = ResNet14(3, 10).eval()
    before = copy.deepcopy(network)
    assert prefer_channels_last(network, (3, 32, 32)) is network
    assert is_channels_last(network)
    for name, value in before.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(x), before(x), rtol=1e-4, atol=1e-5)


def test_execution_networks_that_need_contiguous_tensors_are_left_alone() -> None:
    network = _Viewing()
    assert not is_channels_last(prefer_channels_last(network, (3, 32, 32)))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 2)
    with pytest.raises(RuntimeError, match="view"):
        network.to(memory_format=torch.channels_last)(  # type: ignore[call-overload]
            torch.zeros(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        )


def test_execution_tables_have_no_channels() -> None:
    network = MLP(4, 3)
    assert prefer_channels_last(network, (4,)) is network


def test_execution_nothing_is_trained_by_trying() -> None:
    network = ResNet14(3, 10).train()
    prefer_channels_last(network, (3, 32, 32))
    assert network.training
    assert network.norm1.num_batches_tracked == 0
    assert all(value.grad is None for value in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_execution_a_copy_in_channels_last(dtype: torch.dtype) -> None:
    network = ResNet14(3, 10).to(dtype)
    copied = copy_in_channels_last(network, (3, 32, 32))
    assert copied is not None and is_channels_last(copied) and not copied.training
    assert not is_channels_last(network) and network.training
    assert all(value.grad is None for value in copied.parameters())


class _Strict(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        assert x.is_contiguous(), "one layout"
        return super().forward(x)


@pytest.mark.parametrize(
    ("network", "shape"),
    [(_Viewing(), (3, 32, 32)), (_Strict(3, 2, 3), (3, 32, 32)), (MLP(4, 3), (4,)), (nn.Flatten(), (3, 32, 32))],
)
def test_execution_no_copy_of_networks_that_need_another_layout(network: nn.Module, shape: tuple[int, ...]) -> None:
    assert copy_in_channels_last(network, shape) is None


class _Classes(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(dim=(2, 3)).argmax(dim=1)


def test_execution_a_network_without_gradients_can_be_timed_but_not_trained_in_channels_last() -> None:
    with torch.inference_mode():
        assert copy_in_channels_last(_Classes(3, 2, 3), (3, 32, 32)) is not None
    assert copy_in_channels_last(_Classes(3, 2, 3), (3, 32, 32), backward=True) is None


@pytest.mark.parametrize("other", [_Strict(3, 2, 3), nn.Conv2d(3, 2, 3), nn.Linear(32, 2)])
def test_execution_compared_networks_have_one_layout(other: nn.Module) -> None:
    student = nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    copies = copies_to_time([other, student], (3, 32, 32))
    assert is_channels_last(copies[1]) is not isinstance(other, _Strict) and not copies[1].training
    if not isinstance(other, nn.Linear):
        assert is_channels_last(copies[0]) is is_channels_last(copies[1])
    assert is_channels_last(student) and student.training and not is_channels_last(other)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision_widens_half_precision_alone(before: torch.dtype, after: torch.dtype) -> None:
    x = torch.tensor([0.5, -2.0], dtype=before)

    assert at_least_float32(x).dtype == after
    assert at_least_float32(x).tolist() == [0.5, -2.0]
