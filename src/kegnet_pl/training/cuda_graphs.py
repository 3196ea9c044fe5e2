"""Steps on a GPU that are recorded once and played again."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Steps that are made as usual before one is recorded: libraries choose their kernels and take their workspaces."""

Differentiate = Callable[[Any], dict[str, Tensor]]
"""Takes the tensors of a batch, writes the gradients of all parameters, returns metrics."""

log = logging.getLogger(__name__)


class GraphedStep:
    """Forward and backward of a training step, recorded once as a CUDA graph and replayed for every batch.

    A small network on a GPU takes longer to be told what to do than to do it: hundreds of kernels of some
    microseconds, each launched from Python. A graph launches all of them at once. They are the same kernels, on the
    same memory: batches are copied to where the recorded one lay, gradients and metrics appear where its own did. What
    the step draws from torch's global stream (dropout) goes on as without.

    What a step does in Python (a term whose weight grows, a callback's ``on_before_backward``) happens when it is
    recorded, and never again: ``cuda_graphs=false`` is for such. A step that cannot be recorded, as it
    waits for the GPU to look at a value, and a batch of another shape than the first, are computed as usual.

    Args:
        differentiate: The step; starts with gradients of None.
        parameters: What it writes gradients of.

    Source:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, differentiate: Differentiate, parameters: Sequence[nn.Parameter]) -> None:
        self._differentiate = differentiate
        self._parameters = parameters
        self._aside = torch.cuda.Stream()
        self._made = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._gradients: list[Tensor | None] = []
        self._metrics: dict[str, Tensor] = {}
        self._possible = True

    def __call__(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Write the gradients for a batch; return its metrics, which the next call overwrites."""
        if self._graph is None and self._possible:
            if self._made < WARM_UP:
                self._made += 1
                return self._warm_up(batch)
            self._record(batch)
        if self._graph is None or [tensor.shape for tensor in batch] != [tensor.shape for tensor in self._inputs]:
            return self._differentiate(batch)
        for mine, given in zip(self._inputs, batch, strict=True):
            mine.copy_(given)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # a step in between may have had others
        self._graph.replay()
        return self._metrics

    def _warm_up(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Make a step on a stream of its own, as recording will."""
        here = torch.cuda.current_stream()
        self._aside.wait_stream(here)
        with torch.cuda.stream(self._aside):
            metrics = self._differentiate(batch)
        here.wait_stream(self._aside)
        return metrics

    def _record(self, batch: Sequence[Tensor]) -> None:
        """Record a step, without making it."""
        graph = torch.cuda.CUDAGraph()
        inputs = tuple(tensor.clone() for tensor in batch)
        chance = torch.cuda.default_generators[torch.cuda.current_device()]
        before = chance.clone_state()
        try:
            with torch.cuda.graph(graph):
                metrics = self._differentiate(inputs)
        except RuntimeError as error:
            self._possible = False
            chance.graphsafe_set_state(before)  # it would go on as if it were being recorded
            log.info("Steps are launched one by one: they cannot be recorded as a CUDA graph (%s).", error)
            return
        self._graph, self._inputs, self._metrics = graph, inputs, metrics
        self._gradients = [parameter.grad for parameter in self._parameters]
