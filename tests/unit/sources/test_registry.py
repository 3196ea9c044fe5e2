"""Sources found by name, described and built."""

import importlib.resources

import pytest
import torch
import yaml

from kegnet_pl.networks import DenseGenerator
from kegnet_pl.sources import (
    CorrelatedNoise,
    GeneratorSource,
    MixtureSource,
    NoiseSource,
    NormalNoise,
    RealSource,
    UniformNoise,
    build_source,
    describe_mixture,
    describe_source,
    find_source_class,
)
from kegnet_pl.sources.registry import find_builtin, find_related
from tests.unit.sources import external
from tests.unit.sources.external import TARGET, Bent, Stripes, offer_as_entry_point


def _generators(count: int = 2) -> list[torch.nn.Module]:
    return [DenseGenerator(8, 3, noise_dim=4, blocks=1, width=8) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("kegnet", GeneratorSource), ("uniform", UniformNoise), ("normal", NormalNoise), ("real", RealSource)],
)
def test_own_sources_are_found_with_and_without_their_entry(name: str, kind: type) -> None:
    file = importlib.resources.files("kegnet_pl.conf") / "source" / f"{name}.yaml"
    entry = yaml.safe_load(file.read_text())[name]
    assert find_source_class(name, entry) is find_source_class(name) is kind


def test_an_entry_point_offers_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    offer_as_entry_point(monkeypatch, "stripes")
    assert find_source_class("stripes") is Stripes
    with pytest.raises(ValueError, match=r"Use one of blobs, .*, stripes, .*, waves, or set"):
        find_source_class("dots")


def test_an_entry_of_the_configuration_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    offer_as_entry_point(monkeypatch, "normal")
    assert find_source_class("normal") is NormalNoise, "an installed package does not replace an own source"
    assert find_source_class("normal", {"_target_": TARGET}) is Stripes


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.Source", "importable class, but got nowhere.Source: No module named 'nowhere'"),
        ("kegnet_pl.sources.Nothing", "importable class, but got kegnet_pl.sources.Nothing"),
        ("Source", "importable class, but got Source"),
        ("torch.nn.Linear", "Expected the source mine to be a subclass of SyntheticSource, but got"),
        (f"{external.__name__}.Untitled", "Expected Untitled.title to be a name, but got None"),
    ],
)
def test_an_entry_that_is_no_source_is_an_error(target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_source_class("mine", {"_target_": target})


@pytest.mark.parametrize(
    ("attribute", "value", "allowed"),
    [
        ("color", "blue", "'#rrggbb'"),
        ("marker", "oo", "one letter of"),
        ("prior", "some", "one of none, teacher, procedural, real data"),
    ],
)
def test_class_attributes_are_checked(
    attribute: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stripes, attribute, value)
    with pytest.raises(ValueError, match=f"Expected Stripes.{attribute} to be {allowed}.*, but got '{value}'"):
        describe_source("mine", {"_target_": TARGET})


def test_a_source_that_needs_data_says_that_it_is_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stripes, "needs_data", True)
    with pytest.raises(ValueError, match=r"prior to be 'real data', as it needs real data, but got 'procedural'\."):
        describe_source("mine", {"_target_": TARGET})


def test_real_data_is_a_ceiling_and_no_part_of_a_mixture() -> None:
    info = describe_source("real")
    assert (info.title, info.prior, info.needs_data, info.is_ceiling) == ("Real", "real data", True, True)
    assert describe_mixture({"real": 0.5}) == info
    assert not any(describe_source(name).is_ceiling for name in ("kegnet", "uniform", "normal", "fields"))
    with pytest.raises(
        ValueError, match=r"mixture without real data, .* but got kegnet, real\. Use real as a source of"
    ):
        describe_mixture({"real": 0.5, "kegnet": 0.5})
    with pytest.raises(ValueError, match=r"mixture without real data, .* but got real, normal"):
        build_source({"real": 0.5, "normal": 0.5}, input_shape=(8,), inputs=torch.zeros(4, 8))


def test_a_broken_entry_point_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    offer_as_entry_point(monkeypatch, "stripes", "nowhere.Stripes")
    with pytest.raises(ValueError, match="entry point nowhere:Stripes failed: No module named 'nowhere'"):
        find_source_class("stripes")


def test_description_of_a_mixture() -> None:
    info = describe_mixture({"normal": 1, "kegnet": 3})
    assert (info.name, info.title) == ("kegnet75_normal25", "KegNet 75 % + Normal 25 %")
    assert info.shares == {"kegnet": 0.75, "normal": 0.25} and list(info.shares) == ["kegnet", "normal"]
    assert info.needs_generators and (info.color, info.marker) == (MixtureSource.color, "D")
    assert describe_mixture({"kegnet": 0.5}) == describe_source("kegnet"), "a mixture of one source is that source"
    assert describe_source("kegnet").shares == {"kegnet": 1.0}


@pytest.mark.parametrize(
    ("names", "prior"),
    [
        (["uniform", "normal"], "none"),
        (["kegnet", "normal"], "teacher"),
        (["mine", "normal"], "procedural"),
        (["mine", "kegnet", "normal"], "teacher + procedural"),
    ],
)
def test_prior_of_a_mixture_names_all_knowledge(names: list[str], prior: str) -> None:
    assert describe_mixture(dict.fromkeys(names, 1.0), {"mine": {"_target_": TARGET}}).prior == prior


def test_titles_of_results_without_a_description() -> None:
    assert find_builtin("KegNet") == describe_source("kegnet")
    assert find_builtin("Stripes") is None


def test_building_passes_what_a_class_takes() -> None:
    generators = _generators()
    source = build_source(
        {"kegnet": 1}, input_shape=(8,), generators=generators, chunk=10, sampling_norm="batch", noise_std=0.5
    )
    assert isinstance(source, GeneratorSource) and source.multiple == 2
    expected = GeneratorSource(generators, chunk=10, norm="batch", noise_std=0.5)
    assert torch.equal(source.sample(20, 0), expected.sample(20, 0))
    for name in ("uniform", "normal"):
        built = build_source({name: 1}, input_shape=(8,), generators=generators, noise_std=0.5)
        assert torch.equal(built.sample(6, 3), NoiseSource(name, 8).sample(6, 3))  # type: ignore[arg-type]
    mine = build_source({"mine": 1}, {"mine": {"_target_": TARGET, "height": 3.0}}, input_shape=(2,), noise_std=9.0)
    assert isinstance(mine, Stripes) and mine.height == 3.0 and mine.input_shape == (2,)
    bent = build_source(
        {"bent": 1}, {"bent": {"_target_": f"{external.__name__}.Bent"}}, input_shape=(2,), generators=generators,
        noise_std=9.0,
    )  # fmt: skip
    assert isinstance(bent, Bent) and bent.count == 2 and bent.noise_std == 9.0
    teacher = torch.nn.Linear(8, 3)
    correlated = build_source({"correlated": 1}, {"correlated": {"power": 0.5}}, input_shape=(8,), teacher=teacher)
    assert torch.equal(correlated.sample(6, 3), CorrelatedNoise(teacher, 8, power=0.5).sample(6, 3))
    inputs = torch.randn(5, 8)
    real = build_source({"real": 1}, input_shape=(8,), generators=generators, inputs=inputs)
    assert isinstance(real, RealSource) and real.inputs is inputs


def test_a_built_mixture_is_that_of_its_sources() -> None:
    generators = _generators()
    mixture = build_source({"kegnet": 0.5, "normal": 0.5}, input_shape=(8,), generators=generators)
    expected = MixtureSource({"kegnet": (GeneratorSource(generators), 1), "normal": (NormalNoise(8), 1)})
    assert torch.equal(mixture.sample(30, 4), expected.sample(30, 4))


def test_what_is_missing_or_unknown_is_named() -> None:
    with pytest.raises(ValueError, match="Expected trained generators for the source kegnet, but got none"):
        build_source({"kegnet": 0.5, "normal": 0.5}, input_shape=(8,))
    with pytest.raises(ValueError, match="Expected the teacher for the source correlated, but got none"):
        build_source({"correlated": 1}, input_shape=(8,))
    with pytest.raises(ValueError, match="Expected inputs of the real training data for the source real, but got none"):
        build_source({"real": 1}, input_shape=(8,))
    with pytest.raises(
        ValueError, match=r"Expected `source.mine` to have the arguments of Stripes, but got: .*'width'"
    ):
        build_source({"mine": 1}, {"mine": {"_target_": TARGET, "width": 3}}, input_shape=(8,))


def test_sources_that_share_kinds_of_samples() -> None:
    assert find_related(["strokes"], (1, 8, 8)) == {"strokes", "procedural"}
    assert find_related(["procedural"], (1, 8, 8)) == {"procedural", "leaves", "strokes", "blobs", "fields"}
    assert find_related(["uniform", "mine"], (1, 8, 8)) == {"uniform", "normal", "mine"}
    assert find_related(["procedural"], (8,)) == {"procedural", "normal", "fields"}
    assert find_related(["kegnet"], (8,)) == {"kegnet"}
