"""The examples run as they are, and the method in plain torch does what its comments say."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from examples import kegnet_plain
from kegnet_pl.networks import Decoder, ImageGenerator, LeNet5

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_plain_kegnet_recovers_accuracy_without_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the default settings; the bar of five points leaves room for the last digits of other processors."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "kegnet_plain.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    percent = {line.split(":")[0].strip(): float(line.split()[1].rstrip("%")) for line in lines}
    assert list(percent) == ["teacher", "compressed", "distilled"]
    assert percent["teacher"] > 90
    assert percent["compressed"] + 5 < percent["distilled"] < percent["teacher"]


def test_a_picture_of_the_procedural_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / "examples" / "procedural_sources.py"
    monkeypatch.setattr(sys, "argv", [str(file), str(tmp_path / "sources.png")])
    runpy.run_path(str(file), run_name="__main__")
    with Image.open(tmp_path / "sources.png") as drawn, Image.open(ROOT / "docs" / "procedural_sources.png") as stored:
        assert drawn.size == stored.size


def test_plain_kegnet_returns_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    accuracies = kegnet_plain.main(teacher_epochs=1, generator_steps=2, student_epochs=1)
    lines = [f"{name:>10}: {value:.1%} of the test images" for name, value in accuracies.items()]
    assert capsys.readouterr().out.splitlines() == lines
    assert list(accuracies) == ["teacher", "compressed", "distilled"]


def _loss(teacher: nn.Module, decoder: nn.Module, alpha: float, beta: float) -> torch.Tensor:
    torch.manual_seed(0)
    generator = ImageGenerator(1, 10)
    z, y = kegnet_plain.sample_noise_and_labels(16)
    return kegnet_plain.generator_loss(generator, decoder, teacher, z, y, alpha, beta)


def test_terms_of_weight_zero_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    decoder = Decoder((1, 32, 32))
    handle = decoder.register_forward_pre_hook(fail)
    assert _loss(LeNet5(), decoder, 0.0, 1.0).isfinite()
    with pytest.raises(AssertionError, match="computed"):
        _loss(LeNet5(), decoder, 1.0, 0.0)
    handle.remove()
    monkeypatch.setattr(kegnet_plain, "diversity_loss", fail)
    assert _loss(LeNet5(), decoder, 1.0, 0.0).isfinite()
    with pytest.raises(AssertionError, match="computed"):
        _loss(LeNet5(), decoder, 1.0, 1.0)


def test_diversity_is_the_formula_over_all_pairs() -> None:
    z, x = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    pairs = [(z[i] - z[j]).square().mean() * (x[i] - x[j]).abs().mean() for i in range(len(z)) for j in range(len(z))]
    expected = torch.exp(-torch.stack(pairs).mean())
    found = kegnet_plain.diversity_loss(z, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (found, expected)))


def test_samples_of_every_generator_come_from_the_same_noise_and_labels() -> None:
    generator = ImageGenerator(1, 10)
    z, y = kegnet_plain.sample_noise_and_labels(4)
    samples = kegnet_plain.generate_samples([generator, generator], z, y)
    assert samples.shape == (8, 1, 32, 32) and not samples.requires_grad
    torch.testing.assert_close(samples[:4], samples[4:])
    assert y.sum(dim=1).tolist() == [1.0] * 4 and z.shape == (4, 10)


def test_only_the_student_is_trained() -> None:
    teacher = kegnet_plain.train_teacher(torch.randn(64, 1, 32, 32), torch.arange(64) % 10, epochs=1)
    before = [value.clone() for value in teacher.state_dict().values()]
    generator = kegnet_plain.train_generator(teacher, steps=2)
    untrained = [value.clone() for value in generator.state_dict().values()]
    samples = kegnet_plain.generate_samples([generator], *kegnet_plain.sample_noise_and_labels(8))
    student = LeNet5()
    optimizer = torch.optim.Adam(student.parameters())
    losses = [
        float(kegnet_plain.distil_epoch(student, optimizer, [(samples, teacher(samples).softmax(dim=1))] * 20))
        for _ in range(2)
    ]
    assert losses[1] < losses[0]
    assert not any(value.requires_grad for value in teacher.parameters())
    for network, states in ((teacher, before), (generator, untrained)):
        for value, old in zip(network.state_dict().values(), states, strict=True):
            torch.testing.assert_close(value, old, rtol=0, atol=0)


def test_plain_kegnet_needs_neither_lightning_nor_hydra_itself() -> None:
    text = (ROOT / "examples" / "kegnet_plain.py").read_text()
    imported = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {
        "collections.abc", "sklearn.datasets", "sklearn.model_selection", "torch", "torch.nn", "torch.utils.data",
        "kegnet_pl", "kegnet_pl.networks",
    }  # fmt: skip
