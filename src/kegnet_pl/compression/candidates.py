"""One layer on its way through a plan: the ranks that its rule gives it."""

import math
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from kegnet_pl.compression.evbmf import evbmf
from kegnet_pl.compression.rules import SideRank
from kegnet_pl.compression.tucker import Factorisable, Ranks, sides


@dataclass
class Candidate:
    """One layer on its way through a plan."""

    name: str
    layer: Factorisable
    ranks: tuple[SideRank, SideRank]
    notes: list[str] = field(default_factory=list)

    def unfolding(self, side: int) -> np.ndarray:
        """Matrix with the input (0) or output (1) side as rows."""
        weight = self.layer.weight.detach().to("cpu").double().numpy()
        return np.moveaxis(weight, 1 - side, 0).reshape(weight.shape[1 - side], -1)

    def fixed(self, side: int) -> int | None:
        """Rank of one side, None where it depends on the target."""
        rank, full = self.ranks[side], sides(self.layer)[side]
        word = ("in", "out")[side]
        if rank == "target":
            return None
        if rank == "full":
            return full
        if rank == "evbmf":
            found = evbmf(self.unfolding(side)).rank
            if found == 0:
                self.notes.append(f"EVBMF found {word} rank 0, raised to 1")
            return max(found, 1)
        if isinstance(rank, float):
            return max(1, round(rank * full))
        if isinstance(rank, int) and rank > full:
            kind = "channels" if isinstance(self.layer, nn.Conv2d) else "units"
            raise ValueError(
                f"Expected `rank` between 1 and {full} for layer {self.name!r} ({full} {word}put {kind}), but got "
                f"{rank}. Lower it, or write 'full' to leave that side as it is."
            )
        return int(rank)

    def energy(self, side: int) -> np.ndarray:
        """Share of the squared singular values that the first r components hold, r = 1, 2, ..."""
        squares = np.linalg.svd(self.unfolding(side), compute_uv=False) ** 2
        total = squares.sum()
        # Rounded, so that equal spectra give equal ranks on any machine.
        return np.cumsum(squares / total).round(12) if total > 0 else np.ones_like(squares)


def factorised_parameters(layer: Factorisable, ranks: Ranks) -> int:
    """Parameters of a layer once it is factorised at these ranks."""
    (n_in, n_out), (r_in, r_out) = sides(layer), ranks
    kernel = math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
    return n_in * r_in + r_in * r_out * kernel + r_out * n_out + (0 if layer.bias is None else n_out)
