"""Sources made of other sources: samples that the teacher selects, and mixed samples."""

import torch
from torch import Tensor, nn

from kegnet_pl.networks.batch_norm import stored_norms
from kegnet_pl.networks.execution import chunk_size, eval_mode
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.runtime.distributed import concatenate
from kegnet_pl.runtime.seeds import derive_seed, stream
from kegnet_pl.sources.base import SyntheticSource, check_share
from kegnet_pl.sources.procedural import draw_fields


class SelectedSource(SyntheticSource):
    """Samples of a source that a teacher selects among several candidates for each; see :func:`select_samples`.

    Args:
        source: Draws the candidates.
        teacher: Returns logits ``(B, C)``; on the device of the samples. It is not changed.
        oversampling: Candidates for each sample, at least 1.

    Raises:
        ValueError: If ``oversampling`` is below 1.
    """

    def __init__(self, source: SyntheticSource, teacher: nn.Module, oversampling: int = 4) -> None:
        super().__init__()
        if isinstance(oversampling, bool) or not isinstance(oversampling, int) or oversampling < 1:
            raise ValueError(f"Expected `oversampling` to be a whole number of at least 1, but got {oversampling!r}.")
        self.source = source
        self.candidates = self.teacher_passes = oversampling
        self.input_shape = source.input_shape
        self.multiple = source.multiple
        self.needs_generators = source.needs_generators
        self._teacher = (teacher,)  # in a tuple, so that it is not registered

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples ``(n, *input_shape)``."""
        return select_samples(self.source.sample(n * self.candidates, seed), self._teacher[0], n, seed)


@torch.no_grad()
def select_samples(x: Tensor, teacher: nn.Module, n: int, seed: int = 0) -> Tensor:
    """Select samples of balanced classes that are near to the statistics of the teacher's batch norm.

    Every predicted class gets the same number of samples, if it has enough candidates. In each class, the candidates
    with the smallest distance from the teacher's training data are selected. The distance is a mean over the channels
    of the inputs of all batch-norm layers. For a channel with stored variance v, it is the squared difference of the
    sample's mean from the stored mean, divided by v, plus half of |s / v - 1|, where s is the mean squared distance
    from the stored mean. Without batch norm, the first candidates of each class are selected.

    Args:
        x: Candidates ``(N, *input_shape)``, on the teacher's device.
        teacher: Returns logits ``(B, C)``; it is not changed.
        n: Number of samples, at most N.
        seed: Seed of the order.

    Returns:
        Samples ``(n, *input_shape)``, in random order.
    """
    distances, logits = _distances_and_logits(x, teacher)
    classes = logits.argmax(dim=1)
    # For each sample its place within its class; the nearest have the first places.
    order = distances.argsort(stable=True)
    order = order[classes[order].argsort(stable=True)]
    counts = classes.bincount()
    places = torch.empty(len(x), dtype=torch.long)
    places[order] = torch.arange(len(x)) - (counts.cumsum(dim=0) - counts).repeat_interleave(counts)
    beyond = places >= n // logits.shape[1]  # of the quota of a class
    key = distances / distances.max().clamp_min(1e-30) + 2 * beyond
    chosen = key.argsort(stable=True)[:n]
    return x[chosen[torch.randperm(n, generator=stream(seed, "selection"))].to(x.device)]


def _distances_and_logits(x: Tensor, teacher: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the distance of each sample from the stored statistics ``(N,)``, and the logits, on the CPU."""
    stored = {
        name: (layer.running_mean, layer.running_var + layer.eps)
        for name, layer in stored_norms(teacher).items()
        if layer.running_mean is not None and layer.running_var is not None  # for the type
    }

    def distance(name: str, inputs: Tensor) -> Tensor:
        mean, variance = stored[name]
        values = inputs.flatten(2) if inputs.dim() > 2 else inputs[:, :, None]
        deviation = (values.mean(dim=2) - mean).square() / variance
        square = (values - mean[:, None]).square().mean(dim=2) / variance
        return (deviation + 0.5 * (square - 1).abs()).mean(dim=1)

    pieces = x.split(chunk_size(x.shape[1:], x.device))
    recorder = LayerRecorder(teacher, tuple(stored), distance, source="input")

    def measure_piece(index: int) -> Tensor:
        output, values = recorder.call_each(pieces[index].clone())
        found = [torch.stack(calls).mean(dim=0) if len(calls) > 1 else calls[0] for calls in values.values()]
        total = torch.stack(found).mean(dim=0) if found else torch.zeros(len(output))
        return torch.cat([total.float().cpu()[:, None], output.cpu()], dim=1)

    with eval_mode(teacher), recorder:
        measured = concatenate(measure_piece, [len(piece) for piece in pieces], torch.device("cpu"))
    return measured[:, 0].float().nan_to_num(nan=1e30, posinf=1e30), measured[:, 1:]


class MixedSource(SyntheticSource):
    """A source that mixes some of its samples with each other.

    Pairs are averaged with random weights. For images and signals, a smooth random mask composes two such averages:
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
        check_share(share=share)
        self.source = source
        self.share = share
        self.multiple, self.candidates, self.input_shape = source.multiple, source.candidates, source.input_shape
        self.needs_generators, self.teacher_passes = source.needs_generators, source.teacher_passes

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
