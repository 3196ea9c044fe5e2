"""Several networks that compute together."""

import copy

import pytest
import torch
from torch import nn

from kegnet_pl.networks import Decoder, DenseGenerator, ImageGenerator, StackedModule

COUNT = 3


def _generators(kind: str) -> list[nn.Module]:
    torch.manual_seed(3)
    if kind == "image":
        return [ImageGenerator(2, 4, noise_dim=5) for _ in range(COUNT)]
    if kind == "nearest":
        return [ImageGenerator(2, 4, noise_dim=5, output_norm="batch", upsampling="nearest") for _ in range(COUNT)]
    return [DenseGenerator(6, 4, noise_dim=5, width=8) for _ in range(COUNT)]


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(COUNT, 9, 5), torch.eye(4)[torch.randint(4, (COUNT, 9))]


@pytest.mark.parametrize("kind", ["image", "nearest", "dense"])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_networks_one_after_another(kind: str, training: bool) -> None:
    networks = _generators(kind)
    stacked = StackedModule(networks).double().train(training)
    z, y = (part.double() for part in _inputs())
    separate = [copy.deepcopy(network).double().train(training) for network in networks]
    found, wanted = stacked(z, y), [network(*pair) for network, *pair in zip(separate, z, y, strict=True)]
    torch.testing.assert_close(found, torch.stack(wanted))

    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    for mine, weight in zip(wanted, weights, strict=True):
        (mine * weight).sum().backward()
    for index, network in enumerate(separate):
        for name, parameter in network.named_parameters():
            gradient = stacked.weights[name.replace(".", "/")].grad
            assert gradient is not None and parameter.grad is not None
            torch.testing.assert_close(gradient[index], parameter.grad)
        # Running statistics have moved as they would have, too.
        taken = stacked.take(index, copy.deepcopy(network))
        for name, value in network.state_dict().items():
            torch.testing.assert_close(taken.state_dict()[name], value, msg=name)


def test_networks_are_copied() -> None:
    networks = _generators("dense")
    before = copy.deepcopy(networks[0].state_dict())
    stacked = StackedModule(networks)
    with torch.no_grad():
        for value in stacked.parameters():
            value.add_(1)
    stacked(*_inputs())
    for name, value in networks[0].state_dict().items():
        assert torch.equal(value, before[name]), name


def test_structure_is_nobodys_to_train_or_save() -> None:
    networks = _generators("dense")
    stacked = StackedModule(networks)
    size = sum(value.numel() for value in networks[0].parameters())
    assert sum(value.numel() for value in stacked.parameters()) == COUNT * size
    assert all(len(value) == COUNT for value in stacked.state_dict().values())
    again = StackedModule(_generators("dense")[::-1])
    again.load_state_dict(stacked.state_dict())
    inputs = _inputs()
    assert torch.equal(again.eval()(*inputs), stacked.eval()(*inputs))


def test_what_is_frozen_stays_frozen() -> None:
    networks = [Decoder((6,), 5).requires_grad_(False) for _ in range(2)]
    assert not any(value.requires_grad for value in StackedModule(networks).parameters())


def test_one_network_is_no_stack() -> None:
    with pytest.raises(ValueError, match="two or more networks"):
        StackedModule(_generators("dense")[:1])
