import copy

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.networks import FrozenModule, LeNet5, ResNet14, TeacherNorm


class Small(nn.Module):
    """Everything that may move or be random: two kinds of batch norm, dropout, weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4, momentum=None)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 6)
        self.last = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))
        return self.last(self.fc(x))


def _trained() -> Small:
    """A network whose running statistics are no batch's own."""
    network = Small().train()
    for _ in range(3):
        network(torch.randn(16, 2, 6, 6) * 3 + 1)
    return network


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    both = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in both.items()}


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


NORMS: tuple[TeacherNorm, ...] = ("batch", "running")
each_norm = pytest.mark.parametrize("norm", NORMS)


@each_norm
@pytest.mark.parametrize("training", [True, False])
def test_training_around_it_moves_no_tensor(norm: TeacherNorm, training: bool) -> None:
    frozen = FrozenModule(_trained().train(training), norm)
    before = _tensors(frozen)
    front, back = nn.Conv2d(2, 2, 1), nn.Linear(6, 3)
    parent = nn.Sequential(front, frozen, back)
    moving = copy.deepcopy(front.weight), copy.deepcopy(back.weight)
    optimizer = torch.optim.AdamW(parent.parameters(), lr=0.1, weight_decay=0.5)
    for step in range(4):
        parent.train()
        frozen.train()
        frozen.train(True)
        optimizer.zero_grad()
        parent(torch.randn(8, 2, 6, 6)).square().sum().backward()
        optimizer.step()
        parent.eval()
        parent(torch.randn(8, 2, 6, 6) + step)

    assert _equal(_tensors(frozen), before)
    assert not torch.equal(front.weight, moving[0])
    assert not torch.equal(back.weight, moving[1])


@each_norm
def test_without_freezing_the_same_would_move(norm: TeacherNorm) -> None:
    """The test above can fail: an ordinary network in the same place does move."""
    network = _trained().requires_grad_(False)
    before = _tensors(network)
    network.train(norm == "batch")(torch.randn(8, 2, 6, 6))

    assert _equal(_tensors(network), before) == (norm == "running")


@each_norm
def test_gradients_flow_to_the_input_and_not_to_the_weights(norm: TeacherNorm) -> None:
    frozen = FrozenModule(_trained(), norm)
    x = torch.randn(8, 2, 6, 6, requires_grad=True)
    (frozen(x) * torch.randn(8, 6)).sum().backward()

    assert x.grad is not None
    assert all((image != 0).any() for image in x.grad)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(parameter.grad is None for parameter in frozen.parameters())


@each_norm
@pytest.mark.parametrize("training", [True, False])
def test_the_callers_network_stays_as_it_is(norm: TeacherNorm, training: bool) -> None:
    network = _trained().train(training)
    network.fc.requires_grad_(False)
    before = _tensors(network)
    frozen = FrozenModule(network, norm)
    frozen.train()
    frozen(torch.randn(8, 2, 6, 6))

    assert _equal(_tensors(network), before)
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == {"fc.weight", "fc.bias"}
    assert all(module.training == training for module in network.modules())
    assert network.norm.track_running_stats
    assert network.last.track_running_stats


@each_norm
def test_training_the_callers_network_does_not_reach_the_copy(norm: TeacherNorm) -> None:
    network = _trained()
    frozen = FrozenModule(network, norm)
    before = _tensors(frozen)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()(torch.randn(8, 2, 6, 6)).square().sum().backward()
    optimizer.step()

    assert _equal(_tensors(frozen), before)
    assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in frozen.parameters()}


def test_running_normalises_by_the_stored_statistics() -> None:
    network = _trained()
    frozen = FrozenModule(network, "running").train()
    x = torch.randn(8, 2, 6, 6)
    out = frozen(x)

    assert torch.equal(out, network.eval()(x))
    torch.testing.assert_close(frozen(x[:1]), out[:1])


def test_batch_normalises_by_the_batch_at_hand() -> None:
    network = _trained()
    nn.init.normal_(network.norm.weight)
    nn.init.normal_(network.norm.bias)
    frozen = FrozenModule(network, "batch")
    x = torch.randn(8, 2, 6, 6) * 2 - 5

    def normalise(layer: nn.BatchNorm2d | nn.BatchNorm1d, h: Tensor, dim: tuple[int, ...]) -> Tensor:
        variance, mean = torch.var_mean(h, dim=dim, correction=0, keepdim=True)
        shape = (1, -1, *[1] * (h.dim() - 2))
        return (h - mean) / (variance + layer.eps).sqrt() * layer.weight.view(shape) + layer.bias.view(shape)

    hidden = normalise(network.norm, network.conv(x), (0, 2, 3)).relu().mean(dim=(2, 3))
    by_hand = normalise(network.last, network.fc(hidden), (0,))
    torch.testing.assert_close(frozen(x), by_hand)
    torch.testing.assert_close(frozen.eval()(x), by_hand)  # whatever mode its parent is in
    assert not torch.allclose(frozen(x), FrozenModule(network, "running")(x))


@each_norm
def test_modes_after_train(norm: TeacherNorm) -> None:
    frozen = FrozenModule(_trained(), norm)
    parent = nn.Sequential(frozen)
    for mode in (True, False, True):
        parent.train(mode)
        on = {name for name, module in frozen.named_modules() if module.training}
        assert on == ({"network.norm", "network.last"} if norm == "batch" else set())


@each_norm
def test_train_returns_the_module(norm: TeacherNorm) -> None:
    frozen = FrozenModule(Small(), norm)

    assert frozen.train() is frozen
    assert frozen.eval() is frozen


@each_norm
def test_dropout_stays_off(norm: TeacherNorm) -> None:
    frozen, x = FrozenModule(_trained().train(), norm).train(), torch.randn(8, 2, 6, 6)

    assert torch.equal(frozen(x), frozen(x))


@each_norm
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (8, 3)),
        (nn.BatchNorm2d(3), (8, 3, 2, 2)),
        (nn.BatchNorm3d(3), (8, 3, 2, 2, 2)),
        (nn.BatchNorm2d(3, affine=False), (8, 3, 2, 2)),
        (nn.BatchNorm2d(3, track_running_stats=False), (8, 3, 2, 2)),
        (nn.InstanceNorm2d(3, track_running_stats=True), (8, 3, 2, 2)),
    ],
)
def test_no_kind_of_norm_moves(norm: TeacherNorm, layer: nn.Module, shape: tuple[int, ...]) -> None:
    frozen = FrozenModule(layer, norm).train()
    before = _tensors(frozen)
    frozen(torch.randn(*shape) * 4 + 2)

    assert _equal(_tensors(frozen), before)


@each_norm
@pytest.mark.parametrize(("network", "channels"), [(LeNet5(), 1), (ResNet14(), 3)])
def test_teachers_of_the_paper(norm: TeacherNorm, network: nn.Module, channels: int) -> None:
    frozen = FrozenModule(network, norm).train()
    before = _tensors(frozen)
    x = torch.randn(4, channels, 32, 32, requires_grad=True)
    frozen(x).sum().backward()

    assert _equal(_tensors(frozen), before)
    assert x.grad is not None
    assert (x.grad != 0).any()


def test_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`teacher_norm`.*'batch', 'running'.*got 'eval'"):
        FrozenModule(Small(), "eval")  # type: ignore[arg-type]


@each_norm
def test_dropout_drops_where_it_is_asked_for_and_nothing_else_moves(norm: TeacherNorm) -> None:
    network = _trained()
    x = torch.randn(8, 2, 6, 6)
    quiet, dropping = FrozenModule(network, norm), FrozenModule(network, norm, dropout=True)
    before = _tensors(dropping)
    for module in (quiet, dropping):
        module.train().eval()
    assert torch.equal(quiet(x), quiet(x))
    assert not torch.equal(dropping(x), dropping(x))
    assert _equal(_tensors(dropping), before)
    for layer in dropping.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    assert torch.allclose(dropping(x), quiet(x))


def test_a_teacher_without_stored_statistics_looks_at_the_batch() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    assert FrozenModule(network, "running").looks_at_the_batch
    assert not FrozenModule(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "running").looks_at_the_batch
