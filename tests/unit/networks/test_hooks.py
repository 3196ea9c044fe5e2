"""The recorder of inputs and outputs of named layers."""

import copy
import pickle
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.networks import LeNet5
from kegnet_pl.networks.hooks import LayerRecorder


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def _itself(name: str, tensor: Tensor) -> Tensor:
    return tensor


def _hooks(network: nn.Module) -> int:
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in network.modules())


def test_collects_inputs_and_outputs_in_the_order_of_computation() -> None:
    network, x = _network(), torch.randn(5, 3)
    with LayerRecorder(network, ["2", "0"], _itself, source="input") as recorder:
        output, values = recorder.call(x)
    assert torch.equal(output, network(x))
    assert list(values) == ["0", "2"]
    assert torch.equal(values["0"], x)
    assert torch.equal(values["2"], network[1](network[0](x)))
    with LayerRecorder(network, ["0"], _itself, source="output") as recorder:
        _, values = recorder.call(x)
    assert torch.equal(values["0"], network[0](x))


def test_the_network_itself_is_a_layer() -> None:
    network, x = nn.BatchNorm1d(3), torch.randn(5, 3)
    with LayerRecorder(network, [""], _itself, source="input") as recorder:
        _, values = recorder.call(x)
    assert torch.equal(values[""], x)


@pytest.mark.parametrize("source", ["input", "output"])
def test_the_context_leaves_no_hook_even_after_an_error(source: Literal["input", "output"]) -> None:
    network = _network()
    with pytest.raises(RuntimeError), LayerRecorder(network, ["0", "2"], _itself, source=source) as recorder:
        assert _hooks(network) == 2
        recorder.call(torch.randn(5, 7))
    assert _hooks(network) == 0
    assert recorder.values is None


def test_open_hooks_record_only_on_request() -> None:
    network, x = _network(), torch.randn(5, 3)
    recorder = LayerRecorder(network, ["0", "2"], _itself, source="output")
    recorder.open()
    network(x)
    assert recorder.values is None
    recorder.network = network[0]  # calls one of the two layers
    assert list(recorder.call(x)[1]) == ["0"]
    network(x)
    assert recorder.values is None


def test_opened_again_it_follows_the_name_to_another_layer() -> None:
    network, x = _network(), torch.randn(5, 3)
    recorder = LayerRecorder(network, ["0"], _itself, source="output")
    recorder.open()
    first, network[0] = network[0], nn.Linear(3, 4)
    recorder.open()
    _, values = recorder.call(x)
    assert _hooks(first) == 0 and _hooks(network) == 1
    assert torch.equal(values["0"], network[0](x))


@pytest.mark.parametrize("source", ["input", "output"])
def test_a_replacement_is_passed_on(source: Literal["input", "output"]) -> None:
    network, x = _network(), torch.randn(5, 3)
    recorder = LayerRecorder(network, ["0"], _itself, source=source, replace=lambda tensor: 2 * tensor)
    with recorder:
        output, values = recorder.call(x)
    expected = network[0](2 * x) if source == "input" else 2 * network[0](x)
    torch.testing.assert_close(output, network[1:](expected))
    assert torch.equal(values["0"], x if source == "input" else network[0](x))


def test_an_unknown_layer() -> None:
    with pytest.raises(AttributeError, match="conv7"):
        LayerRecorder(LeNet5(1, 10), ["conv7"], _itself, source="input").open()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_records_the_copied_network(duplicate: Callable[[LayerRecorder], LayerRecorder]) -> None:
    recorder, x = LayerRecorder(_network(), ["0"], _itself, source="output"), torch.randn(5, 3)
    recorder.open()
    other = duplicate(recorder)
    _, values = other.call(x)
    assert torch.equal(values["0"], other.network[0](x))
    assert recorder.values is None
    other.close()
    assert _hooks(other.network) == 0 and _hooks(recorder.network) == 1


@pytest.mark.parametrize("source", ["input", "output"])
def test_records_under_vmap(source: Literal["input", "output"]) -> None:
    network, x = _network(), torch.randn(6, 5, 3)
    recorder = LayerRecorder(network, ["2"], _itself, source=source)
    recorder.open()

    def record(inputs: Tensor) -> Tensor:
        value: Tensor = recorder.call(inputs)[1]["2"]
        return value

    hidden = network[1](network[0](x))
    torch.testing.assert_close(torch.func.vmap(record)(x), hidden if source == "input" else network[2](hidden))


def test_the_first_value_of_a_layer_ends_the_forward_pass() -> None:
    network, x, later = _network(), torch.randn(5, 3), []
    network[2].register_forward_hook(lambda *_: later.append(1))
    with LayerRecorder(network, ["0"], _itself, source="output") as recorder:
        assert torch.equal(recorder.call_first(x), network[0](x))
        assert not later
        recorder.call(x)
    assert later == [1]
    with LayerRecorder(nn.Sequential(network[1]), [], _itself, source="output") as recorder:
        assert recorder.call_first(x) is None
