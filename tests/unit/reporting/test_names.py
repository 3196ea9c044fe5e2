"""Names of networks that people read."""

import pytest

from kegnet_pl.reporting.names import name_compression, name_network, name_source


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("teacher", "teacher"),
        ("teacher int8", "teacher, int8"),
        ("T", "compressed, untrained"),
        ("S", "untrained"),
        ("T int8", "compressed, untrained, int8"),
        ("T+KegNet", "student (KegNet)"),
        ("S+KegNet", "student (KegNet)"),
        ("T+Uniform", "student (uniform noise)"),
        ("T+Normal int8", "student (normal noise), int8"),
        ("T+Real", "student (real data)"),
        ("T+KegNet 50 % + Normal 50 %", "student (KegNet 50 % + normal noise 50 %)"),
        ("T+My source", "student (My source)"),
        ("unknown", "unknown"),
    ],
)
def test_networks_have_names_that_people_read(method: str, name: str) -> None:
    assert name_network(method) == name


@pytest.mark.parametrize(
    ("student", "name"),
    [
        ("ratio8", "8x"),
        ("ratio6.227553935143183", "6.23x"),
        ("auto2", "auto 2x"),
        ("pruning1.5", "pruned 1.5x"),
        ("option1", "option1"),
        ("ratio", "ratio"),
        ("LeNet5", "LeNet5"),
    ],
)
def test_compressions_are_named_by_their_ratio(student: str, name: str) -> None:
    assert name_compression(student) == name


def test_sources_are_named_as_in_the_names_of_students() -> None:
    assert [name_source(title) for title in ("KegNet", "Normal", "Uniform 50 % + KegNet 50 %")] == [
        "KegNet", "normal noise", "uniform noise 50 % + KegNet 50 %",
    ]  # fmt: skip
