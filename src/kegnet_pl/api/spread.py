"""Exchange of trained generators between processes."""

from collections.abc import Callable

from torch import nn

from kegnet_pl.networks.handling import set_mode
from kegnet_pl.runtime.distributed import exchange
from kegnet_pl.training.fit import Metrics

Pair = tuple[nn.Module, nn.Module]
"""A generator and its decoder."""


def receive_pairs(make_pair: Callable[[int], Pair], trained: dict[int, Pair], metrics: dict[int, Metrics]) -> None:
    """Exchange generators, decoders and metrics with the other processes, and add theirs.

    Args:
        make_pair: Takes an index, returns a new pair.
        trained: The pairs that this process has trained, by index; on the CPU.
        metrics: Their metrics.
    """
    states = {index: [network.state_dict() for network in pair] for index, pair in trained.items()}
    for theirs, values in exchange((states, dict(metrics))):
        for index in theirs.keys() - trained.keys():
            pair = make_pair(index)
            for network, state in zip(pair, theirs[index], strict=True):
                network.load_state_dict(state)
                set_mode(network, training=False)
            trained[index], metrics[index] = pair, values[index]
