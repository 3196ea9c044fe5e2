"""KegNet in plain PyTorch: compress a trained classifier without its training data (Yoo et al., NeurIPS 2019).

Run ``python examples/kegnet_plain.py``: less than a minute on one CPU core.
"""

from collections.abc import Iterable, Sequence

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from kegnet_pl import compress
from kegnet_pl.networks import Decoder, ImageGenerator, LeNet5

CLASSES, NOISE_DIM, IMAGE_SHAPE = 10, 10, (1, 32, 32)


def diversity_loss(z: Tensor, x: Tensor) -> Tensor:
    """Return a loss that falls as samples ``x`` of different noise ``z`` move apart (equation 5)."""
    z, x = z.flatten(1), x.flatten(1)
    noise_distance = torch.cdist(z, z, p=2).square() / z.shape[1]  # (B, B), mean squared difference
    sample_distance = torch.cdist(x, x, p=1) / x.shape[1]  # (B, B), mean absolute difference
    return torch.exp(-(noise_distance * sample_distance).mean())


def generator_loss(
    generator: nn.Module, decoder: nn.Module, teacher: nn.Module, z: Tensor, y: Tensor, alpha: float, beta: float
) -> Tensor:
    """Return the objective of generator and decoder (equations 2 to 5) for noise ``z`` and one-hot labels ``y``."""
    x = generator(z, y)
    loss = functional.cross_entropy(teacher(x), y)  # The teacher must recognise the label ...
    if alpha:
        loss = loss + alpha * functional.mse_loss(decoder(x), z)  # ... the decoder must recover the noise ...
    if beta:
        loss = loss + beta * diversity_loss(z, x)  # ... and samples must differ as their noise does.
    return loss


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Make one optimiser step; return the loss without its graph."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def distil_epoch(student: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Sequence[Tensor]]) -> Tensor:
    """Train the student on samples and the teacher's probabilities for one epoch; return the mean loss of batches."""
    losses = []
    for x, probabilities in batches:
        log_probabilities = functional.log_softmax(student(x), dim=1)
        losses.append(update(optimizer, functional.kl_div(log_probabilities, probabilities, reduction="batchmean")))
    return torch.stack(losses).mean()


@torch.no_grad()
def generate_samples(generators: Sequence[nn.Module], z: Tensor, y: Tensor) -> Tensor:
    """Return the samples of every generator for the same noise and labels, ``(K * B, ...)``."""
    return torch.cat([generator.eval()(z, y) for generator in generators])


def sample_noise_and_labels(n: int) -> tuple[Tensor, Tensor]:
    """Return normal noise ``(n, NOISE_DIM)`` and one-hot labels ``(n, CLASSES)`` of uniform classes."""
    return torch.randn(n, NOISE_DIM), torch.eye(CLASSES)[torch.randint(CLASSES, (n,))]


def train_teacher(x: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Return a LeNet5 trained on real images; the only function that sees real training data."""
    teacher = LeNet5()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch, targets in DataLoader(TensorDataset(x, labels), batch_size=64, shuffle=True):
            update(optimizer, functional.cross_entropy(teacher(batch), targets))
    return teacher.eval().requires_grad_(False)


def train_generator(teacher: nn.Module, steps: int, alpha: float = 1.0, beta: float = 10.0) -> nn.Module:
    """Return a generator whose samples the frozen teacher recognises."""
    generator, decoder = ImageGenerator(1, CLASSES, NOISE_DIM), Decoder(IMAGE_SHAPE, NOISE_DIM)
    optimizer = torch.optim.Adam([*generator.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(steps):
        z, y = sample_noise_and_labels(64)
        update(optimizer, generator_loss(generator, decoder, teacher, z, y, alpha, beta))
    return generator


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Return the share of samples that the network classifies correctly."""
    return float((network.eval()(x).argmax(dim=1) == labels).float().mean())


def load_images() -> list[Tensor]:
    """Return training images, test images, training labels and test labels of scikit-learn's digits."""
    digits = load_digits()
    images = torch.tensor(digits.images).float()[:, None]
    images = functional.interpolate((images - images.mean()) / images.std(), IMAGE_SHAPE[1:], mode="bilinear")
    return list(train_test_split(images, torch.tensor(digits.target), test_size=0.3, random_state=0))


def main(teacher_epochs: int = 10, generator_steps: int = 100, student_epochs: int = 10) -> dict[str, float]:
    """Train a teacher, compress it, teach the compressed network; print and return the accuracies on real test data."""
    torch.manual_seed(0)
    x, x_test, labels, labels_test = load_images()
    teacher = train_teacher(x, labels, teacher_epochs)
    accuracies = {"teacher": accuracy(teacher, x_test, labels_test)}

    # An eighth of the parameters. Tucker's factors, as in the paper; fit="function" keeps more without any training.
    student = compress(teacher, IMAGE_SHAPE, target=8, fit="weights", progress=False).network.requires_grad_(True)
    accuracies["compressed"] = accuracy(student, x_test, labels_test)

    generators = [train_generator(teacher, generator_steps) for _ in range(2)]
    samples = generate_samples(generators, *sample_noise_and_labels(1280))
    probabilities = teacher(samples).softmax(dim=1)
    batches = DataLoader(TensorDataset(samples, probabilities), batch_size=64, shuffle=True)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    for _ in range(student_epochs):
        distil_epoch(student.train(), optimizer, batches)
    accuracies["distilled"] = accuracy(student, x_test, labels_test)

    for name, value in accuracies.items():
        print(f"{name:>10}: {value:.1%} of the test images")
    return accuracies


if __name__ == "__main__":
    main()
