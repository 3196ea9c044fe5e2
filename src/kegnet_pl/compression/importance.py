"""Importance of channels: the change of the logits by their removal, after compensation by the others.

The outputs y of a layer that reads channels x change by ``W_c x_c`` if channel c is removed. The remaining channels can
predict a part of ``x_c``, and their weights replace it (:func:`~kegnet_pl.compression.reconstruction.reconstruct`).
The rest has the conditional variance ``1 / P_cc``, P is the inverse of the second moments of x. So a channel costs
``positions * (W_c^T G W_c) / P_cc``, with the sensitivity G of the logits to y. W and P are updated after each removal.

The formula assumes that positions and layers are independent. To correct this, the cost of each channel is scaled by a
ratio of two changes without compensation. The first is the mean square of ``sum x_c dz/dx_c`` over all positions and
layers that read the channel, for logits z and centred x. The second follows from the formula above.

Source:
    Optimal brain surgeon: Hassibi and Stork, "Second order derivatives for network pruning", 1993, for whole channels.
    The scale is the criterion of Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kegnet_pl.compression.activations import LayerMoments, chunks, probe_gradients, takes_batches, to_rows
from kegnet_pl.compression.groups import ChannelGroup, Part
from kegnet_pl.compression.reconstruction import choose_positions
from kegnet_pl.compression.tucker import read_weight
from kegnet_pl.networks.execution import eval_mode
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.runtime.seeds import stream

_DAMPING = 1e-3
"""Share of the mean that is added to the diagonal of second moments."""

_PROBES = 2
"""Random directions in the logits for each sample."""


@dataclass
class _Reader:
    """One layer that reads the channels of a group.

    Attributes:
        metric: ``W^T G W`` summed over the kernel, ``(size, size)``, times the positions of the outputs.
        moments: Second moments of the channels ``(size, size)``; their inverse if the layer is fitted afterwards.
        fitted: True if the layer is fitted afterwards.
        alone: Change of the logits by the removal of each channel, without compensation, ``(size,)``.
        scores: The same now, with compensation.
    """

    metric: Tensor
    moments: Tensor
    fitted: bool

    def __post_init__(self) -> None:
        self.alone = self.metric.diagonal() * self.moments.diagonal()
        if self.fitted:
            damping = _DAMPING * max(float(self.moments.diagonal().mean()), 1e-20)
            self.moments = torch.linalg.inv(self.moments + damping * torch.eye(len(self.moments)).to(self.moments))
            self.scores = self.metric.diagonal() / self.moments.diagonal()
        else:
            self.metric = self.metric * self.moments
            self.scores = self.metric.diagonal().clone()

    def remove(self, channel: int) -> None:
        """Remove one channel; the others compensate for it."""
        if not self.fitted:
            self.scores += 2 * self.metric[channel]
            return
        inverse = self.moments
        weights = -inverse[channel] / inverse[channel, channel]
        weights[channel] = 0.0
        row = self.metric[channel].clone()
        cross = torch.outer(weights, row)
        self.metric += cross + cross.T + row[channel] * torch.outer(weights, weights)
        inverse -= torch.outer(inverse[:, channel], inverse[channel]) / inverse[channel, channel]
        for matrix in (self.metric, inverse):
            matrix[channel] = matrix[:, channel] = 0.0
        inverse[channel, channel] = 1.0
        self.scores = self.metric.diagonal() / inverse.diagonal().clamp_min(1e-300)


class Importance:
    """Costs of the removal of channels of one group.

    Args:
        group: The group.
        readers: The layers that read its channels.
        gates: Squared change of the logits by the removal of each channel alone, ``(size,)``; zeros if unknown.
    """

    def __init__(self, group: ChannelGroup, readers: Sequence[_Reader], gates: Tensor) -> None:
        self.group, self._readers = group, readers
        alone = sum((reader.alone for reader in readers), torch.zeros(group.size, dtype=torch.float64))
        self._scale = gates / alone.clamp_min(1e-300) if gates.any() else torch.ones_like(gates)
        self.alive = torch.ones(group.size, dtype=torch.bool)

    def find(self, number: int) -> tuple[float, Tensor]:
        """Return the estimated squared change of the logits by the removal of the best heads or channels, and those.

        Args:
            number: Heads, or channels of every block.
        """
        scores = sum((reader.scores for reader in self._readers), torch.zeros(self.group.size, dtype=torch.float64))
        scores = (self._scale * scores.clamp_min(0.0)).where(self.alive, torch.inf)
        channels = self.group.pick(scores, number)
        return float(scores[channels].sum()), channels

    def remove(self, channels: Tensor) -> None:
        """Remove channels."""
        for channel in channels.tolist():
            for reader in self._readers:
                reader.remove(channel)
        self.alive[channels] = False


def _places(part: Part, size: int) -> Tensor:
    """Return the channels of each root, ``(size, n)``: several if a dense layer reads all positions of an image."""
    return part.channels[part.roots.argsort(stable=True)].reshape(size, -1)


def _measure_channels(
    network: nn.Module, groups: Sequence[ChannelGroup], samples: Tensor, seed: int
) -> dict[tuple[int, str], Tensor]:
    """Return the second moments of the channels of groups at the inputs of their readers, by index and layer."""
    sums: dict[tuple[int, str], tuple[Tensor, int]] = {}
    readers: dict[str, list[tuple[int, Tensor]]] = {}
    for index, group in enumerate(groups):
        for part in group.readers:
            readers.setdefault(part.name, []).append((index, _places(part, group.size)))
    rng = stream(seed, "positions")

    def collect(name: str, x: Tensor) -> None:
        layer = network.get_submodule(name)
        if not takes_batches(layer, x):  # type: ignore[arg-type]
            return
        rows = to_rows(x, not isinstance(layer, nn.Linear))
        rows = choose_positions(rows.reshape(len(x), -1, rows.shape[1]), rng).flatten(0, 1)
        for index, places in readers[name]:
            values = rows[:, places.T].flatten(0, 1)
            total, count = sums.get((index, name), (torch.zeros(()), 0))
            sums[index, name] = total + (values.T @ values).double().cpu(), count + len(values)

    recorder = LayerRecorder(network, tuple(readers), collect, source="input")
    with eval_mode(network), recorder, torch.no_grad():
        for x in chunks(samples):
            recorder.call(x.clone())
    return {key: total / count for key, (total, count) in sums.items()}


def _measure_gates(network: nn.Module, groups: Sequence[ChannelGroup], samples: Tensor, seed: int) -> list[Tensor]:
    """Return the squared change of the logits by the removal of each channel alone, for every group."""
    readers = tuple(dict.fromkeys(part.name for group in groups for part in group.readers))
    rng, inputs = stream(seed, "probes"), list[tuple[str, Tensor]]()

    def collect(name: str, x: Tensor) -> Tensor:
        inputs.append((name, x.clone()))
        return inputs[-1][1]

    recorder = LayerRecorder(network, readers, collect, source="input", replace=lambda value: value)
    total = [torch.zeros(group.size, dtype=torch.float64) for group in groups]
    with eval_mode(network), recorder, torch.enable_grad():
        for x in chunks(samples):
            inputs.clear()
            logits, _ = recorder.call(x.detach().requires_grad_().clone())
            used = [(name, value) for name, value in inputs if value.requires_grad and len(value) % len(x) == 0]
            if not used:  # their inputs have no gradients
                continue
            for gradients in probe_gradients(logits, [value for _, value in used], rng, _PROBES):
                products: dict[str, Tensor] = {}
                for (name, value), gradient in zip(used, gradients, strict=True):
                    if gradient is not None:
                        change = _sum_products(network.get_submodule(name), value.detach(), gradient, len(x))
                        products[name] = products.get(name, 0.0) + change
                for index, group in enumerate(groups):
                    change = torch.zeros(len(x), group.size, device=x.device)
                    for part in group.readers:
                        if part.name in products:
                            change.index_add_(1, part.roots.to(x.device), products[part.name][:, part.channels])
                    total[index] += change.square().sum(dim=0).double().cpu() / _PROBES
    return [value / len(samples) for value in total]


def _sum_products(layer: nn.Module, x: Tensor, gradient: Tensor, n: int) -> Tensor:
    """Return ``x * gradient`` of a layer's centred input, summed over the positions of each sample, ``(n, C)``."""
    values, slopes = (
        to_rows(one, not isinstance(layer, nn.Linear)).reshape(n, -1, _channels(layer, one)) for one in (x, gradient)
    )
    return ((values - values.mean(dim=(0, 1))) * slopes).sum(dim=1).float()


def _channels(layer: nn.Module, x: Tensor) -> int:
    return x.shape[-1] if isinstance(layer, nn.Linear) else x.shape[1]


def _read_metric(layer: nn.Module, places: Tensor, moments: LayerMoments) -> tuple[Tensor, Tensor]:
    """Return the metric of the channels of a reader, and a mask of the pairs that it can exchange."""
    weight = read_weight(layer).detach().cpu().double()
    weight = weight.reshape(*weight.shape[:2], -1)
    blocks = int(getattr(layer, "groups", 1))
    if blocks == 1:
        weight = weight[:, places].flatten(2)
        metric = torch.einsum("ocp,oq,qdp->cd", weight, moments.sensitivity, weight)
        return moments.positions * metric, torch.ones_like(metric)
    own = torch.zeros(weight.shape[1] * blocks, weight.shape[1] * blocks, dtype=torch.float64)
    mask = own.clone()
    for block, rows in enumerate(torch.arange(len(weight)).chunk(blocks)):
        part = slice(block * weight.shape[1], (block + 1) * weight.shape[1])
        sensitivity = moments.sensitivity[rows][:, rows]
        own[part, part] = torch.einsum("ocp,oq,qdp->cd", weight[rows], sensitivity, weight[rows])
        mask[part, part] = 1.0
    order = places[:, 0]
    return moments.positions * own[order][:, order], mask[order][:, order]


def prepare(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    moments: Mapping[str, LayerMoments],
    fitted: Sequence[str],
    samples: Tensor,
    seed: int,
) -> list[Importance]:
    """Return the importance of the channels of groups.

    Args:
        network: Returns logits; it is not changed.
        groups: The groups.
        moments: Of the layers that read the channels (:func:`~kegnet_pl.compression.activations.measure_layers`).
        fitted: Layers that are fitted afterwards.
        samples: Samples ``(N, *input_shape)``.
        seed: Seed of positions and directions.
    """
    gates = _measure_gates(network, groups, samples, seed)
    channels = _measure_channels(network, groups, samples, seed)
    found = []
    for index, group in enumerate(groups):
        readers = []
        for part in group.readers:
            if part.name in moments and (index, part.name) in channels:
                layer, places = network.get_submodule(part.name), _places(part, group.size)
                metric, mask = _read_metric(layer, places, moments[part.name])
                readers.append(_Reader(metric, channels[index, part.name] * mask, part.name in fitted))
        found.append(Importance(group, readers, gates[index]))
    return found
