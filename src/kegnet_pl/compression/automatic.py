"""The choice between methods of compression, by agreement on held-out synthetic samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from kegnet_pl.compression.activations import Calibration
from kegnet_pl.compression.allocation import TargetError
from kegnet_pl.compression.choice import WhenLarger
from kegnet_pl.compression.plan import CompressionPlan
from kegnet_pl.compression.pruning import PruningPlan
from kegnet_pl.compression.report import Compressed
from kegnet_pl.compression.rules import Rule
from kegnet_pl.networks.validation import FORWARD_ERRORS
from kegnet_pl.runtime.errors import first_line

MARGIN = 0.01
"""A later method replaces the one chosen so far only if its agreement is higher by more than this."""

THREE_LAYERS = "tucker, three layers"
"""Name of the factorisation without merged factors, if the one with merged factors is also compared."""


class Plan(Protocol):
    """A plan of compression, such as :class:`CompressionPlan` and :class:`PruningPlan`."""

    def apply(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        calibration: Calibration | None = None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Compressed:
        """Compress a copy of a network; raise ``ValueError`` if that is not possible."""
        ...


class AutomaticPlan:
    """Several plans; the compressed network that agrees most with the original is chosen.

    All plans get the same samples. The agreement is measured on the same held-out samples, without real data. A later
    plan replaces an earlier one if its agreement is higher by more than :data:`MARGIN`.

    Args:
        plans: Name of the method -> plan.

    Raises:
        ValueError: If there is no plan.
    """

    def __init__(self, plans: Mapping[str, Plan]) -> None:
        if not plans:
            raise ValueError("Expected `plans` to hold at least one plan, but got none.")
        self.plans = dict(plans)

    def apply(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        calibration: Calibration | None = None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Compressed:
        """Compress copies of a network by every plan, and return the one with the highest agreement.

        Args:
            network: Any network; it is not changed.
            input_shape: Shape of one sample.
            calibration: Samples; required if there are several plans.
            on_progress: Called with the finished share, in [0, 1).

        Returns:
            The chosen network; ``compared`` has the agreement of every method, or the reason why it failed. It is empty
            if there is one plan.

        Raises:
            ValueError: If every plan fails; the message has the reasons.
        """
        if calibration is None and len(self.plans) > 1:
            raise ValueError("Expected samples to compare methods of compression, but got none. Use fit='function'.")
        found: dict[str, Compressed] = {}
        compared: dict[str, float | str | None] = {}
        out_of_reach: dict[str, TargetError] = {}
        for index, (name, plan) in enumerate(self.plans.items()):

            def move_to(share: float, done: int = index) -> None:
                on_progress((done + share) / len(self.plans))

            try:
                found[name] = plan.apply(network, input_shape, calibration, move_to)
                compared[name] = found[name].agreement
            except FORWARD_ERRORS as error:
                if len(self.plans) == 1:
                    raise
                compared[name] = first_line(error)
                if isinstance(error, TargetError):
                    out_of_reach[name], compared[name] = error, f"at most {error.most:g}x by {error.by}"
        if len(out_of_reach) == len(self.plans):
            raise _join(out_of_reach)
        if not found:
            reasons: dict[str, str] = {}
            for name, reason in compared.items():
                reasons.setdefault(str(reason), name)
            same = len(reasons) == 1
            raise ValueError(" ".join(text if same else f"By {name}: {text}" for text, name in reasons.items()))
        chosen = next(iter(found))
        for name, one in found.items():
            if (one.agreement or 0.0) > (found[chosen].agreement or 0.0) + MARGIN:
                chosen = name
        return replace(found[chosen], method=chosen, compared=compared if len(self.plans) > 1 else {})


def _join(errors: Mapping[str, TargetError]) -> TargetError:
    """Return one error for a target that no method reaches. ``errors`` maps the name of a method to its error."""
    best = max(errors.values(), key=lambda error: error.most)
    limits = "; ".join(f"{name} {error.most:.2f}" for name, error in errors.items())
    reason = (
        f"The largest ratio of each method: {limits}. Set it to {best.most:g} or less (on the command line: "
        f"compression.target={best.most:g})."
    )
    return TargetError(best.most, best.target, best.by, reason)


def plans_to_compare(
    rules: Sequence[Rule],
    target: float,
    when_larger: WhenLarger = "keep",
    fold: bool | None = None,
    *,
    pruning: bool = True,
    **speed: Any,
) -> dict[str, Plan]:
    """Return the plans of ``method="auto"``, in the order of preference.

    Args:
        rules: Rules of the factorisation.
        target: Ratio before / after.
        when_larger: Treatment of a layer whose factorisation does not reduce its cost.
        fold: True to merge redundant factors, False for three layers; None compares both forms. With merged factors the
            network has fewer layers; with three layers it has other ranks for the same target.
        pruning: False to leave pruning out, which needs the package ``torch-pruning``.
        **speed: ``by``, ``round_to`` and ``batch_size`` of every plan.

    Returns:
        Name of the method -> plan.
    """
    plans: dict[str, Plan] = {"pruning": PruningPlan(target, **speed)} if pruning else {}
    forms = {"tucker": True, THREE_LAYERS: False} if fold is None else {"tucker": fold}
    return plans | {
        name: CompressionPlan(rules, target, when_larger, merged, **speed) for name, merged in forms.items()
    }
