"""Sources made of other sources: samples that the teacher selects, and mixed samples."""

import torch
from torch import Tensor, nn

from kegnet_pl.networks import norm_layers
from kegnet_pl.networks.execution import chunk_size, eval_mode
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.runtime.seeds import derive_seed, stream
from kegnet_pl.sources.base import SyntheticSource
from kegnet_pl.sources.procedural import draw_fields


class SelectedSource(SyntheticSource):
    """Samples of a source that a teacher selects.

    The source draws several candidates for each sample. Every class of the teacher's answers gets the same number of
    samples, as far as it has candidates. Candidates of a class are selected by the statistics of batch norm: those
    whose channels come nearest to the stored means and mean squares in all layers, relative to the stored variance.
    Without batch norm the first candidates are selected.

    Args:
        source: Draws the candidates.
        teacher: Returns logits ``(B, C)``; on the device of the samples. It is not changed.
        oversampling: Candidates for each sample, at least 1.

    Raises:
        ValueError: If ``oversampling`` is below 1.
    """

    def __init__(self, source: SyntheticSource, teacher: nn.Module, oversampling: int = 4) -> None:
        super().__init__()
        if oversampling < 1:
            raise ValueError(f"Expected `oversampling` of at least 1, but got {oversampling}.")
        self.source = source
        self.oversampling = oversampling
        self.multiple = source.multiple
        self.needs_generators = source.needs_generators
        self._teacher = (teacher,)  # in a tuple, so that it is not registered
        self._stored = {
            name: (layer.running_mean, layer.running_var + layer.eps)
            for name, layer in norm_layers(teacher).items()
            if layer.running_mean is not None and layer.running_var is not None
        }

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``."""
        x = self.source.sample(n * self.oversampling, seed)
        distances, logits = self._judge(x)
        classes = logits.argmax(dim=1)
        quota, chosen = n // logits.shape[1], []
        for label in range(logits.shape[1]):
            of_class = (classes == label).nonzero()[:, 0]
            chosen.append(of_class[distances[of_class].argsort(stable=True)][:quota])
        found = torch.cat(chosen)
        rest = torch.ones(len(x), dtype=torch.bool)
        rest[found] = False
        others = rest.nonzero()[:, 0]
        others = others[distances[others].argsort(stable=True)][: n - len(found)]
        order = torch.randperm(n, generator=stream(seed, "selection"))
        return x[torch.cat([found, others])[order].to(x.device)]

    def _judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance of each sample from the stored statistics ``(N,)``, and the logits, on the CPU."""
        (teacher,) = self._teacher
        distances, logits = [], []
        with (
            eval_mode(teacher),
            LayerRecorder(teacher, tuple(self._stored), self._distance, source="input") as recorder,
        ):
            for piece in x.split(chunk_size(x.shape[1:], x.device)):
                output, values = recorder.call(piece.clone())
                logits.append(output.cpu())
                total = torch.stack(list(values.values())).mean(dim=0) if values else torch.zeros(len(piece))
                distances.append(total.cpu())
        return torch.cat(distances), torch.cat(logits)

    def _distance(self, name: str, x: Tensor) -> Tensor:
        mean, variance = self._stored[name]
        mean, variance = mean.to(x), variance.to(x)
        values = x.flatten(2) if x.dim() > 2 else x[:, :, None]
        deviation = (values.mean(dim=2) - mean).square() / variance
        square = (values - mean[:, None]).square().mean(dim=2) / variance
        return (deviation + 0.5 * (square - 1).abs()).mean(dim=1)


class MixedSource(SyntheticSource):
    """A source that mixes some of its samples with each other.

    Pairs are averaged with random weights. For images, a smooth random mask then composes two such averages:
    ``m (k a + (1 - k) b) + (1 - m) (l c + (1 - l) d)``. Labels are the teacher's answers to the mixed samples.

    Args:
        source: Draws the samples.
        share: Share of mixed samples, from 0 to 1.

    Raises:
        ValueError: If ``share`` is out of range.

    Source:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018.
    """

    def __init__(self, source: SyntheticSource, share: float = 0.5) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"Expected `share` of mixed samples from 0 to 1, but got {share}.")
        self.source = source
        self.share = share
        self.multiple = source.multiple
        self.needs_generators = source.needs_generators

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``."""
        x = self.source.sample(n, seed)
        count = round(self.share * n)
        rng = stream(derive_seed(seed, "mixing"), "samples")
        chosen = torch.randperm(n, generator=rng)[:count].to(x.device)
        ones = (1,) * (x.dim() - 1)

        def average(first: Tensor) -> Tensor:
            other = x[torch.randint(n, (count,), generator=rng).to(x.device)]
            return torch.lerp(other, first, torch.rand(count, *ones, generator=rng).to(x))

        mixed = average(x[chosen])
        if x.dim() > 2 and count:
            second = average(x[torch.randint(n, (count,), generator=rng).to(x.device)])
            fields = draw_fields(count, (1, *x.shape[2:]), rng, (2.5, 5.0))
            mask = torch.sigmoid(6 * fields + 2 * torch.randn(count, *ones, generator=rng))
            mixed = torch.lerp(second, mixed, mask.to(x))
        x = x.clone()
        x[chosen] = mixed
        return x
