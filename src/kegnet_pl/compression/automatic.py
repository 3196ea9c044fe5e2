"""The choice between methods of compression, by agreement on held-out synthetic samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from torch import nn

from kegnet_pl.compression.activations import Calibration
from kegnet_pl.compression.report import Compressed
from kegnet_pl.networks.validation import FORWARD_ERRORS
from kegnet_pl.runtime.errors import first_line

MARGIN = 0.01
"""Lead in agreement over the first method that a later method needs to be chosen."""


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

    All plans get the same samples. The agreement is measured on the same held-out samples, without real data. The first
    plan wins unless another one has an agreement higher by more than :data:`MARGIN`.

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
        if not found:
            reasons = {str(reason): name for name, reason in compared.items()}
            same = len(reasons) == 1
            raise ValueError(" ".join(text if same else f"By {name}: {text}" for text, name in reasons.items()))
        preferred = next(iter(self.plans))
        chosen = max(found, key=lambda name: (found[name].agreement or 0.0) + MARGIN * (name == preferred))
        return replace(found[chosen], method=chosen, compared=compared if len(self.plans) > 1 else {})
