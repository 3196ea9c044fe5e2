import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.losses import (
    ClassifierLoss,
    DecoderLoss,
    DiversityLoss,
    GeneratedBatch,
    GeneratorLoss,
    GeneratorObjective,
    StatisticsLoss,
)
from tests.unit.losses.samples import random_batch


class Never(GeneratorLoss):
    """Must not be computed."""

    def forward(self, batch: GeneratedBatch) -> Tensor:
        raise AssertionError("a term of weight 0 was computed")


class Scaled(GeneratorLoss):
    """A term with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: GeneratedBatch) -> Tensor:
        return self.scale * batch.x.mean()


def _kegnet() -> dict[str, GeneratorLoss]:
    return {"classifier": ClassifierLoss(), "decoder": DecoderLoss(), "diversity": DiversityLoss()}


def test_is_the_weighted_sum_and_tells_the_terms_unweighted() -> None:
    batch, terms = random_batch(), _kegnet()
    weights = {"classifier": 1.0, "decoder": 0.5, "diversity": 10.0}
    total, parts = GeneratorObjective(terms, weights)(batch)

    assert parts == {name: term(batch) for name, term in terms.items()}
    assert total.shape == ()
    expected = parts["classifier"] + 0.5 * parts["decoder"] + 10 * parts["diversity"]
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=0)


def test_a_term_of_weight_zero_is_not_computed() -> None:
    objective = GeneratorObjective({"classifier": ClassifierLoss(), "never": Never()}, {"classifier": 2, "never": 0})
    total, parts = objective(random_batch())

    assert set(parts) == {"classifier"}
    torch.testing.assert_close(total, 2 * parts["classifier"])


def test_gradient_is_the_weighted_sum_of_gradients() -> None:
    batch = random_batch()
    x, logits = batch.x.requires_grad_(), batch.logits.requires_grad_()
    weights = {"classifier": 3.0, "decoder": 0.0, "diversity": 10.0}
    total, parts = GeneratorObjective(_kegnet(), weights)(batch)
    actual = torch.autograd.grad(total, (x, logits), retain_graph=True)

    torch.testing.assert_close(actual[0], 10 * torch.autograd.grad(parts["diversity"], x)[0])
    torch.testing.assert_close(actual[1], 3 * torch.autograd.grad(parts["classifier"], logits)[0])


@pytest.mark.parametrize(("weight", "uses"), [(1.0, True), (0.0, False)])
def test_knows_whether_a_decoder_is_needed(weight: float, uses: bool) -> None:
    objective = GeneratorObjective(_kegnet(), {"classifier": 1.0, "decoder": weight, "diversity": 0.0})

    assert objective.uses_decoder is uses
    if not uses:
        assert objective(replace(random_batch(), z_decoded=None))[0].isfinite()


@pytest.mark.parametrize(("weight", "uses"), [(1.0, True), (0.0, False)])
def test_knows_whether_statistics_are_needed(weight: float, uses: bool) -> None:
    terms = {"classifier": ClassifierLoss(), "statistics": StatisticsLoss()}
    assert GeneratorObjective(terms, {"classifier": 1.0, "statistics": weight}).uses_statistics is uses


def test_holds_the_parameters_of_its_terms() -> None:
    objective = GeneratorObjective({"classifier": ClassifierLoss(), "own": Scaled()}, {"classifier": 1.0, "own": 1.0})

    assert [name for name, _ in objective.named_parameters()] == ["terms.own.scale"]


@pytest.mark.parametrize("weight", [-1.0, -1e-9, math.nan, math.inf])
def test_bad_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=rf"weight of loss 'decoder' to be zero or more, but got {weight}"):
        GeneratorObjective(_kegnet(), {"classifier": 1.0, "decoder": weight, "diversity": 0.0})


def test_only_zeros_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positive weight for one of \['classifier', 'decoder', 'diversity'\].*zeros"):
        GeneratorObjective(_kegnet(), dict.fromkeys(_kegnet(), 0.0))


@pytest.mark.parametrize("names", [["classifier"], ["classifier", "decoder", "diversity", "entropy"], []])
def test_names_must_agree(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"weight for each of \['classifier', 'decoder', 'diversity'\], but got \["):
        GeneratorObjective(_kegnet(), dict.fromkeys(names, 1.0))


def test_the_base_class_is_no_term() -> None:
    with pytest.raises(NotImplementedError):
        GeneratorLoss()(random_batch())
