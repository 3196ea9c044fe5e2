import math

import numpy as np
import pytest

from kegnet_pl.compression import evbmf

SHAPES = [(20, 60, 3, 0.05), (60, 20, 3, 0.05), (32, 32, 5, 0.1), (40, 200, 8, 0.3), (100, 30, 1, 0.02)]
each_shape = pytest.mark.parametrize(("rows", "columns", "rank", "noise"), SHAPES)


def _low_rank(rows: int, columns: int, rank: int, seed: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    return chance.normal(size=(rows, rank)) @ chance.normal(size=(rank, columns))


def _noisy(rows: int, columns: int, rank: int, noise: float) -> np.ndarray:
    chance = np.random.default_rng(1)
    return _low_rank(rows, columns, rank) + noise * chance.normal(size=(rows, columns))


@each_shape
def test_finds_the_rank_and_the_noise(rows: int, columns: int, rank: int, noise: float) -> None:
    found = evbmf(_noisy(rows, columns, rank, noise))

    assert found.rank == rank == len(found.singular_values)
    # For more rows than columns the release's lower bound of the search lies above the true variance.
    assert found.noise_variance == pytest.approx(noise**2, rel=0.15 if rows <= columns else 0.5)
    true = np.linalg.svd(_low_rank(rows, columns, rank), compute_uv=False)[:rank]
    np.testing.assert_allclose(found.singular_values, true, rtol=0.02)


@each_shape
def test_singular_values_are_shrunken_and_fall(rows: int, columns: int, rank: int, noise: float) -> None:
    matrix = _noisy(rows, columns, rank, noise)
    found = evbmf(matrix)
    observed = np.linalg.svd(matrix, compute_uv=False)[:rank]

    assert (found.singular_values < observed).all()
    assert (found.singular_values > 0).all()
    assert (np.diff(found.singular_values) <= 0).all()


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (20, 200), (200, 20)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_pure_noise_has_rank_zero(rows: int, columns: int, scale: float) -> None:
    matrix = scale * np.random.default_rng(0).normal(size=(rows, columns))
    found = evbmf(matrix)

    assert found.rank == 0
    assert found.singular_values.shape == (0,)
    assert found.noise_variance == pytest.approx(scale**2, rel=0.1)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (1, 1), (1, 5), (5, 1)])
def test_zeros_have_rank_zero(shape: tuple[int, int]) -> None:
    found = evbmf(np.zeros(shape))

    assert found.rank == 0
    assert math.isfinite(found.noise_variance)


@each_shape
def test_known_noise_keeps_what_theorem_2_keeps(rows: int, columns: int, rank: int, noise: float) -> None:
    matrix, variance = _noisy(rows, columns, rank, noise), 4 * noise**2
    found = evbmf(matrix, noise_variance=variance)

    # Written for every singular value on its own, in the symbols of the source.
    alpha = rows / columns
    tau = 2.5129 * math.sqrt(alpha)
    limit = math.sqrt(columns * variance * (1 + tau) * (1 + alpha / tau))
    expected = []
    for gamma in np.linalg.svd(matrix, compute_uv=False):
        if gamma > limit:
            first = 1 - (rows + columns) * variance / gamma**2
            expected.append(gamma / 2 * (first + math.sqrt(first**2 - 4 * rows * columns * variance**2 / gamma**4)))
    assert found.noise_variance == variance
    assert found.rank == len(expected) > 0
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-10)


@each_shape
def test_with_known_noise_the_transposed_matrix_gives_the_same(
    rows: int, columns: int, rank: int, noise: float
) -> None:
    matrix = _noisy(rows, columns, rank, noise)
    left, right = evbmf(matrix, noise**2), evbmf(matrix.T, noise**2)

    assert left.rank == right.rank == rank
    np.testing.assert_allclose(left.singular_values, right.singular_values, rtol=1e-10)


def test_more_noise_keeps_less() -> None:
    matrix = _noisy(30, 50, 8, 0.5)
    ranks = [evbmf(matrix, variance).rank for variance in (1e-8, 0.25, 1.0, 4.0, 1e6)]

    assert ranks[0] == 30  # everything is signal
    assert ranks[1] == 8
    assert ranks[-1] == 0
    assert ranks == sorted(ranks, reverse=True)
    np.testing.assert_allclose(evbmf(matrix, 1e-8).singular_values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-5)


def test_depends_on_the_singular_values_alone() -> None:
    matrix = _noisy(20, 60, 3, 0.05)
    chance = np.random.default_rng(3)
    left, right = (np.linalg.qr(chance.normal(size=(n, n)))[0] for n in (20, 60))
    found, turned = evbmf(matrix), evbmf(left @ matrix @ right)

    assert turned.rank == found.rank
    np.testing.assert_allclose(turned.singular_values, found.singular_values, rtol=1e-6)
    assert turned.noise_variance == pytest.approx(found.noise_variance, rel=1e-6)


def test_float32_is_computed_on_in_float64() -> None:
    matrix = _noisy(20, 60, 3, 0.05).astype(np.float32)
    found = evbmf(matrix)  # type: ignore[arg-type]

    assert found.singular_values.dtype == np.float64
    np.testing.assert_array_equal(found.singular_values, evbmf(matrix.astype(np.float64)).singular_values)


def test_the_matrix_is_not_changed() -> None:
    matrix = _noisy(20, 60, 3, 0.05)
    before = matrix.copy()
    evbmf(matrix)

    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 4), (4, 0), ()])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`matrix` with two dimensions of at least 1, but got shape \("):
        evbmf(np.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_entries_must_be_finite(value: float) -> None:
    matrix = np.ones((3, 4))
    matrix[1, 2] = value
    with pytest.raises(ValueError, match=r"`matrix` to be finite, but got NaN or infinite"):
        evbmf(matrix)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan])
def test_noise_variance_must_be_positive(variance: float) -> None:
    with pytest.raises(ValueError, match=rf"`noise_variance` to be positive, but got {variance}"):
        evbmf(np.ones((3, 4)), noise_variance=variance)
