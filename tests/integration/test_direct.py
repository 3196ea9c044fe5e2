"""Speed must not bend the result: the product's losses are those of the formulas as they are written."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor

from benchmarks.cases import Case, make_case
from benchmarks.direct import DirectGenerator, direct_student_epoch, generate_samples
from kegnet_pl.api.weights import load_weights
from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.networks import prefer_channels_last
from kegnet_pl.pipeline.objects import build, build_objective
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources import GeneratorSource, NoiseSource, sample_labels_and_noise
from kegnet_pl.training import GeneratorModule, StudentModule

STEPS = {"lenet5": 50, "mlp": 50, "resnet14": 15}
"""Generator steps that are compared, by network."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


def _trainer(case: Case, precision: str = "32-true") -> Trainer:
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    trainer: Trainer = build(case.settings.trainer.model_dump(by_alias=True) | {"precision": precision}, **options)
    return trainer


class _Watched(GeneratorModule):
    """Keeps every loss, every batch of noise, and the weights before every step."""

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        weights = copy.deepcopy((self.generator.state_dict(), self.decoder.state_dict()))
        loss, metrics = super().step(batch)
        self.seen.append((float(loss.detach()), *batch, *weights))
        return loss, metrics


def _largest_difference(case: Case, weights: Path | None, *, precision: str = "32-true", led: bool = False) -> float:
    """Make steps with the product and with the direct implementation, on the same draws.

    Args:
        case: The settings.
        weights: The teacher's file; None for an untrained one.
        precision: The trainer's.
        led: Whether the direct implementation starts every step from the product's weights, not from its own.

    Returns:
        The largest difference of losses.
    """
    config, teacher = case.settings.generator, case.teacher()
    if weights is not None:
        load_weights(teacher, weights)
    generator, decoder = case.generator(), case.decoder()
    direct = DirectGenerator(
        copy.deepcopy(generator), copy.deepcopy(decoder), copy.deepcopy(teacher),
        config.optimizer.lr, case.weight("decoder"), case.weight("diversity"),
    )  # fmt: skip
    module = _Watched(
        generator, decoder, teacher, build_objective(config.objective), build(config.optimizer),
        batch_size=32, steps_per_epoch=STEPS[case.network], teacher_norm="batch", seed=4,
    )  # fmt: skip
    module.seen = []
    _trainer(case, precision).fit(module.train())
    assert len(module.seen) == STEPS[case.network]
    if precision == "64-true":
        for network in (direct.generator, direct.decoder, direct.teacher):
            network.double()
    worst = 0.0
    for mine, z, y, *states in module.seen:
        if led:
            direct.generator.load_state_dict(states[0])
            direct.decoder.load_state_dict(states[1])
        worst = max(worst, abs(mine - float(direct.step(z, y))))
    return worst


@pytest.mark.parametrize(("network", "pairs"), [("lenet5", False), ("mlp", False), ("resnet14", True)])
def test_the_direct_one_does_no_needless_work(network: str, pairs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compares samples where the diversity has a weight, and never differentiates by the teacher's weights."""
    case, powers, cdist = make_case(network), [], torch.cdist

    def counted(a: Tensor, b: Tensor, p: int) -> Tensor:
        powers.append(p)
        return cdist(a, b, p=p)

    monkeypatch.setattr(torch, "cdist", counted)
    direct = DirectGenerator(
        case.generator(), case.decoder(), case.teacher(), 1e-3, case.weight("decoder"), case.weight("diversity")
    )
    before = copy.deepcopy(list(direct.generator.parameters()))
    loss = direct.step(*sample_labels_and_noise(8, case.classes, 10, stream(0, "noise")))
    assert loss.isfinite() and not loss.requires_grad
    assert powers == ([2, 1] if pairs else [])
    assert all(value.grad is None for value in direct.teacher.parameters())
    assert any(not torch.equal(*both) for both in zip(direct.generator.parameters(), before, strict=True))


def _file(released: str | None, request: pytest.FixtureRequest) -> Path | None:
    if released is None:
        return None
    folder: Path = request.getfixturevalue("reference_dir") / "teachers"
    return folder / f"{released}.pth.tar"


@pytest.mark.parametrize(
    ("network", "released"), [("mlp", None), pytest.param("lenet5", "mnist", marks=pytest.mark.data)]
)
def test_first_losses_equal_the_direct_ones(
    network: str, released: str | None, request: pytest.FixtureRequest, record_property: Any
) -> None:
    worst = _largest_difference(make_case(network), _file(released, request))
    record_property(
        f"losses of {STEPS[network]} generator steps, {network} ({released or 'untrained'}): difference", f"{worst:.1e}"
    )
    assert worst < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "released"),
    [("lenet5", None), pytest.param("resnet14", "svhn", marks=pytest.mark.data)],
)
def test_losses_equal_the_direct_ones_step_by_step(
    network: str, released: str | None, request: pytest.FixtureRequest, record_property: Any
) -> None:
    """Where the last digit grows from step to step, on which no two processors agree.

    With diversity no two ways to add up are alike, and at SVHN's learning rate Adam makes the last digit grow, as it
    grows where the teacher is untrained. So every step starts from the same weights; that the two also stay together,
    the next test shows in float64.
    """
    worst = _largest_difference(make_case(network), _file(released, request), led=True)
    start = f"losses of {STEPS[network]} generator steps, {network} ({released or 'untrained'}), from equal weights:"
    record_property(f"{start} difference", f"{worst:.1e}")
    assert worst < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("network", ["lenet5", "resnet14", "mlp"])
def test_in_float64_the_two_stay_together(network: str, record_property: Any) -> None:
    worst = _largest_difference(make_case(network), None, precision="64-true")
    record_property(f"losses of {STEPS[network]} generator steps, {network}, float64: difference", f"{worst:.1e}")
    assert worst < 1e-8


@pytest.mark.slow
def test_the_direct_ones_do_not_stay_together_with_themselves_in_float32(record_property: Any) -> None:
    """The rows of every batch in another order: the same mathematics. What the test before last rests on."""
    case = make_case("lenet5")
    config, worst = case.settings.generator, 0.0
    first = DirectGenerator(
        case.generator(), case.decoder(), case.teacher(), config.optimizer.lr, case.weight("decoder"),
        case.weight("diversity"),
    )  # fmt: skip
    other = copy.deepcopy(first)
    chance = stream(4, "noise", 0, 0, 0)
    for _ in range(STEPS["lenet5"]):
        z, y = sample_labels_and_noise(32, case.classes, config.noise_dim, chance)
        worst = max(worst, abs(float(first.step(z, y)) - float(other.step(z.flip(0), y.flip(0)))))
    record_property(
        f"the same, lenet5, direct against direct with rows in another order, float32, on their own: {worst:.1e}", ""
    )
    assert worst > 1e-5


@pytest.mark.parametrize("network", ["lenet5", "mlp"])
def test_an_epoch_of_a_student_equals_the_direct_one(network: str) -> None:
    case = make_case(network)
    config = case.settings.student
    student = case.student()
    for layer in student.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0  # drawn in another order
    data = SyntheticDataModule(
        NoiseSource("normal", case.input_shape), case.teacher(), samples=30 * 64, batch_size=64, shuffle=False
    )
    other = copy.deepcopy(student).train()
    module = StudentModule(prefer_channels_last(student, case.input_shape), DistillationLoss(), build(config.optimizer))
    trainer = _trainer(case)
    trainer.fit(module.train(), datamodule=data)
    x, logits = data.splits["train"]
    optimizer = torch.optim.Adam(other.parameters(), lr=config.optimizer.lr)
    expected = direct_student_epoch(other, optimizer, x, logits.softmax(dim=1), 64)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(expected), abs=1e-4)
    torch.testing.assert_close(module.network.eval()(x[:64]), other.eval()(x[:64]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", ["lenet5", "mlp"])
def test_samples_equal_the_direct_ones(network: str) -> None:
    case = make_case(network)
    generators = [case.generator(index) for index in range(3)]
    z, y = sample_labels_and_noise(500, case.classes, 10, stream(0, "synthetic"))
    torch.testing.assert_close(
        GeneratorSource(generators).sample(1500, 0), generate_samples(generators, z, y), rtol=1e-4, atol=1e-5
    )
