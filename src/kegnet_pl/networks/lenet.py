"""The LeNet5 network, the teacher for MNIST and for scikit-learn's digits."""

from torch import Tensor, nn
from torch.nn import functional


class LeNet5(nn.Module):
    """LeNet5 with ReLU and max pooling: 61,706 parameters for one channel and ten classes.

    Args:
        channels: Channels of the input image.
        classes: Number of classes, at least 2.

    Shapes:
        Input ``(B, channels, 32, 32)``, output logits ``(B, classes)``.

    Source:
        LeCun et al., "Gradient-based learning applied to document recognition", 1998; variant of the KegNet release.
    """

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, kernel_size=5)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.conv3 = nn.Conv2d(16, 120, kernel_size=5)
        self.fc1 = nn.Linear(120, 84)
        self.fc2 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` of images ``(B, channels, 32, 32)``."""
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.conv3(x)).flatten(1)
        x = functional.relu(self.fc1(x))
        logits: Tensor = self.fc2(x)
        return logits
