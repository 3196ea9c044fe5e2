"""The multi-layer perceptron, the teacher for the UCI tables."""

import itertools

from torch import Tensor, nn


class MLP(nn.Module):
    """Hidden blocks Linear - ELU - Dropout, then a Linear to the classes.

    Args:
        features: Number of input features.
        classes: Number of classes, at least 2.
        width: Units of every hidden block.
        blocks: Number of hidden blocks.
        dropout: Probability of dropping a hidden unit, in [0, 1).

    Shapes:
        Input ``(B, features)``, output logits ``(B, classes)``.

    Source:
        KegNet, experiments on unstructured data.
    """

    def __init__(self, features: int, classes: int, width: int = 100, blocks: int = 11, dropout: float = 0.15) -> None:
        super().__init__()
        sides = [features] + [width] * blocks
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sides):
            layers += [nn.Linear(before, after), nn.ELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` of rows ``(B, features)``."""
        logits: Tensor = self.layers(x)
        return logits
