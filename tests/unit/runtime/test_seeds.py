"""Streams of random numbers."""

import itertools

import pytest
import torch

from kegnet_pl.runtime.seeds import derive_seed, stream


def test_seed_never_changes_from_version_to_version() -> None:
    # Published results depend on these numbers.
    assert derive_seed(0, "noise", 1, 2, 3) == 6_885_912_901_873_135_352
    assert derive_seed(7, "split") == 3_743_210_755_246_259_482


def test_seeds_differ_by_every_argument() -> None:
    arguments = [
        (seed, purpose, *indices)
        for seed in (0, 1, 11)
        for purpose in ("noise", "dropout", "flip")
        for length in range(4)
        for indices in itertools.product(range(3), repeat=length)
    ]
    assert len({derive_seed(*each) for each in arguments}) == len(arguments)
    # Neighbouring arguments do not run into each other.
    assert derive_seed(1, "noise", 1, 12) != derive_seed(1, "noise", 11, 2)
    assert derive_seed(0, "noise") != derive_seed(0, "noise", 0)


def test_seeds_fit_a_generator() -> None:
    for seed in range(200):
        assert 0 <= derive_seed(seed, "noise") < 2**63


def test_streams_are_repeatable_and_apart_from_the_global_one() -> None:
    first = torch.rand(8, generator=stream(0, "noise", 1))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(torch.rand(8, generator=stream(0, "noise", 1)), first)
    assert torch.equal(torch.get_rng_state(), before), "the global stream was moved"


@pytest.mark.parametrize("other", [(1, "noise", 1), (0, "dropout", 1), (0, "noise", 2), (0, "noise")])
def test_streams_of_other_purposes_are_independent(other: tuple[int, str, int]) -> None:
    first = torch.randn(10_000, generator=stream(0, "noise", 1))
    second = torch.randn(10_000, generator=stream(*other))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.04
