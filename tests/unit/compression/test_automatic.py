"""The choice between factorisation and pruning."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kegnet_pl
from kegnet_pl.api.checks import describe_comparison
from kegnet_pl.compression import AutomaticPlan, Calibration, Compressed, CompressionPlan, CompressionReport, Rule
from kegnet_pl.compression.allocation import TargetError
from kegnet_pl.compression.automatic import MARGIN, THREE_LAYERS, plans_to_compare

SHAPE = (6,)


class _Fixed:
    """A plan whose network has a given agreement, or that fails."""

    def __init__(self, result: float | str | Exception | None) -> None:
        self.result = result

    def apply(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        calibration: Calibration | None = None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Compressed:
        on_progress(0.5)
        if isinstance(self.result, Exception):
            raise self.result
        if isinstance(self.result, str):
            raise ValueError(self.result)
        return Compressed(network, CompressionReport((), 2, 1, 2, 1), (), self.result)


def _apply(**results: float | str | Exception | None) -> tuple[Compressed, list[float]]:
    shares: list[float] = []
    samples = Calibration(torch.zeros(1, 6), torch.zeros(1, 6))
    plans = {name: _Fixed(result) for name, result in results.items()}
    return AutomaticPlan(plans).apply(nn.Linear(6, 3), SHAPE, samples, shares.append), shares


@pytest.mark.parametrize(
    ("results", "chosen"),
    [
        ({"pruning": 0.9, "tucker": 0.8}, "pruning"),
        ({"pruning": 0.8, "tucker": 0.9}, "tucker"),
        ({"pruning": 0.9, "tucker": 0.9 + MARGIN / 2}, "pruning"),
        ({"pruning": None, "tucker": None}, "pruning"),
        ({"pruning": "Expected channels.", "tucker": 0.1}, "tucker"),
        ({"pruning": 0.1, "tucker": "Expected layers."}, "pruning"),
        ({"pruning": 0.7, "tucker": 0.8, THREE_LAYERS: 0.9}, THREE_LAYERS),
        ({"pruning": 0.7, "tucker": 0.8, THREE_LAYERS: 0.8 + MARGIN / 2}, "tucker"),
        ({"pruning": "Expected channels.", "tucker": "Expected layers.", THREE_LAYERS: 0.1}, THREE_LAYERS),
    ],
)
def test_the_network_that_agrees_more_is_chosen(results: dict[str, float | str | None], chosen: str) -> None:
    found, shares = _apply(**results)
    middles = [(index + 0.5) / len(results) for index in range(len(results))]
    assert (found.method, found.compared, shares) == (chosen, results, middles)
    assert not isinstance(results[chosen], str) and found.agreement == results[chosen]
    said = describe_comparison(found.method, found.compared, 1_250)
    assert said.startswith(f"Compression by {chosen}. Agreement before training, on 1,250 held-out samples: pruning ")
    assert ("failed (Expected" in said) == any(isinstance(result, str) for result in results.values())


def test_all_reasons_of_a_failure_are_given() -> None:
    with pytest.raises(ValueError, match=r"^By pruning: Expected less. By tucker: Expected more.$"):
        _apply(pruning="Expected less.", tucker="Expected more.")
    found, _ = _apply(pruning=0.5, tucker=TargetError(9, 60.0, "parameters", "Why."))
    assert found.compared == {"pruning": 0.5, "tucker": "at most 9x by parameters"}
    with pytest.raises(TargetError) as error:
        _apply(pruning=TargetError(27.808, 60.0, "parameters", "Why."), tucker=TargetError(9, 60.0, "parameters", "."))
    assert str(error.value) == (
        "Expected a `target` of at most 27.80 by parameters, but got 60.0. The largest ratio of each method: pruning "
        "27.80; tucker 9.00. Set it to 27.8 or less (on the command line: compression.target=27.8)."
    )
    with pytest.raises(ValueError, match=r"^Expected samples.$"):
        _apply(pruning="Expected samples.", tucker="Expected samples.")
    with pytest.raises(ValueError, match=r"^Expected `plans` to hold at least one"):
        AutomaticPlan({})
    plan = CompressionPlan([Rule("*", 2)])
    with pytest.raises(ValueError, match=r"^Expected samples to compare methods .* Use fit='function'"):
        AutomaticPlan({"pruning": plan, "tucker": plan}).apply(nn.Linear(6, 3), SHAPE)


class _Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))


def _compress(network: nn.Module, target: float | None = 2.0, **given: Any) -> Compressed:
    return kegnet_pl.compress(network, 6, target, **{"samples": 100} | given)


def _idle_units() -> nn.Module:
    """A network with half of its units at zero: they can be removed, but the weights have full rank."""
    torch.manual_seed(0)
    network = _Network()
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.weight *= 2
            layer.weight[::2] *= 0.01
            layer.bias[::2] = -1.0
    return network


def _low_ranks() -> nn.Module:
    """A network whose layers have rank 4."""
    torch.manual_seed(0)
    network = _Network()
    with torch.no_grad():
        network[2].weight.copy_(torch.randn(40, 4) @ torch.randn(4, 40) / 8)
    return network


@pytest.mark.parametrize(("make", "chosen"), [(_idle_units, "pruning"), (_low_ranks, "tucker")])
def test_the_default_compares_both(
    make: Callable[[], nn.Module], chosen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = make()
    small = _compress(network)
    assert small.method == chosen and small.compared[chosen] == small.agreement
    assert small.compared.keys() == {"pruning", "tucker", THREE_LAYERS} and small.report.compression_ratio >= 2
    assert f"Compression by {chosen}. Agreement" in capsys.readouterr().out
    plain = _compress(network, method=chosen, progress=False)
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain.network.eval()(x), small.network.eval()(x)) and not plain.compared


@pytest.mark.parametrize(
    "given", [{"target": None}, {"rules": {"*": 3}, "target": None}, {"fit": "weights"}, {"fold": False}]
)
def test_arguments_of_a_factorisation_choose_it(given: dict[str, Any]) -> None:
    found = _compress(_low_ranks(), **given)
    assert found.method == "tucker" and not found.compared


@pytest.mark.parametrize(("fold", "names"), [(None, ["tucker", THREE_LAYERS]), (True, ["tucker"]), (False, ["tucker"])])
def test_both_forms_of_factors_are_compared_unless_one_is_given(fold: bool | None, names: list[str]) -> None:
    plans = plans_to_compare([Rule("*", "target")], 2.0, fold=fold, round_to=8)
    assert list(plans) == ["pruning", *names] and plans["pruning"].round_to == 8
    folds = [plans[name].choice.fold for name in names]
    assert folds == ([True, False] if fold is None else [fold])
    assert all(plans[name].choice.round_to == 8 for name in names)
    assert "pruning" not in plans_to_compare([Rule("*", "target")], 2.0, pruning=False)


def test_without_the_library_layers_are_factorised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    network = _idle_units()
    with pytest.warns(UserWarning, match=r"Pruning often gives a higher agreement: pip install 'kegnet_pl\[pruning\]'"):
        found = _compress(network, 4.0)
    assert found.method.startswith("tucker") and found.compared.keys() == {"tucker", THREE_LAYERS}


def test_a_factorised_student_is_factorised_again() -> None:
    """Pruning refuses a network with factorised layers; the other method is used."""
    small = _compress(_low_ranks(), method="tucker")
    found = _compress(small.network, 1.2)
    assert found.method.startswith("tucker") and "without factorised layers" in str(found.compared["pruning"])


def test_a_network_without_layers_has_two_reasons() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] * self.weight

    with pytest.raises(ValueError, match=r"^By pruning: Expected .* By tucker: Expected "):
        _compress(Wrong())


def test_an_error_of_torch_is_a_failure_of_one_method() -> None:
    class Failing(_Fixed):
        def apply(self, *_: Any, **__: Any) -> Compressed:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    samples = Calibration(torch.zeros(1, 6), torch.zeros(1, 6))
    found = AutomaticPlan({"pruning": Failing(None), "tucker": _Fixed(0.9)}).apply(nn.Linear(6, 3), SHAPE, samples)
    assert found.method == "tucker" and "mat1 and mat2" in str(found.compared["pruning"])
