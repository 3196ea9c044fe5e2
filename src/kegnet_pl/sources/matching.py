"""Samples that are matched to the statistics of the teacher's batch norm."""

import torch
from torch import Tensor, nn

from kegnet_pl.losses.base import NormStatistics
from kegnet_pl.losses.statistics import divergence_of_statistics
from kegnet_pl.networks import BatchNormMoments, prefer_channels_last
from kegnet_pl.networks.batch_norm import Moments, stored_norms
from kegnet_pl.networks.execution import eval_mode, first_weight
from kegnet_pl.networks.handling import copy_network, freeze, move, to_float32
from kegnet_pl.networks.hooks import find_calls
from kegnet_pl.runtime.distributed import concatenate
from kegnet_pl.runtime.seeds import stream
from kegnet_pl.sources.base import SyntheticSource, check_share

STEPS, _LEARNING_RATE = 20, 0.05
"""Steps of Adam, and its first learning rate, in units of the samples."""

_BATCH, _VALUES = (32, 200), 2**20
"""Samples whose statistics are matched together: at least 32, at most 200, between them as many as have this number of
values. Matched samples depend on it, so it is the same on every device."""

_SHIFT = 2
"""Largest random shift of images and signals in a step, in positions: patterns of single pixels do not survive it."""


class MatchedSource(SyntheticSource):
    """Samples of a source that are matched to the teacher's batch norm; see :func:`match_statistics`.

    Args:
        source: Draws the samples.
        teacher: Any classifier, on the device of the samples. It is not changed. If it has no batch norm with stored
            statistics, all samples stay as they are.
        share: Share of the samples to match, from 0 to 1. A smaller share takes less time.

    Raises:
        ValueError: If ``share`` is out of range.
    """

    def __init__(self, source: SyntheticSource, teacher: nn.Module, share: float = 1.0) -> None:
        super().__init__()
        check_share(share=share)
        self.source = source
        self.share = share
        self.multiple, self.candidates, self.input_shape = source.multiple, source.candidates, source.input_shape
        self.needs_generators, self.teacher_passes = source.needs_generators, source.teacher_passes
        if stored_norms(teacher):
            self.teacher_passes += STEPS * share
        self._teacher = (teacher,)  # in a tuple, so that it is not registered

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``."""
        return match_share(self.source.sample(n, seed), self._teacher[0], self.share, seed)


def match_share(x: Tensor, teacher: nn.Module, share: float, seed: int = 0) -> Tensor:
    """Match a random share of samples ``(N, *input_shape)``, from 0 to 1; see :func:`match_statistics`."""
    count = round(share * len(x))
    if not count or not find_matched_layers(teacher, x):
        return x
    rows = torch.randperm(len(x), generator=stream(seed, "matched"))[:count].to(x.device)
    return x.index_copy(0, rows, match_statistics(x[rows], teacher, seed))


@torch.inference_mode(mode=False)  # gradients are needed
def match_statistics(x: Tensor, teacher: nn.Module, seed: int = 0) -> Tensor:
    """Change samples so that the inputs of the teacher's batch norm come closer to the statistics of its training data.

    Samples start as they are. Twenty steps of Adam lower the divergence of their mean and variance in every channel of
    all batch-norm layers from the stored ones (:class:`StatisticsLoss`), averaged over the layers. Values stay within
    the range of their channel. Without batch norm with stored statistics, or if the teacher passes no gradients to its
    input, samples are returned unchanged.

    Args:
        x: Samples ``(N, *input_shape)``, on any device; they stay there.
        teacher: Any classifier; it is not changed.
        seed: Seed of the random shifts.

    Returns:
        Samples ``(N, *input_shape)``.

    Source:
        Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", 2020; there, images start as
        noise, and are also optimised for a class.
    """
    layers = find_matched_layers(teacher, x)
    if not layers or not len(x):
        return x
    network = prefer_channels_last(freeze(move(to_float32(copy_network(teacher)), x.device)), x.shape[1:])
    moments = BatchNormMoments(network, layers)
    dims = [dim for dim in range(x.dim()) if dim != 1]
    low, high = x.float().amin(dims, keepdim=True), x.float().amax(dims, keepdim=True)
    least, most = _BATCH
    parts = x.tensor_split(max(round(len(x) / min(max(_VALUES // x[0].numel(), least), most)), 1))

    def match(index: int) -> Tensor:
        return _match(parts[index].float(), moments, low, high, stream(seed, "shifts", index)).to(x.dtype)

    with eval_mode(network):
        return concatenate(match, [len(part) for part in parts], x.device, report=True)


def find_matched_layers(teacher: nn.Module, x: Tensor) -> list[str]:
    """Return the names of the batch-norm layers with stored statistics that a network calls for samples."""
    stored = stored_norms(teacher)
    if not stored:
        return []
    with eval_mode(teacher), torch.no_grad():
        return find_calls(stored, lambda: teacher(x[:2].to(first_weight(teacher), copy=True)))


def _match(start: Tensor, moments: BatchNormMoments, low: Tensor, high: Tensor, rng: torch.Generator) -> Tensor:
    """Return a batch of samples after the steps; those without finite values stay as they are."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], _LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    stored = moments.stored()
    positions = list(range(2, x.dim()))
    for _ in range(STEPS):
        shifts = torch.randint(-_SHIFT, _SHIFT + 1, (len(positions),), generator=rng).tolist()
        with torch.enable_grad():
            shifted = torch.roll(x, shifts, positions) if positions else x.clone()
            found: list[Moments] = moments(shifted)[1]
            layers = [NormStatistics(*own, *other) for own, other in zip(found, stored, strict=True)]
            losses = [divergence_of_statistics(layer) for layer in layers]
            loss = torch.stack(losses).mean()
            if not loss.requires_grad:
                return start
            (x.grad,) = torch.autograd.grad(loss, [x])
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(low, high)
    finished = x.detach()
    finite = finished.flatten(1).isfinite().all(dim=1)
    return torch.where(finite.reshape(-1, *[1] * (x.dim() - 1)), finished, start)
