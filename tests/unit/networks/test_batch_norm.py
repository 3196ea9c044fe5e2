import copy

import pytest
import torch
from torch import Tensor, nn

from kegnet_pl.compression import CompressionPlan, Rule
from kegnet_pl.networks import BatchNormMoments, LeNet5, ResNet14, adapt_norm, lacks_statistics, norm_layers
from kegnet_pl.networks.batch_norm import _moments, forget_counts


def _teacher() -> ResNet14:
    """A network whose stored statistics are of other data than it will be shown."""
    torch.manual_seed(0)
    network = ResNet14(channels=2, classes=5)
    for layer in norm_layers(network).values():
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
    for _ in range(20):
        network(torch.randn(16, 2, 32, 32) * 2 + 1)
    return network.eval()


def _seen(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The outputs of all batch-norm layers."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, layer in norm_layers(network).items()
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return outputs


@torch.no_grad()
def test_channels_that_were_shifted_and_scaled_are_as_before_on_any_data() -> None:
    teacher = _teacher()
    student = copy.deepcopy(teacher)
    for convolution in (student.conv1, student.layers2[0].conv1, student.layers3[1].conv2):
        factor = torch.empty(len(convolution.weight)).uniform_(0.5, 2)
        convolution.weight.mul_(factor[:, None, None, None])
        convolution.bias.mul_(factor).add_(torch.randn(len(factor)))
    synthetic, real = torch.rand(64, 2, 32, 32), torch.randn(64, 2, 32, 32) * 2 + 1
    assert not torch.allclose(student(real), teacher(real), atol=0.1)
    adapt_norm(student, teacher, synthetic)
    assert torch.allclose(student(real), teacher(real), atol=1e-3)
    assert torch.allclose(student.train()(synthetic), teacher(synthetic), atol=1e-3), "also by statistics of the batch"


@torch.no_grad()
def test_compressed_layers_return_what_the_teachers_do_on_average() -> None:
    teacher = _teacher()
    plan = CompressionPlan([Rule("layers2.*", 12), Rule("*", "full")])
    student = plan.apply(teacher, (2, 32, 32)).network
    before = copy.deepcopy(teacher.state_dict())
    x = torch.randn(64, 2, 32, 32) - 0.5
    adapt_norm(student, teacher, x)
    theirs, mine = _seen(teacher, x), _seen(student, x)
    for name, expected in theirs.items():
        for moment in (Tensor.mean, Tensor.std):
            assert torch.allclose(moment(mine[name], (0, 2, 3)), moment(expected, (0, 2, 3)), atol=2e-3), name
    assert any(not torch.allclose(mine[name], theirs[name], atol=0.1) for name in theirs), "compression does more"
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(student.conv1.parameters(), teacher.conv1.parameters(), strict=True))


def test_modes_stay() -> None:
    teacher = _teacher().train()
    student = copy.deepcopy(teacher)
    teacher.layers1.eval()
    adapt_norm(student, teacher, torch.rand(8, 2, 32, 32))
    assert student.training and teacher.training and not teacher.layers1[0].bn1.training
    assert not any(module._forward_pre_hooks for module in (*student.modules(), *teacher.modules()))


@pytest.mark.parametrize("student", [LeNet5(2, 5), nn.BatchNorm2d(2), ResNet14(2, 5).layers1])
def test_other_networks_are_refused(student: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"with the teacher's batch-norm layers .* Set student\.norm=batch"):
        adapt_norm(student, _teacher(), torch.rand(8, 2, 32, 32))


def test_watch_returns_what_the_network_returns_and_what_enters_its_batch_norm() -> None:
    network, x = _teacher(), torch.randn(6, 2, 32, 32)
    output, moments = BatchNormMoments(network)(x)
    assert torch.equal(output, network(x))
    assert len(moments) == len(norm_layers(network))
    first = network.conv1(x)
    mean, variance = moments[0]
    torch.testing.assert_close(mean, first.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(variance, first.var(dim=(0, 2, 3), correction=0) + network.norm1.eps)


def test_watch_knows_what_is_stored() -> None:
    """In training mode with a momentum of one a layer stores the batch, but for Bessel's correction."""
    network, x = _teacher(), torch.randn(6, 2, 32, 32)
    watch = BatchNormMoments(network)
    for layer in norm_layers(network).values():
        layer.momentum = 1.0
    moments = watch.train()(x)[1]
    for layer, mine, theirs, output in zip(
        watch.layers.values(), moments, watch.stored(), _seen(network, x).values(), strict=True
    ):
        count = output[:, 0].numel()
        torch.testing.assert_close(mine[0], theirs[0])
        torch.testing.assert_close((mine[1] - layer.eps) * count / (count - 1) + layer.eps, theirs[1])


def test_watch_keeps_nothing_between_calls() -> None:
    network = _teacher()
    watch = BatchNormMoments(network)
    network(torch.randn(2, 2, 32, 32))
    assert watch._recorder.values is None
    watch(torch.randn(2, 2, 32, 32))
    assert watch._recorder.values is None


@pytest.mark.slow
def test_watch_compiles_as_one_graph() -> None:
    watch, x = BatchNormMoments(_teacher()), torch.randn(4, 2, 32, 32)
    output, moments = torch.compile(watch, fullgraph=True, backend="aot_eager")(x)
    expected, theirs = watch(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(moments, theirs)


@pytest.mark.parametrize("network", [LeNet5(1, 10), nn.BatchNorm1d(3, track_running_stats=False)])
def test_watch_needs_stored_statistics(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"stored statistics, but it has none\. .*generator\.objective\.statistics"):
        BatchNormMoments(network)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (4, 3, 5, 2), (2, 3, 2, 2, 2)])
def test_moments_of_every_channel_and_their_gradients(shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape, dtype=torch.float64) * 3 + 2).requires_grad_()
    over = [0, *range(2, len(shape))]
    mean, variance = _moments(x)
    torch.testing.assert_close(mean, x.mean(dim=over))
    torch.testing.assert_close(variance, x.var(dim=over, correction=0))
    assert torch.autograd.gradcheck(_moments, (x,))


def test_moments_of_a_constant_channel() -> None:
    x = torch.full((4, 2, 3, 3), 5.0, requires_grad=True)
    mean, variance = _moments(x)
    (mean.sum() + variance.sum()).backward()
    assert mean.tolist() == [5, 5]
    assert variance.tolist() == [0, 0]
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_moments_in_half_precision_are_float32() -> None:
    x = torch.randn(64, 3, 8, 8).bfloat16().requires_grad_()
    mean, variance = _moments(x)
    assert (mean.dtype, variance.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(variance, x.float().var(dim=[0, 2, 3], correction=0))
    variance.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16


def test_moments_of_a_stack() -> None:
    x = torch.randn(5, 4, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    together = torch.func.vmap(_moments)(x)
    for index in range(5):
        torch.testing.assert_close([part[index] for part in together], list(_moments(x[index])))
    weights = torch.randn(5, 3, dtype=torch.float64)
    (mine,) = torch.autograd.grad((weights * together[1]).sum(), x)
    (theirs,) = torch.autograd.grad((weights * x.var(dim=(1, 3, 4), correction=0)).sum(), x)
    torch.testing.assert_close(mine, theirs)


def test_statistics_are_there_once_a_sample_was_seen() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert lacks_statistics(network) and not lacks_statistics(network[0])
    assert lacks_statistics(nn.BatchNorm1d(4, track_running_stats=False))
    network.train()(torch.randn(5, 3))
    assert not lacks_statistics(network)
    assert not lacks_statistics(nn.Sequential(network, nn.BatchNorm1d(4)))  # some have them


class Repeating(nn.Module):
    """A network that calls one convolution and one batch norm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.first, self.norm, self.head = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.stem(x)))
        for _ in range(2):
            x = torch.relu(self.norm(self.conv(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _repeating() -> Repeating:
    torch.manual_seed(0)
    network = Repeating()
    for _ in range(30):
        network(2 * torch.randn(16, 3, 8, 8) + 1)
    return network.eval()


def test_a_layer_called_twice_has_the_mean_of_its_calls() -> None:
    teacher, x = _repeating(), torch.randn(64, 3, 8, 8)
    student = copy.deepcopy(teacher)
    adapt_norm(student, teacher, x)
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-4, atol=1e-4)
    seen: list[Tensor] = []
    teacher.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    moments = BatchNormMoments(teacher)(x)[1]
    assert len(moments) == 2 and len(seen) == 2
    means = [value.mean(dim=(0, 2, 3)) for value in seen]
    torch.testing.assert_close(moments[1][0], (means[0] + means[1]) / 2)


def test_a_student_counts_its_own_batches() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3))
    for _ in range(5):
        network(torch.randn(8, 3))
    forget_counts(network)
    assert [int(layer.num_batches_tracked) for layer in network] == [0, 5]
    x = torch.randn(64, 3) + 7
    network.train()(x)
    torch.testing.assert_close(network[0].running_mean, x.mean(dim=0))
