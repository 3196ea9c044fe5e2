"""Latency of networks: ``python -m kegnet_pl.benchmark RUN`` measures those of a finished run on this machine."""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kegnet_pl.compression.report import align
from kegnet_pl.networks.execution import copies_to_time, eval_mode, first_weight
from kegnet_pl.networks.handling import move
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.devices import Device, find_device
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.runtime.timing import explain_noise, is_noisy, time_in_turns

BATCH_SIZES = (1, 64)
"""Default batch sizes: one sample at a time, and many."""

LAYOUT = {"layout": "channels-last"}
"""Memory layout of measured networks of PyTorch, for a fingerprint."""

_ROUNDS = (5, 200)
"""Least and greatest number of measurements of a network."""

_SHORTEST = 2e-3
"""Seconds of one measurement at least; a faster network is called several times."""


@dataclass(frozen=True)
class Latency:
    """Time of a network for one batch.

    Attributes:
        network: Name of the network.
        batch_size: Samples of the batch.
        milliseconds: Median over rounds.
        spread: Interquartile range over rounds, in milliseconds.
        speedup: Time of the first network divided by the time of this one; median over rounds.
    """

    network: str
    batch_size: int
    milliseconds: float
    spread: float
    speedup: float


@dataclass(frozen=True)
class LatencyReport:
    """Latencies of networks that were measured together.

    Attributes:
        device: Name of the device.
        threads: Threads of PyTorch on a CPU; None on a GPU.
        rows: For each batch size, the networks in their order; the first is the baseline.
    """

    device: str
    threads: int | None
    rows: tuple[Latency, ...]

    @property
    def where(self) -> str:
        """Device and threads, as text."""
        return self.device if self.threads is None else f"{self.device}, {self.threads} thread{'s'[: self.threads > 1]}"

    def find(self, network: str, batch_size: int) -> Latency | None:
        """Return the latency of a network for a batch size, None if it was not measured."""
        return next((row for row in self.rows if (row.network, row.batch_size) == (network, batch_size)), None)

    @property
    def noisy(self) -> list[int]:
        """Batch sizes for which the times of a network vary by more than half of their median."""
        return list(dict.fromkeys(row.batch_size for row in self.rows if is_noisy(row.milliseconds, row.spread)))

    def describe(self, network: str) -> dict[str, Any]:
        """Return the latencies of one network as plain values, for a row of results."""
        values = {
            str(row.batch_size): {"ms": row.milliseconds, "spread": row.spread, "speedup": row.speedup}
            for row in self.rows
            if row.network == network
        }
        return {"device": self.device, "threads": self.threads, "batches": values}

    def __str__(self) -> str:
        """Return a plain table, for ``print``."""
        lines = [("network", "batch", "ms", "spread", "speed-up")]
        for row in self.rows:
            times = f"{row.milliseconds:.3g}", f"{row.spread:.2g}", f"{row.speedup:.2f}x"
            lines.append((row.network, str(row.batch_size), *times))
        noise = f"\n{explain_noise(self.noisy)} Measure again." if self.noisy else ""
        return f"{align(lines)}\nmeasured on {self.where}{noise}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LatencyReport":
        """Return the report from the output of :meth:`to_dict`."""
        return cls(content["device"], content["threads"], tuple(Latency(**row) for row in content["rows"]))


@torch.no_grad()  # inference_mode would leave tensors that cannot be trained
def measure_latency(
    networks: Mapping[str, nn.Module],
    input_shape: Sequence[int],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    device: Device = "cpu",
    threads: int | None = None,
    seconds: float = 1.0,
) -> LatencyReport:
    """Measure how long networks take for a batch, in PyTorch without compilation.

    The networks are measured in turns, so other load on the machine affects all of them. Compare speed-ups, not
    milliseconds of two calls. Convolutional networks for images are measured in channels-last memory
    (``network.to(memory_format=torch.channels_last)``) if all of them accept it, else in the default layout. Students
    are trained in channels-last memory. Convolutions can be faster in it (results/SPEED.md).

    Args:
        networks: Networks by name, in evaluation mode for the measurement; the first is the baseline. Copies of
            convolutional networks for images are measured. Other networks are moved to the device and back.
        input_shape: Shape of one sample.
        batch_sizes: Samples of a batch.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for a GPU if there is one.
        threads: Threads of PyTorch on a CPU; None: the current setting of PyTorch.
        seconds: Measuring time per batch size, for all networks together. Every network is measured in 5 to 200 rounds,
            so fast networks take less time and slow ones more.

    Returns:
        Median, spread and speed-up per network and batch size.

    Raises:
        ValueError: If an argument is out of range.
    """
    place = find_device(device)
    if not networks:
        raise ValueError("Expected `networks` to hold at least one network, but got none.")
    if threads is not None and threads < 1:
        raise ValueError(f"Expected `threads` of at least 1, but got {threads}.")
    if not all(isinstance(size, int) and size >= 1 for size in batch_sizes):
        raise ValueError(f"Expected `batch_sizes` to be whole numbers of at least 1, but got {list(batch_sizes)!r}.")
    count = torch.get_num_threads() if threads is None else threads
    networks = dict(zip(networks, copies_to_time(list(networks.values()), input_shape), strict=True))
    homes = {name: first_weight(network).device for name, network in networks.items()}
    rows: list[Latency] = []
    with ExitStack() as stack:
        stack.enter_context(_threads(count))
        for name, network in networks.items():
            stack.enter_context(eval_mode(network))
            stack.callback(move, network, homes[name])
            move(network, place)
        for size in batch_sizes:
            x = torch.randn(size, *input_shape, device=place)
            calls = [(network, x.to(first_weight(network).dtype)) for network in networks.values()]
            times = time_in_turns(calls, shortest=_SHORTEST, rounds=_ROUNDS, seconds=seconds)
            base = times[0]
            for name, values in zip(networks, times, strict=True):
                low, middle, high = statistics.quantiles(values, n=4)
                ratio = statistics.median(first / own for first, own in zip(base, values, strict=True))
                rows.append(Latency(name, size, 1e3 * middle, 1e3 * (high - low), ratio))
    return LatencyReport(device_name(place), None if place.type == "cuda" else count, tuple(rows))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set PyTorch's number of threads within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """Return the name of a device."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return next((line for line in (_cpu_model(), platform.processor(), platform.machine()) if line), "CPU")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the properties of a machine that change a measured time, for a fingerprint."""
    return {"device": device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__}


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def measure_run(folder: Path, trust: Collection[str] = (), **options: Any) -> LatencyReport:
    """Measure the networks of a finished run; ``options`` are those of :func:`measure_latency`.

    Students of one structure take the same time, so only the compressed network and the teacher are measured.

    ``trust`` names code that the files of the run may name, see :func:`load_network`.

    Raises:
        UserError: If the folder holds no finished run, or its networks were deleted from the store.
    """
    from kegnet_pl.api.checkpoints import load_network
    from kegnet_pl.reporting.run_page import StageFolders

    stages = StageFolders.read(folder)
    found = {name: stages.find(name) for name in ("teacher", "compression")} if stages is not None else {}
    if stages is None or None in found.values():
        raise UserError(
            f"Expected the folder of a finished run whose networks are in the store, such as outputs/runs/..., but got "
            f"{folder}."
        )
    networks = {name: load_network(path, trust=trust) for name, path in found.items() if path is not None}
    return measure_latency(
        {"teacher": networks["teacher"], "student": networks["compression"]},
        stages.config["data"]["input_shape"],
        **options,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line with arguments, or those of this process; return the exit status."""
    from kegnet_pl.api.trust import TRUST_HELP

    parser = argparse.ArgumentParser(
        prog="python -m kegnet_pl.benchmark",
        description="Measure the latency of the teacher and the student of a finished run on this machine.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run, such as outputs/runs/...")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES, metavar="N", help="default: 1 64")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on a CPU (default: the present number)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="measuring time per batch size (default: %(default)s)"
    )
    parser.add_argument("--trust", nargs="+", default=[], metavar="NAME", help=TRUST_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to a file")
    options = parser.parse_args(arguments)
    try:
        report = measure_run(
            options.folder, options.trust, batch_sizes=options.batch_sizes, device=options.device,
            threads=options.threads, seconds=options.seconds,
        )  # fmt: skip
    except (UserError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(report)  # noqa: T201
    if options.json is not None:
        atomic_write(options.json, json.dumps(report.to_dict(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
