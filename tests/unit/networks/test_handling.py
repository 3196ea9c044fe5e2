"""The door for modules of users: copies, modes, moves and frozen weights."""

import copy
import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import kegnet_pl
from kegnet_pl.networks import FrozenModule
from kegnet_pl.networks.handling import (
    copy_network,
    freeze,
    frozen_copy,
    move,
    set_mode,
    unfreeze_frozen,
    warn_of_hooks,
)


class _Silent(nn.Sequential):
    """Methods that return nothing, and keep one layer in evaluation mode."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        self.calls = [*getattr(self, "calls", []), mode]
        super().train(mode)
        self[0].training = False

    def eval(self) -> None:  # type: ignore[override]
        super().eval()

    def to(self, *place: Any, **options: Any) -> None:  # type: ignore[override]
        super().to(*place, **options)

    def requires_grad_(self, requires_grad: bool = True) -> None:  # type: ignore[override]
        raise AssertionError("is not called")


def _layers() -> tuple[nn.Module, ...]:
    torch.manual_seed(0)
    return nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)


def test_nothing_that_a_method_returns_is_used() -> None:
    network, x = _Silent(*_layers()), torch.randn(5, 3)
    expected = network(x)
    frozen = FrozenModule(nn.Sequential(network, nn.Softmax(dim=1)))
    assert not any(value.requires_grad for value in frozen.parameters())
    assert all(value.requires_grad for value in network.parameters())
    assert set_mode(network, training=True) is network and network.calls == [True], "it is called once"
    assert network.training and not network[0].training
    assert not set_mode(network, training=False).training
    assert move(network, torch.float64) is network and network[0].weight.dtype == torch.float64
    torch.testing.assert_close(frozen_copy(network)(x.double()).float(), expected)


def test_a_train_that_is_no_mode_is_not_called() -> None:
    class Trained(nn.Sequential):
        def train(self, loader: Any, epochs: int = 1) -> None:  # type: ignore[override]
            raise AssertionError("is not called")

        def eval(self, loader: Any) -> None:  # type: ignore[override]
            raise AssertionError("is not called")

    network = nn.Sequential(Trained(*_layers(), _Silent(nn.Linear(2, 2))))
    assert set_mode(network, training=False) is network
    assert not any(module.training for module in network.modules())
    set_mode(network, training=True)
    assert [module.training for module in network[0]] == [True, True, True, True]
    assert not network[0][3][0].training, "its own train keeps it"


def _odd(kind: str) -> Any:
    """Return a method ``train`` whose arguments are not those of torch's."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("is not called")

    methods: dict[str, Any] = {
        "loader": lambda self, *loader: fail(), "verbose": lambda self, verbose: fail(),
        "flag": lambda self, verbose=True: fail(), "epochs": lambda self, epochs=1: fail(),
        "keyword": lambda self, *, mode=True: fail(), "property": property(fail), "text": "full",
    }  # fmt: skip
    return methods[kind]


@pytest.mark.parametrize("kind", ["loader", "verbose", "flag", "epochs", "keyword", "property", "text"])
def test_an_odd_train_is_not_called_by_its_parents_either(kind: str) -> None:
    odd = type("Odd", (nn.Sequential,), {"train": _odd(kind)})
    network = _Silent(nn.Linear(3, 3), odd(*_layers()))
    for training in (False, True):
        set_mode(network, training)
        assert {module.training for module in network.modules()} == {training}


def test_a_train_that_passes_its_arguments_on_is_called() -> None:
    class Passes(nn.Sequential):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            super().train(*args, **kwargs)
            self[0].training = False
            return self

    class Keeps(nn.Sequential):
        def train(self, training: bool = True) -> Any:
            return super().train(training and False)

    network = set_mode(nn.Sequential(Passes(*_layers()), Keeps(*_layers())), training=True)
    assert not network[0][0].training and network[0][1].training and not network[1].training


def test_an_eval_that_evaluates_or_fails_still_ends_in_evaluation_mode() -> None:
    class Evaluates(nn.Sequential):
        def eval(self) -> Any:
            return {"accuracy": 1.0}

    class Fails(nn.Sequential):
        def eval(self) -> Any:
            return self.loader

        def train(self, mode: bool = True) -> Any:
            return self.loader

    for kind in (Evaluates, Fails):
        network = set_mode(kind(*_layers()), training=True)
        assert all(module.training for module in network.modules())
        assert not any(module.training for module in set_mode(network, training=False).modules())


class _Keeps(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = {"last": [(super().forward(x),)]}
        self.register_buffer("mean", self.seen["last"][0][0].mean(), persistent=False)
        return self.seen["last"][0][0]


def _change(kind: str) -> nn.Module:
    network: nn.Module = nn.Sequential(*_layers())
    if kind == "activation":
        network = _Keeps(*_layers())
    elif kind == "weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(network[0])
    elif kind == "spectral_norm":
        nn.utils.spectral_norm(network[0])
    elif kind == "parametrized":
        nn.utils.parametrizations.weight_norm(network[0])
    elif kind == "pruned":
        prune.l1_unstructured(network[0], "weight", 0.5)
    elif kind == "lambda":
        network.forward = lambda x: nn.Sequential.forward(network, x)  # type: ignore[method-assign]
    elif kind == "decorated":
        network.forward = torch.enable_grad()(network.forward)  # type: ignore[method-assign]
    elif kind == "hook":
        network.register_forward_hook(lambda _, inputs, output: output + network[0](inputs[0]).sum(1, keepdim=True))
    elif kind == "bound":
        network.forward = functools.partial(type(network).forward, network)  # type: ignore[method-assign]
    return network


@pytest.mark.parametrize(
    "kind",
    ["activation", "weight_norm", "spectral_norm", "parametrized", "pruned", "lambda", "decorated", "hook", "bound"],
)
def test_networks_with_computed_tensors_are_copied(kind: str) -> None:
    network, x = _change(kind), torch.randn(5, 3)
    network(x)  # with gradients, as after any training
    copied = copy_network(network)
    network.eval(), copied.eval()
    before = network(x)
    assert torch.equal(copied(x), before)
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
    assert torch.equal(copied(x), before), "the copy computes with its own weights"
    own = {value.data_ptr() for value in network.parameters()}
    assert not own & {value.data_ptr() for value in copied.parameters()}


@pytest.mark.parametrize(
    ("place", "named"), [(lambda network: network, "`lock`"), (lambda network: network[2], r"`2\.lock`")]
)
def test_the_attribute_that_cannot_be_copied_is_named(place: Callable[[Any], nn.Module], named: str) -> None:
    network = nn.Sequential(*_layers())
    place(network).lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=rf"failed at {named}: cannot pickle"):
        copy_network(network)
    network = nn.Sequential(*_layers())
    lock = threading.Lock()
    place(network).register_forward_hook(functools.partial(lambda lock, *_: None, lock))
    with pytest.raises(ValueError, match="_forward_hooks`: cannot pickle"):
        copy_network(network)


def test_a_copy_that_is_none_is_refused() -> None:
    class Same(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            return self

    class Fails(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            raise NotImplementedError("not for you")

    with pytest.raises(ValueError, match="__deepcopy__ returned itself"):
        copy_network(Same(*_layers()))
    with pytest.raises(ValueError, match=r"`0.__deepcopy__`: not for you"):
        copy_network(nn.Sequential(Fails(*_layers())))


def test_tensors_of_inference_mode_become_trainable() -> None:
    with torch.inference_mode():
        network = nn.Sequential(*_layers())
    copied = copy_network(network)
    copied(torch.randn(5, 3)).sum().backward()
    assert copied[0].weight.grad is not None


def test_frozen_and_whole_number_weights_stay() -> None:
    network = nn.Sequential(*_layers())
    network.steps = nn.Parameter(torch.tensor(3), requires_grad=False)
    network[0].requires_grad_(False)
    assert not unfreeze_frozen(network) and not network[0].weight.requires_grad
    assert unfreeze_frozen(freeze(network))
    assert [value.requires_grad for value in network.parameters()] == [False, True, True, True, True]


def test_copies_leave_backward_hooks_and_say_that_they_keep_others() -> None:
    network, called = nn.Sequential(*_layers()), list[str]()
    network[0].register_full_backward_hook(lambda *_: called.append("backward"))
    copied = copy_network(network)
    copied(torch.randn(5, 3)).sum().backward()
    assert not called and network[0]._backward_hooks
    nn.utils.spectral_norm(network[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_hooks(network)
    network[0].register_forward_hook(lambda *_: called.append("forward"))
    with pytest.warns(UserWarning, match=r"forward hooks \(.*lambda.* of 0\). Copies of the network keep these"):
        warn_of_hooks(copy.copy(network))


@pytest.mark.parametrize("how", ["default", "list"])
def test_a_copy_that_calls_the_original_is_refused(how: str) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 20), nn.Linear(20, 3)
            layers = [self.first, self.second]
            if how == "default":
                self.forward = lambda x, me=self: me.second(me.first(x).relu())  # type: ignore[assignment]
            else:
                self.forward = lambda x: layers[1](layers[0](x).relu())  # type: ignore[assignment]

    with pytest.raises(ValueError, match="Expected a copy of Network to call its own layers, but it calls"):
        kegnet_pl.compress(Network(), 8, 1.5, fit="weights", progress=False)
