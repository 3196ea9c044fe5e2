from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from kegnet_pl.networks import ConvGenerator, DenseGenerator, ImageGenerator
from kegnet_pl.networks.generator import RepeatingConv2d, Upsampling, standardise_images


def _noise(count: int, classes: int, noise_dim: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    y = functional.one_hot(torch.randint(classes, (count,)), classes).float()
    return torch.randn(count, noise_dim), y


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_images_have_zero_mean_and_unit_unbiased_deviation(channels: int, training: bool) -> None:
    x = ImageGenerator(channels, 10).train(training)(*_noise(16, 10))

    assert x.shape == (16, channels, 32, 32)
    torch.testing.assert_close(x.mean(dim=(2, 3)), torch.zeros(16, channels), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std(dim=(2, 3), correction=1), torch.ones(16, channels), rtol=1e-5, atol=0)
    # With 1,024 pixels the biased deviation differs by 5e-4: far more than the tolerance above.
    assert (x.std(dim=(2, 3), correction=0) < 0.9996).all()


def test_standardises_every_image_and_channel_on_its_own() -> None:
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64) * torch.tensor([1.0, 50.0])[:, None, None] + 7
    out = standardise_images(x)

    for image in range(3):
        for channel in range(2):
            one = x[image, channel]
            torch.testing.assert_close(out[image, channel], (one - one.mean()) / one.std())


def test_without_adjust_the_images_are_those_of_tanh() -> None:
    adjusted, plain = ImageGenerator(2, 4).eval(), ImageGenerator(2, 4, output_norm="none").eval()
    plain.load_state_dict(adjusted.state_dict())
    z, y = _noise(8, 4)

    assert plain(z, y).abs().max() < 1
    torch.testing.assert_close(standardise_images(plain(z, y)), adjusted(z, y))


def test_adjusted_by_the_batch_channels_are_standardised_and_images_keep_their_own_contrast() -> None:
    generator, (z, y) = ImageGenerator(3, 4, output_norm="batch"), _noise(64, 4)
    x = generator(z, y)
    torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.var(dim=(0, 2, 3), correction=0), torch.ones(3), rtol=1e-2, atol=0)
    assert x.std(dim=(2, 3)).std() > 0.01
    assert [name for name, _ in generator.named_parameters() if "norm" in name] == []


def test_adjusted_by_the_batch_an_image_is_drawn_without_looking_at_others() -> None:
    generator, (z, y) = ImageGenerator(3, 4, output_norm="batch"), _noise(64, 4)
    for _ in range(100):
        generator(z, y)
    trained, drawn = generator(z, y), generator.eval()(z, y)
    torch.testing.assert_close(drawn[:1], generator(z[:1], y[:1]))
    torch.testing.assert_close(drawn, trained, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("output_norm", [True, "images", None])
def test_an_unknown_adjustment_is_refused(output_norm: Any) -> None:
    with pytest.raises(ValueError, match=r"`output_norm` to be one of \('image', 'batch', 'none'\), but got"):
        ImageGenerator(3, 4, output_norm=output_norm)


def test_an_unknown_upsampling_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`upsampling` to be one of \('transposed', 'nearest'\), but got 'bilinear'"):
        ImageGenerator(3, 4, upsampling="bilinear")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 1), (4, 5)])
def test_repeating_and_convolving_are_one_operation(size: tuple[int, int]) -> None:
    """Values and gradients, also at the borders, of a map that is doubled and then convolved."""
    torch.manual_seed(0)
    layer = RepeatingConv2d(3, 2).double()
    x = torch.randn(4, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = functional.conv2d(functional.interpolate(x, scale_factor=2), layer.weight, padding=1)
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)
    slope = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(layer(x), (x, layer.weight), slope),
        torch.autograd.grad(expected, (x, layer.weight), slope),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_repeated_pixels_draw_smoother_images_than_transposed_convolutions() -> None:
    """Samples of new generators: the variance of the difference in pairs of pixels, as a share."""
    roughness: dict[str, list[float]] = {"transposed": [], "nearest": []}
    for upsampling, found in roughness.items():
        for seed in range(8):
            torch.manual_seed(seed)
            x = ImageGenerator(1, 4, upsampling=upsampling)(*_noise(64, 4))  # type: ignore[arg-type]
            found.append(float((x - functional.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)).var()))
    assert max(roughness["nearest"]) < min(roughness["transposed"])


@pytest.mark.parametrize("value", [0.0, 0.25, -1.0])
def test_a_flat_image_keeps_finite_values_and_gradients(value: float) -> None:
    x = torch.randn(3, 2, 8, 8)
    x[1] = value
    x.requires_grad_()
    out = standardise_images(x)
    (out * torch.randn_like(out)).sum().backward()

    assert out.isfinite().all()
    assert (out[1] == 0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad[[0, 2]] != 0).any()


def test_a_generator_of_flat_images_can_be_trained() -> None:
    generator = ImageGenerator(1, 3)
    nn.init.zeros_(generator.conv[-2].weight)
    generator(*_noise(8, 3)).square().sum().backward()

    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


def test_gradcheck_of_the_standardisation() -> None:
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(standardise_images, (x,))


def test_noise_comes_before_the_label() -> None:
    generator = ImageGenerator(1, 4, noise_dim=6).eval()
    z, y = _noise(8, 4, 6)
    hidden = generator.fc(torch.cat([z, y], dim=1))

    torch.testing.assert_close(generator(z, y), standardise_images(generator.conv(hidden[:, :, None, None])))
    assert not torch.allclose(generator(z, y), generator(z, y.roll(1, dims=1)))
    assert not torch.allclose(generator(z, y), generator(z.roll(1, dims=0), y))


def test_layers_of_the_image_generator() -> None:
    generator = ImageGenerator(3, 10)
    convolutions = [layer for layer in generator.conv if isinstance(layer, nn.ConvTranspose2d)]

    assert [layer.out_channels for layer in convolutions] == [64, 16, 4, 3]
    assert [layer.padding for layer in convolutions] == [(0, 0), (1, 1), (1, 1), (1, 1)]
    assert {(layer.kernel_size, layer.stride, layer.bias) for layer in convolutions} == {((4, 4), (2, 2), None)}
    assert [layer.out_features for layer in generator.fc if isinstance(layer, nn.Linear)] == [256, 128]


def test_half_precision_images_are_standardised_in_float32() -> None:
    generator = ImageGenerator(1, 10).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = generator(*_noise(8, 10))

    assert x.dtype == torch.float32
    torch.testing.assert_close(x.std(dim=(2, 3)), torch.ones(8, 1), rtol=1e-4, atol=0)


def test_dense_generator_adjusts_without_parameters() -> None:
    generator = DenseGenerator(9, 7)
    x = generator(*_noise(64, 7))

    assert list(generator.output_norm.parameters()) == []
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(9), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.var(dim=0, correction=0), torch.ones(9), rtol=2e-3, atol=0)  # epsilon of the norm


def test_dense_generator_uses_running_statistics_in_evaluation() -> None:
    generator = DenseGenerator(5, 3)
    for _ in range(3):
        generator(*_noise(32, 3))
    generator.eval()
    z, y = _noise(8, 3)
    raw = generator.layers(torch.cat([z, y], dim=1))
    norm = generator.output_norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    by_hand = (raw - norm.running_mean) / (norm.running_var + norm.eps).sqrt()

    torch.testing.assert_close(generator(z, y), by_hand)
    torch.testing.assert_close(generator(z[:1], y[:1]), by_hand[:1])


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_blocks_of_the_dense_generator(blocks: int) -> None:
    generator = DenseGenerator(9, 7, noise_dim=4, blocks=blocks, width=20)

    assert [type(layer) for layer in generator.layers] == [nn.Linear, nn.ELU, nn.BatchNorm1d] * blocks + [nn.Linear]
    assert generator(*_noise(16, 7, 4)).shape == (16, 9)


@pytest.mark.parametrize("generator", [ImageGenerator(1, 5, noise_dim=3), DenseGenerator(9, 5, noise_dim=3)])
def test_says_what_it_wants_to_be_called_with(generator: ImageGenerator | DenseGenerator) -> None:
    assert (generator.noise_dim, generator.classes) == (3, 5)


@pytest.mark.parametrize("size", [(28, 28), (32, 48), (40, 40), (1, 1), (33, 17), (64, 64), (224, 224)])
@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
def test_images_of_any_size(size: tuple[int, int], upsampling: Upsampling) -> None:
    x = ImageGenerator(2, 3, size=size, upsampling=upsampling)(*_noise(4, 3))
    assert x.shape == (4, 2, *size)


def test_the_shape_of_an_image_is_a_size_too() -> None:
    assert ImageGenerator(3, 4, size=(3, 20, 50))(*_noise(2, 4)).shape == (2, 3, 20, 50)


def test_an_image_is_cut_around_its_middle() -> None:
    torch.manual_seed(0)
    whole = ImageGenerator(1, 4, size=(48, 48), output_norm="none").eval()
    torch.manual_seed(0)
    cut = ImageGenerator(1, 4, size=(40, 42), output_norm="none").eval()
    z, y = _noise(2, 4)
    torch.testing.assert_close(cut(z, y), whole(z, y)[..., 4:44, 3:45])


@pytest.mark.parametrize("size", [(32,), (0, 32), (1, 2, 3, 4)])
def test_no_size_of_an_image(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`size` to be height and width of an image, but got"):
        ImageGenerator(1, 4, size=size)


@pytest.mark.parametrize("shape", [(2, 50), (1, 16_000), (3, 33, 20), (1, 6, 8, 9), (1, 1)])
def test_samples_of_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    generator = ConvGenerator(shape, classes=4, noise_dim=5)
    x = generator(torch.randn(6, 5), torch.eye(4)[[0, 1, 2, 3, 0, 1]])
    assert x.shape == (6, *shape) and bool(x.isfinite().all())
    axes = (0, *range(2, x.dim()))
    if x[0, 0].numel() > 1:
        assert float(x.mean(axes).abs().max()) < 1e-4 and float((x.std(axes) - 1).abs().max()) < 0.1
    assert sum(parameter.numel() for parameter in generator.parameters()) < 3_000_000


def test_rows_have_another_generator() -> None:
    with pytest.raises(ValueError, match="For rows of features use DenseGenerator"):
        ConvGenerator((5,), 4)
