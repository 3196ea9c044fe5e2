"""The compression report: parameters and operations of every layer, before and after."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kegnet_pl.networks.execution import eval_mode, first_weight

_REPEATED = 3
"""Number of layers from which their note stands below a table."""


@dataclass(frozen=True)
class ModelSize:
    """Parameters and operations of a network.

    Attributes:
        parameters: Number of weights and biases, without buffers.
        macs: Multiply-accumulate operations for one sample in convolutions and matrix products.
        layer_macs: The same for every module, by name.
    """

    parameters: int
    macs: int
    layer_macs: dict[str, int]


def count_parameters(network: nn.Module) -> int:
    """Return the number of weights and biases of a network; a shared weight counts once."""
    return sum(parameter.numel() for parameter in network.parameters())


def measure_size(network: nn.Module, input_shape: Sequence[int]) -> ModelSize:
    """Return the parameters of a network, and its multiply-accumulates for one sample of shape ``input_shape``.

    Mode and statistics of the network are not changed.
    """
    weight = first_weight(network)
    sample = torch.zeros(1, *input_shape, device=weight.device, dtype=weight.dtype)
    with eval_mode(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(sample)
    root = type(network).__name__
    # The counter counts a multiply-accumulate as two operations.
    layers = {
        name.removeprefix(f"{root}."): sum(operations.values()) // 2
        for name, operations in counter.get_flop_counts().items()
        if name.startswith(f"{root}.")
    }
    return ModelSize(count_parameters(network), counter.get_total_flops() // 2, layers)


@dataclass(frozen=True)
class LayerReport:
    """One layer before and after compression.

    Attributes:
        layer: Name of the layer in the network.
        kind: ``"conv"``, ``"transposed"`` (convolution) or ``"linear"``, or the class name of another layer.
        in_rank: Rank on the input side, None if the layer is unchanged.
        out_rank: Rank on the output side, None if the layer is unchanged.
        parameters_before: Weights and biases before.
        parameters_after: Weights and biases after.
        macs_before: Multiply-accumulates for one sample before.
        macs_after: Multiply-accumulates for one sample after.
        note: Reason why the layer is unchanged, or a change of its ranks; empty otherwise.
        channels_before: Inputs and outputs of a layer before pruning; None for a factorisation.
        channels_after: The same after.
    """

    layer: str
    kind: str
    in_rank: int | None
    out_rank: int | None
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    note: str = ""
    channels_before: tuple[int, int] | None = None
    channels_after: tuple[int, int] | None = None

    @property
    def ranks(self) -> tuple[int, int] | None:
        """``(in_rank, out_rank)``, or None if the layer is unchanged."""
        return None if self.in_rank is None or self.out_rank is None else (self.in_rank, self.out_rank)

    @property
    def width(self) -> str:
        """Ranks, or channels before and after, as text."""
        if self.channels_before is None or self.channels_after is None:
            return "" if self.ranks is None else f"{self.in_rank}, {self.out_rank}"
        before, after = (", ".join(map(str, pair)) for pair in (self.channels_before, self.channels_after))
        return before if before == after else f"{before} -> {after}"


@dataclass(frozen=True)
class CompressionReport:
    """Report of a compression: all convolutions and dense layers, and the totals of the network.

    Attributes:
        rows: One row per convolution or dense layer, in the order of the network.
        parameters_before: Weights and biases of the whole network before, including batch norm.
        parameters_after: The same after.
        macs_before: Multiply-accumulates for one sample before.
        macs_after: The same after.
    """

    rows: tuple[LayerReport, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int

    @property
    def compression_ratio(self) -> float:
        """Parameters before, divided by parameters after."""
        return self.parameters_before / self.parameters_after

    @property
    def ranks(self) -> dict[str, tuple[int, int]]:
        """``(in_rank, out_rank)`` of every compressed layer, by name."""
        return {row.layer: row.ranks for row in self.rows if row.ranks is not None}

    @property
    def width_title(self) -> str:
        """Heading of the column with :attr:`LayerReport.width`."""
        return "ranks in, out" if all(row.channels_before is None for row in self.rows) else "channels in, out"

    def cells(self) -> tuple[list[tuple[str, ...]], list[str]]:
        """Return the report as a table of texts, and the notes below it.

        The table has the head, a line for each layer, and a line for the network. Notes of several layers are numbers
        in the table.
        """
        counts = Counter(row.note for row in self.rows if row.note)
        often = [note for note, count in counts.items() if count >= _REPEATED]
        numbers = {note: f"({number})" for number, note in enumerate(often, start=1)}
        head = ("layer", "kind", self.width_title, "parameters", "MACs", "note")
        layers = [
            (
                row.layer,
                row.kind,
                row.width,
                _change(row.parameters_before, row.parameters_after),
                _change(row.macs_before, row.macs_after),
                numbers.get(row.note, row.note),
            )
            for row in self.rows
        ]
        parameters = _change(self.parameters_before, self.parameters_after)
        macs = _change(self.macs_before, self.macs_after)
        total = ("network", "", "", parameters, macs, f"{self.compression_ratio:.2f}x smaller")
        return [head, *layers, total], [f"{number} {note}" for note, number in numbers.items()]

    def __str__(self) -> str:
        """Return the report as a plain table, for ``print``."""
        cells, notes = self.cells()
        return "\n".join([align(cells), *notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self) | {"compression_ratio": self.compression_ratio}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "CompressionReport":
        """Return the report from the output of :meth:`to_dict`."""
        rows = tuple(LayerReport(**row) for row in content["rows"])
        totals = {key: value for key, value in content.items() if key not in ("rows", "compression_ratio")}
        return cls(rows=rows, **totals)


@dataclass(frozen=True)
class Compressed:
    """A compressed network and its report.

    Attributes:
        network: The smaller network, a copy; it shares no tensor with the original.
        report: Costs of every layer before and after.
        fitted: Layers that were fitted to the function of the original (with a calibration).
        agreement: Share of held-out samples to which both networks give the same class (with a calibration); None if
            the original gives one class to all.
        method: ``"tucker"`` or ``"pruning"``; ``"tucker, three layers"`` if that form was compared and chosen.
        compared: Methods that were compared (:class:`AutomaticPlan`): name -> agreement, or the reason of a failure.
        held_out: Number of held-out samples; 0 without a calibration.
    """

    network: nn.Module
    report: CompressionReport
    fitted: tuple[str, ...] = ()
    agreement: float | None = None
    method: str = "tucker"
    compared: Mapping[str, float | str | None] = field(default_factory=dict)
    held_out: int = 0

    def __repr__(self) -> str:
        before, after = self.report.parameters_before, self.report.parameters_after
        return f"Compressed({type(self.network).__name__}, {before:,} -> {after:,} parameters, {before / after:.2f}x)"


def align(cells: Sequence[Sequence[str]]) -> str:
    """Return a table of texts as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (zip(line, widths, strict=True) for line in cells)
    return "\n".join("  ".join(text.ljust(width) for text, width in line).rstrip() for line in lines)


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"
