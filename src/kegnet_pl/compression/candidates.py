"""Candidate layers of a compression plan, with the ranks that their rules give them."""

import math
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from kegnet_pl.compression.evbmf import evbmf
from kegnet_pl.compression.rules import SideRank
from kegnet_pl.compression.tucker import Factorisable, Ranks, sides


@dataclass
class Candidate:
    """A layer that a plan may factorise.

    Attributes:
        name: Name of the layer in the network.
        layer: The layer.
        ranks: Ranks of the input and the output side, as the rule gives them.
        notes: Notes on the layer for the report.
    """

    name: str
    layer: Factorisable
    ranks: tuple[SideRank, SideRank]
    notes: list[str] = field(default_factory=list)

    def unfolding(self, side: int) -> np.ndarray:
        """Return the weight as a matrix with the input (0) or output (1) side as rows."""
        weight = self.layer.weight.detach().to("cpu").double().numpy()
        return np.moveaxis(weight, 1 - side, 0).reshape(weight.shape[1 - side], -1)

    def fixed(self, side: int) -> int | None:
        """Return the rank of one side, or None if it depends on the target."""
        rank, full = self.ranks[side], sides(self.layer)[side]
        side_name = ("in", "out")[side]
        if rank == "target":
            return None
        if rank == "full":
            return full
        if rank == "evbmf":
            estimate = evbmf(self.unfolding(side)).rank
            if estimate == 0:
                self.notes.append(f"EVBMF found {side_name} rank 0, raised to 1")
            return max(estimate, 1)
        if isinstance(rank, float):
            return max(1, round(rank * full))
        if isinstance(rank, int) and rank > full:
            kind = "channels" if isinstance(self.layer, nn.Conv2d) else "units"
            raise ValueError(
                f"Expected `rank` between 1 and {full} for layer {self.name!r} ({full} {side_name}put {kind}), but got "
                f"{rank}. Lower it, or write 'full' to keep that side."
            )
        return int(rank)

    def energy(self, side: int) -> np.ndarray:
        """Return the share of the squared singular values in the first r components, for r = 1, 2, ..."""
        squares = np.linalg.svd(self.unfolding(side), compute_uv=False) ** 2
        total = squares.sum()
        # Rounded, so that equal spectra give equal ranks on any machine.
        return np.cumsum(squares / total).round(12) if total > 0 else np.ones_like(squares)


def factorised_parameters(layer: Factorisable, ranks: Ranks) -> int:
    """Return the number of parameters of a layer that is factorised at these ranks."""
    (n_in, n_out), (r_in, r_out) = sides(layer), ranks
    kernel = math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
    return n_in * r_in + r_in * r_out * kernel + r_out * n_out + (0 if layer.bias is None else n_out)
