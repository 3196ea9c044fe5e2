"""Answers of classifiers as logits: tuples, dicts, probabilities, one sigmoid."""

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl import settings
from kegnet_pl.networks import (
    Answers,
    answers,
    answers_of,
    as_classifier,
    count_classes,
    explain_answers,
    restore_answers,
)


class Output(OrderedDict[str, Tensor]):
    """As a ``ModelOutput`` of transformers: a dict whose items are attributes, too."""

    __getattr__ = OrderedDict.__getitem__


class Heads(NamedTuple):
    """As the outputs of torchvision's Inception."""

    aux: Tensor
    logits: Tensor


class Network(nn.Module):
    """Returns a function of its logits, of three classes by default."""

    def __init__(self, change: Any = lambda logits: logits, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, classes)
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.layer(x))


X = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("change", "outputs"),
    [
        (lambda logits: (logits, logits[:, :1]), "logits"),
        (lambda logits: [None, logits], "logits"),
        (lambda logits: {"features": logits.exp(), "logits": logits}, "logits"),
        (lambda logits: {"prediction": logits}, "logits"),
        (lambda logits: Output(loss=logits.sum(), logits=logits), "logits"),
        (lambda logits: Heads(aux=logits + 1, logits=logits), "logits"),
        (lambda logits: logits[:, :, None, None], "logits"),
        (lambda logits: {"probabilities": logits.softmax(1)}, "probabilities"),
        (lambda logits: logits.softmax(1), "probabilities"),
        (lambda logits: (10 * logits).softmax(1), "probabilities"),
        (lambda logits: logits.sigmoid(), "sigmoid"),
    ],
)
def test_every_answer_becomes_logits(change: Any, outputs: str) -> None:
    network = Network(change)
    classifier = as_classifier(network, (5,))
    answers = answers_of(classifier)
    assert answers == Answers(outputs)  # type: ignore[arg-type]
    expected = network.layer(X)
    logits = classifier(X)
    assert logits.shape == (7, 3)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    if outputs == "logits":
        assert torch.equal(logits, expected)
    elif outputs == "probabilities":
        value = change(expected)
        assert torch.allclose(
            logits.softmax(1), value["probabilities"] if isinstance(value, dict) else value, atol=1e-6
        )
    else:
        assert torch.allclose(logits, expected, atol=1e-4)
    assert count_classes(classifier, (5,)) == 3
    assert answers_of(network) is None, "the original is not changed"
    assert set(classifier.state_dict()) == set(network.state_dict()), "names of weights stay"
    assert type(restore_answers(classifier)(X)) is type(network(X))


@pytest.mark.parametrize("change", [lambda logits: logits, lambda logits: logits.log_softmax(1), torch.relu])
def test_a_network_that_returns_logits_is_returned_itself(change: Any) -> None:
    network = Network(change)
    assert as_classifier(network, (5,)) is network
    assert explain_answers(network) == "The output of Network is read as logits."


@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_number_becomes_two_classes(squeeze: bool, sigmoid: bool) -> None:
    def change(logits: Tensor) -> Tensor:
        values = logits.sigmoid() if sigmoid else logits
        return values[:, 0] if squeeze else values

    network = Network(change, classes=1)
    classifier = as_classifier(network, (5,))
    assert answers_of(classifier) == Answers("sigmoid" if sigmoid else "logits")
    probability = network.layer(X)[:, 0].sigmoid()
    assert torch.allclose(classifier(X).softmax(1), torch.stack([1 - probability, probability], dim=1), atol=1e-6)
    assert count_classes(classifier, (5,)) == 2


def test_small_logits_of_one_class_are_no_sigmoids() -> None:
    network = Network(lambda logits: 0.5 + 0.02 * logits, classes=1)  # in [0, 1] for normal samples
    assert answers_of(as_classifier(network, (5,))) == Answers("logits")


def test_certain_answers_stay_finite_and_have_gradients() -> None:
    for change, outputs in (
        (lambda y: (1e4 * y).softmax(1), "probabilities"),
        (lambda y: (1e4 * y).sigmoid(), "sigmoid"),
    ):
        x = X.clone().requires_grad_()
        logits = as_classifier(Network(change), (5,), outputs)(x)  # type: ignore[arg-type]
        logits.sum().backward()
        assert logits.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("key", ["main", 1, "logits"])
def test_a_key_names_the_tensor(key: str | int) -> None:
    answer = {"main": lambda y: {"aux": -y, "main": y}, 1: lambda y: (-y, y), "logits": lambda y: Heads(-y, y)}[key]
    network = Network(answer)
    assert torch.equal(as_classifier(network, (5,), key=key)(X), network.layer(X))


def test_a_batch_of_one_may_lose_its_dimensions() -> None:
    for classes in (1, 3):
        network = Network(lambda logits: logits.squeeze(), classes=classes)
        classifier = as_classifier(network, (5,), "logits")
        expected = Answers("logits").attach(Network(classes=classes))
        for x in (X, X[:1]):
            assert classifier(x).shape == (len(x), max(classes, 2))
            if classes == 1:
                torch.testing.assert_close(classifier(x), expected(x))


def test_a_constant_network_returns_logits() -> None:
    network = Network()
    nn.init.zeros_(network.layer.weight)
    nn.init.zeros_(network.layer.bias)
    assert as_classifier(network, (5,)) is network


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda y: {}, {}, r"but got no tensor \(its keys are \(none\)\)\. Set `output_key`"),
        (lambda y: "text", {}, r"no tensor \(it is a str of 4\)"),
        (lambda y: {"a": y}, {"key": "b"}, r"no tensor at 'b' \(its keys are 'a'\)"),
        (lambda y: (y,), {"key": 3}, r"no tensor at 3 \(it is a tuple of 1\)"),
        (lambda y: y[:, :, None].expand(-1, -1, 4), {}, r"one row of logits .* but got \(16, 3, 4\)"),
        (lambda y: y.sum(), {}, r"one row of logits .* but got \(\)"),
        (lambda y: y, {"outputs": "probabilities"}, r"numbers in \[0, 1\] with outputs=probabilities, but got -"),
        (lambda y: y[:, :1], {"outputs": "log_probabilities"}, "of two or more classes, but got one number"),
        (lambda y: y, {"outputs": "softmax"}, "`outputs` to be one of .* but got 'softmax'"),
    ],
)  # fmt: skip
def test_what_cannot_become_logits_is_refused(change: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_classifier(Network(change), (5,), **options)


def test_networks_for_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="Networks for text are not supported"):
        as_classifier(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)), (5,))
    by_name = Network()
    by_name.main_input_name = "input_ids"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="but it accepts integer token ids"):
        as_classifier(by_name, (5,))


def test_settings_allow_the_same_outputs() -> None:
    assert answers.Outputs == settings.Outputs


class _ByMode(nn.Module):
    def __init__(self, training: Any, evaluation: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3)
        self.changes = {True: training, False: evaluation}

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.changes[self.training](self.layer(x))
        return logits


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (0, 2)])
def test_probabilities_in_one_mode_only_are_refused(pair: tuple[int, int]) -> None:
    kinds: list[Any] = [lambda logits: logits, lambda logits: logits.softmax(1), torch.sigmoid]
    network = as_classifier(_ByMode(*(kinds[index] for index in pair)), (5,))
    with pytest.raises(ValueError, match=r"same kind of numbers in both modes.*Change its forward: return logits"):
        answers.check_training_answers(network, (5,))
    for kind in kinds:
        answers.check_training_answers(as_classifier(_ByMode(kind, kind), (5,)), (5,))


def test_batches_of_two_and_more_only_are_named() -> None:
    network = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match=r"accepts only larger batches: Expected more than 1 value"):
        as_classifier(network, (5,))
