"""Accuracy of finished networks."""

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.api.evaluation import measure_accuracy
from kegnet_pl.data import Split


def _split(count: int = 50) -> Split:
    return Split(torch.randn(count, 6), torch.arange(count) % 3)


def _network() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.9), nn.ReLU(), nn.Linear(8, 3))
    network(torch.randn(64, 6) * 3 + 2)  # moves the running statistics
    return network


class _Fixed(nn.Module):
    """Answers with its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_share_of_right_answers() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [0.0, 5.0, 1.0], [2.0, 1.0, 0.0]])
    assert measure_accuracy(_Fixed(), Split(x, torch.tensor([0, 2, 1, 0]))) == 1.0
    assert measure_accuracy(_Fixed(), Split(x, torch.tensor([0, 2, 1, 2]))) == 0.75
    assert measure_accuracy(_Fixed(), Split(x, torch.tensor([1, 0, 0, 2]))) == 0.0


@pytest.mark.parametrize("size", [1, 7, 25, 50, 500])
def test_size_of_batches_does_not_matter(size: int) -> None:
    network, split = _network(), _split()
    expected = float((network.eval()(split.x).argmax(dim=1) == split.y).float().mean())
    assert measure_accuracy(network, split, batch_size=size) == pytest.approx(expected)
    assert 0 < expected < 1


def test_network_is_in_evaluation_mode_and_stays_as_it_is() -> None:
    network, split = _network().train(), _split()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    values = {measure_accuracy(network, split) for _ in range(5)}
    assert len(values) == 1, "dropout was on"
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_no_graph_is_kept() -> None:
    grads: list[bool] = []

    class Watch(_Fixed):
        def forward(self, x: Tensor) -> Tensor:
            grads.append(torch.is_grad_enabled())
            return x[:, :3]

    measure_accuracy(Watch(), _split())
    assert set(grads) == {False}


def test_digest_tells_test_sets_apart() -> None:
    split = _split()
    rows = torch.randperm(50)
    others = [
        Split(split.x + 1e-6, split.y),
        Split(split.x, (split.y + 1) % 3),
        split[rows],
        split[:49],
        Split(split.x.view(50, 2, 3), split.y),
    ]
    marks = {split.digest, *(other.digest for other in others)}
    assert len(marks) == 6
    assert Split(split.x.clone(), split.y.clone()).digest == split.digest


def test_digest_sees_values_and_not_their_layout() -> None:
    split = _split()
    assert Split(split.x.T.contiguous().T, split.y).digest == split.digest


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_may_be_kept_in_few_bits(dtype: torch.dtype) -> None:
    x = torch.eye(26)
    assert measure_accuracy(_Fixed(), Split(x, torch.arange(26).to(dtype))) == 1.0


def test_negative_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="classes from 0, but got -1"):
        measure_accuracy(_network(), Split(torch.randn(2, 6), torch.tensor([0, -1])))


def test_samples_are_taken_to_the_precision_of_the_network() -> None:
    network, split = _network(), _split()
    assert measure_accuracy(network, Split(split.x.double(), split.y)) == measure_accuracy(network, split, "auto")
