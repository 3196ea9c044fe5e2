"""Mixtures of sources with shares."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kegnet_pl.runtime.progress import progress_within
from kegnet_pl.runtime.seeds import derive_seed, stream
from kegnet_pl.sources.base import REAL_DATA, SyntheticSource


class MixtureSource(SyntheticSource):
    """A mixture of sources, each with a share of the samples.

    The order of the components does not matter: they are sorted by name. Samples are shuffled, so that every batch is
    a mixture. A mixture of one source returns the samples of that source.

    Args:
        components: Name -> source and share; shares are relative to their sum.

    Raises:
        ValueError: If there is no component, a share is not a positive number, or real data is one of several.
    """

    color = "#c2356b"
    marker = "D"

    def __init__(self, components: Mapping[str, tuple[SyntheticSource, float]]) -> None:
        super().__init__()
        self.shares = normalize_shares({name: share for name, (_, share) in components.items()})
        members = [components[name][0] for name in self.shares]
        refuse_real_data({name: getattr(source, "prior", None) for name, (source, _) in components.items()})
        self.sources = nn.ModuleList(members)
        self.input_shape = next((source.input_shape for source in members if source.input_shape), ())
        self.multiple = math.gcd(*(source.multiple for source in members))
        self.needs_generators = any(source.needs_generators for source in members)

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``, on the device of the components that are not on the CPU.

        Raises:
            ValueError: If ``n`` cannot be divided into the shares.
        """
        sources: list[SyntheticSource] = list(self.sources)  # type: ignore[arg-type]
        if len(sources) == 1:
            return sources[0].sample(n, seed)
        counts = divide(n, list(self.shares.values()), [source.multiple for source in sources])
        parts: list[Tensor] = []
        for index, (source, count) in enumerate(zip(sources, counts, strict=True)):
            with progress_within(sum(counts[:index]) / n, count / n):
                parts.append(source.sample(count, derive_seed(seed, "mixture", index)))
        device = next((part.device for part in parts if part.device.type != "cpu"), torch.device("cpu"))
        order = torch.randperm(n, generator=stream(seed, "mixture"))
        mixed, end = parts[0].new_empty((n, *parts[0].shape[1:]), device=device), n
        while parts:  # one by one, so that no sample is held twice
            part = parts.pop()
            rows = (order >= end - len(part)) & (order < end)
            end -= len(part)
            mixed[rows.to(device)] = part.to(device)[(order[rows] - end).to(device)]
        return mixed


def normalize_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """Return shares that sum to 1, sorted by name.

    Raises:
        ValueError: If there is none, or one is not a positive number.
    """
    if not shares:
        raise ValueError("Expected at least one source, but got none.")
    for name, share in shares.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not math.isfinite(share) or share <= 0:
            raise ValueError(f"Expected the share of {name} to be a positive number, but got {share!r}.")
    total = math.fsum(shares.values())
    return {name: shares[name] / total for name in sorted(shares)}


def refuse_real_data(priors: Mapping[str, str | None]) -> None:
    """Check that none of several sources (name -> prior knowledge) is real data.

    Raises:
        ValueError: If one is.
    """
    real = [name for name, prior in priors.items() if prior == REAL_DATA]
    if real and len(priors) > 1:
        raise ValueError(
            f"Expected a mixture without real data, since a ceiling uses only real data, but got {', '.join(priors)}. "
            f"Use {real[0]} as a source of its own: 'sources=[{real[0]},...]'."
        )


def divide(n: int, shares: Sequence[float], multiples: Sequence[int]) -> list[int]:
    """Divide ``n`` samples by shares, with the largest-remainder method in steps of each source's multiple.

    The shares sum to 1. The result is a positive multiple for every source; they sum to ``n``.

    Raises:
        ValueError: If there is no such division.
    """
    wanted = [n * share for share in shares]
    # The small addition keeps 0.29 * 100 = 28.999... at 29.
    counts = [int((value + 1e-9 * n) / multiple) * multiple for value, multiple in zip(wanted, multiples, strict=True)]
    while left := n - sum(counts):
        fitting = [index for index, multiple in enumerate(multiples) if multiple <= left]
        if not fitting:
            break
        index = max(fitting, key=lambda index: (wanted[index] - counts[index]) / multiples[index])
        counts[index] += multiples[index]
    if left or not all(counts):
        raise ValueError(
            f"Expected a number of samples that can be divided into shares of "
            f"{', '.join(f'{share:.3g}' for share in shares)}, each a positive multiple of "
            f"{', '.join(map(str, multiples))}, but got {n}. Use more samples, or other shares."
        )
    return counts
