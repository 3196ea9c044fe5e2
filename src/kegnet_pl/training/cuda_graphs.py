"""Training steps on a GPU that are recorded once as a CUDA graph and replayed."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

WARM_UP = 3
"""Ordinary steps before one is recorded: in them, libraries choose kernels and allocate workspaces."""

Differentiate = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]
"""Takes the tensors of a batch, writes the gradients of all parameters, returns the loss and metrics, detached."""

log = logging.getLogger(__name__)


class GraphedStep:
    """Forward and backward of a training step, recorded once as a CUDA graph and replayed for every batch.

    Launching the hundreds of kernels of a small network from Python takes longer than computing them. A graph launches
    all of them at once. They are the same kernels on the same memory: batches are copied to the inputs of the recorded
    step, and gradients, loss and metrics appear where that step wrote them. Draws from torch's global stream (dropout)
    are the same as without a graph.

    Python code of a step (a term whose weight grows, a callback's ``on_before_backward``) runs when the step is
    recorded, and not afterwards: set ``cuda_graphs=false`` for such code. A step that waits for a value of the GPU
    cannot be recorded and is computed without a graph. So are batches with another shape than the first.

    Args:
        differentiate: The step; starts with gradients of None.
        parameters: Parameters whose gradients it writes.

    Source:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, differentiate: Differentiate, parameters: Sequence[nn.Parameter]) -> None:
        self._differentiate = differentiate
        self._parameters = parameters
        self._side_stream = torch.cuda.Stream()
        self._warm_up_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._gradients: list[Tensor | None] = []
        self._output: tuple[Tensor, dict[str, Tensor]]
        self._possible = True

    def __call__(self, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Write the gradients of a batch; return its loss and metrics, which the next call overwrites."""
        if self._graph is None and self._possible:
            if self._warm_up_steps < WARM_UP:
                self._warm_up_steps += 1
                return self._warm_up(batch)
            self._record(batch)
        if self._graph is None or [tensor.shape for tensor in batch] != [tensor.shape for tensor in self._inputs]:
            return self._differentiate(batch)
        for recorded, given in zip(self._inputs, batch, strict=True):
            recorded.copy_(given)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # a step that was not replayed has put others there
        self._graph.replay()
        return self._output

    def _warm_up(self, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute a step on a side stream, as recording will."""
        main_stream = torch.cuda.current_stream()
        self._side_stream.wait_stream(main_stream)
        with torch.cuda.stream(self._side_stream):
            output = self._differentiate(batch)
        main_stream.wait_stream(self._side_stream)
        return output

    def _record(self, batch: Sequence[Tensor]) -> None:
        """Record a step without computing it."""
        graph = torch.cuda.CUDAGraph()
        inputs = tuple(tensor.clone() for tensor in batch)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.clone_state()
        try:
            with torch.cuda.graph(graph):
                output = self._differentiate(inputs)
        except RuntimeError as error:
            self._possible = False
            generator.graphsafe_set_state(before)  # it would stay in the state of recording
            log.info("Steps are launched one by one, since they cannot be recorded as a CUDA graph (%s).", error)
            return
        self._graph, self._inputs, self._output = graph, inputs, output
        self._gradients = [parameter.grad for parameter in self._parameters]


class GraphedModule(LightningModule):
    """A LightningModule whose steps may be replayed from a CUDA graph, under automatic optimisation.

    A replayed step computes forward and backward at once, in :meth:`training_step`; ``backward`` and
    ``optimizer_zero_grad``, which Lightning calls after it, then do nothing.

    Args:
        cuda_graphs: True to record steps on one GPU, without gradient accumulation, and not in float16, whose scaled
            loss changes from step to step. In all other cases steps are computed as usual.
    """

    def __init__(self, cuda_graphs: bool) -> None:
        super().__init__()
        self._cuda_graphs = cuda_graphs
        self._graphed: GraphedStep | None = None

    @abstractmethod
    def step(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, a scalar, and its metrics by name."""

    @abstractmethod
    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are optimised."""

    def can_record(self) -> bool:
        """Return True if this trainer and device allow recorded steps."""
        trainer = self.trainer
        single = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
        return self.device.type == "cuda" and single and trainer.precision != "16-mixed"

    def on_fit_start(self) -> None:
        """Prepare the recording of a step."""
        wanted = self._cuda_graphs and self.can_record()
        self._graphed = GraphedStep(self.differentiate, self.trained_parameters()) if wanted else None

    def on_fit_end(self) -> None:
        """Release the memory of the recorded step."""
        self._graphed = None

    def compute(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and its metrics, detached; a recorded step also writes the gradients."""
        if self._graphed is not None:
            return self._graphed(batch)
        loss, metrics = self.step(batch)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def differentiate(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Write the gradients of a batch; return its loss and metrics, detached. A graph records this method."""
        for parameter in self.trained_parameters():
            parameter.grad = None
        loss, metrics = self.step(batch)
        with torch.autocast(self.device.type, enabled=False):
            loss.backward()
        # Without the graph of autograd, which would keep this step's stream for the next step.
        return loss.detach(), {name: value.detach() for name, value in metrics.items()}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients, unless the step has written them."""
        if self._graphed is None:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of the last step, unless this step has written new ones."""
        if self._graphed is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)
