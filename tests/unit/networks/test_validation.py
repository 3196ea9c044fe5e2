"""Checks of the outputs of classifiers, generators and decoders."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.networks import Decoder, DenseGenerator, count_classes
from kegnet_pl.networks.validation import check_generator, check_gradient


class Answer(nn.Module):
    """Returns what a function makes of its logits."""

    def __init__(self, change: Any = lambda logits: logits) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.layers(x))


@pytest.mark.parametrize("change", [lambda logits: logits, lambda logits: logits.log_softmax(1), torch.relu])
def test_classes_are_counted(change: Any) -> None:
    assert count_classes(Answer(change), (5,)) == 3


def test_modes_and_statistics_stay() -> None:
    network = Answer().train()
    network.layers[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_classes(network, (5,))
    assert (network.training, network.layers.training, network.layers[1].training) == (True, True, False)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match=r"accept samples of shape \(4,\), but it failed: [^.]*\.$"):
        count_classes(network, (4,))
    assert (network.training, network.layers[1].training) == (True, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits.softmax(1), "the teacher Answer to return logits, but got probabilities"),
        (lambda logits: (logits, logits), "but got tuple"),
        (lambda logits: logits[:, 0], r"but got \(2,\)"),
        (lambda logits: logits[:, :1], r"but got \(2, 1\)"),
        (lambda logits: logits[:1], r"but got \(1, 3\)"),
    ],
)
def test_what_is_not_logits_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_classes(Answer(change), (5,), "teacher")


def test_weights_of_another_precision_are_named() -> None:
    with pytest.raises(ValueError, match=r"Its weights are torch\.float64: call its method float\(\)"):
        count_classes(Answer().double(), (5,))


def test_what_is_not_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the network to be a torch\.nn\.Module, but got 'a\.pt'"):
        count_classes("a.pt", (5,))  # type: ignore[arg-type]


def test_a_generator_that_fits_is_left_as_it_was() -> None:
    generator, decoder = DenseGenerator(5, 3, 4).train(), Decoder((5,), 4, blocks=1).train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    check_generator(generator, decoder, (5,), 3)
    assert generator.training and decoder.training
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


@pytest.mark.parametrize(
    ("generator", "decoder", "message"),
    [
        (nn.Identity(), Decoder((5,), 4, blocks=1), "attributes `noise_dim` and `classes`, but got Identity"),
        (DenseGenerator(5, 2, 4), Decoder((5,), 4, blocks=1), "generator of 3 classes, but got one of 2"),
        (DenseGenerator(6, 3, 4), Decoder((5,), 4, blocks=1), r"samples \(5,\), but got one of \(6,\)"),
        (DenseGenerator(5, 3, 4), Decoder((5,), 7, blocks=1), r"generator's 4 noise dimensions, but got one of \(7,\)"),
        (DenseGenerator(5, 3, 4), Decoder((6,), 4, blocks=1), r"decoder Decoder to accept \(2, 5\), but it failed"),
    ],
)
def test_what_does_not_fit_is_named(generator: nn.Module, decoder: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_generator(generator, decoder, (5,), 3)


def test_the_check_leaves_the_random_state_as_it_was() -> None:
    class Noisy(DenseGenerator):
        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            x: Tensor = super().forward(z, y)
            return x + torch.randn_like(x)

    state = torch.random.get_rng_state()
    generator, decoder = Noisy(5, 3, 4), Decoder((5,), 4, blocks=1)
    torch.random.set_rng_state(state)
    check_generator(generator, decoder, (5,), 3)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: logits.detach(), "runs under torch.no_grad or inference_mode, or detaches"),
        (lambda logits: logits.round() + logits.detach(), "do not depend on the input"),
        (lambda logits: torch.from_numpy(logits.numpy()), "Can't call numpy"),
        (lambda logits: 0 * logits, "do not depend on the input"),
    ],
)
def test_a_network_without_gradients_by_its_input_is_named(change: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"teacher Answer to pass gradients .* but got none: .*{reason}"):
        check_gradient(Answer(change), (5,))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_found_in_any_mode_and_leave_no_trace(context: Any) -> None:
    network = Answer(lambda logits: logits.softmax(1)).train()
    with context():
        check_gradient(network, (5,))
    assert network.training and all(value.grad is None for value in network.parameters())
    frozen = Answer().requires_grad_(False)
    frozen.forward = context()(frozen.forward)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="inference_mode"):
        check_gradient(frozen, (5,))
