"""The frozen copy of a network, such as the teacher, which is never trained."""

from typing import Literal, Self, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from kegnet_pl.networks.batch_norm import norm_layers
from kegnet_pl.networks.handling import copy_network, freeze, set_mode

TeacherNorm = Literal["batch", "running"]


class FrozenModule(nn.Module):
    """A frozen copy of a network, in evaluation mode independently of the mode of its parent.

    Its weights have no gradients and its running statistics never change; gradients flow through it to its input.
    ``train()`` keeps evaluation mode, so dropout is off unless ``dropout`` is true.

    Args:
        network: Network to freeze. It is copied; the original is not changed.
        teacher_norm: ``"running"`` normalises by the stored statistics of the batch-norm layers, ``"batch"`` by those
            of the current batch, as the authors' release does while it trains generators (PAPER section 2).
        dropout: True for active dropout layers, as in the release, which leaves its teacher in training mode.

    Raises:
        ValueError: If ``teacher_norm`` is unknown.
    """

    def __init__(self, network: nn.Module, teacher_norm: TeacherNorm = "running", dropout: bool = False) -> None:
        super().__init__()
        if teacher_norm not in get_args(TeacherNorm):
            raise ValueError(f"Expected `teacher_norm` to be one of {get_args(TeacherNorm)}, but got {teacher_norm!r}.")
        self.network = freeze(copy_network(network))
        self.teacher_norm = teacher_norm
        self.dropout = dropout
        if teacher_norm == "batch":
            for layer in norm_layers(self.network).values():
                # In training mode such a layer normalises by the batch and updates no statistics.
                layer.track_running_stats = False
        self.train()

    @property
    def looks_at_the_batch(self) -> bool:
        """True if the output for a sample depends on the other samples of its batch."""
        layers = norm_layers(self.network).values()
        return any(self.teacher_norm == "batch" or layer.running_mean is None for layer in layers)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Keep evaluation mode, except for batch norm with ``"batch"`` statistics and for active dropout."""
        self.training = False
        set_mode(self.network, training=False)
        active = (*([_BatchNorm] if self.teacher_norm == "batch" else []), *([_DropoutNd] if self.dropout else []))
        for layer in self.network.modules():
            if isinstance(layer, active):
                layer.training = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the network."""
        out: Tensor = self.network(x)
        return out
