"""The objective of a generator: a weighted sum of loss terms."""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from kegnet_pl.losses.base import GeneratedBatch, GeneratorLoss


class GeneratorObjective(nn.Module):
    """Weighted sum of named terms; a term of weight 0 is not computed.

    Args:
        terms: name -> term.
        weights: name -> weight, zero or more, for the same names.

    Attributes:
        uses_decoder: True if one of the terms reads the decoded noise.
        uses_statistics: True if one of the terms reads statistics of the teacher's batch-norm layers.

    Raises:
        ValueError: If names differ, a weight is negative or not finite, or all weights are zero.
    """

    def __init__(self, terms: Mapping[str, GeneratorLoss], weights: Mapping[str, float]) -> None:
        super().__init__()
        if set(terms) != set(weights):
            raise ValueError(f"Expected a weight for each of {sorted(terms)}, but got {sorted(weights)}.")
        for name, weight in weights.items():
            if not (weight >= 0 and math.isfinite(weight)):
                raise ValueError(f"Expected the weight of loss {name!r} to be zero or more, but got {weight}.")
        if not any(weights.values()):
            raise ValueError(f"Expected a positive weight for one of {sorted(terms)}, but got only zeros.")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight > 0}
        used = {name: terms[name] for name in self.weights}
        self.terms = nn.ModuleDict(used)
        self.uses_decoder = any(getattr(term, "uses_decoder", False) for term in used.values())
        self.uses_statistics = any(getattr(term, "uses_statistics", False) for term in used.values())

    def forward(self, batch: GeneratedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum, a scalar, and every term by name, unweighted."""
        parts = {name: term(batch) for name, term in self.terms.items()}
        total = sum((self.weights[name] * part for name, part in parts.items()), start=batch.x.new_zeros(()))
        return total, parts
