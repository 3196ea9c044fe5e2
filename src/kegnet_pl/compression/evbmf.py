r"""Analytic empirical variational Bayes matrix factorisation (EVBMF).

It estimates the number of singular values of a noisy matrix that are signal, without a threshold to choose.

Notation of the source: an :math:`L \times M` matrix, :math:`\alpha = L / M`, singular values :math:`\gamma_h`, noise
variance :math:`\sigma^2` and :math:`x_h = \gamma_h^2 / (M \sigma^2)`. A component is kept if
:math:`x_h` exceeds :math:`\bar x = (1 + \bar\tau)(1 + \alpha / \bar\tau)` with
:math:`\bar\tau \approx 2.5129 \sqrt\alpha`.

Source:
    Nakajima, Sugiyama, Babacan, Tomioka, "Global Analytic Solution of Fully-Observed Variational Bayesian Matrix
    Factorization", JMLR 14, 2013: Theorem 2 (threshold and shrinkage) and the search for the noise variance. The source
    has L <= M; a matrix with more rows than columns is taken as it is, as in the KegNet release.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EVBMF:
    """Result of EVBMF for a matrix.

    Attributes:
        rank: Number of components that are signal; 0 if all are noise.
        singular_values: Shrunken singular values of the signal, in descending order ``(rank,)``.
        noise_variance: Variance of the noise of an entry.
    """

    rank: int
    singular_values: Array
    noise_variance: float


def _free_energy(noise_variance: float, squares: Array, rows: int, columns: int, threshold: float) -> float:
    """Return the free energy for a noise variance, up to a constant."""
    alpha = rows / columns
    x = squares / (columns * noise_variance)
    signal = x[x > threshold]
    middle = signal - (1 + alpha)
    tau = 0.5 * (middle + np.sqrt(middle**2 - 4 * alpha))  # the larger root of tau + alpha / tau + 1 + alpha = x
    psi_0 = x - np.log(x)
    psi_1 = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    # A matrix with more rows than columns has further singular values, all zero.
    return float(psi_0.sum() + psi_1.sum()) + (rows - squares.size) * math.log(noise_variance)


def _noise_variance(squares: Array, rows: int, columns: int, threshold: float) -> float:
    """Return the noise variance with the lowest free energy, between the bounds of the source."""
    alpha = rows / columns
    noise = squares[math.ceil(rows / (1 + alpha)) - 1 :]  # the source's bound on the number of signal components
    lower = max(float(noise[0]) / (columns * threshold), float(noise.mean()) / columns)
    upper = float(squares.sum()) / (rows * columns)
    if lower >= upper:
        return upper
    # The free energy can be flat around its minimum, or have two minima. Bounds and stopping rule (an absolute
    # tolerance of 1e-5) are those of the authors' release, to get the same ranks: a finer search changes the ranks of
    # 5 of the 29 layers of their teachers by one, and bounds from the transposed matrix change one rank.
    optimum = minimize_scalar(
        _free_energy, args=(squares, rows, columns, threshold), bounds=(lower, upper), method="bounded"
    )
    return float(optimum.x)


def evbmf(matrix: Array, noise_variance: float | None = None) -> EVBMF:
    """Factorise a matrix by analytic EVBMF.

    Args:
        matrix: Real matrix ``(rows, columns)``; the computation is in float64.
        noise_variance: Variance of the noise of an entry, if it is known; None estimates it.

    Returns:
        Rank, shrunken singular values and noise variance.

    Raises:
        ValueError: If the input is not a matrix, is empty or not finite, or ``noise_variance`` is not positive.
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"Expected `matrix` with two dimensions of at least 1, but got shape {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("Expected `matrix` to be finite, but got NaN or infinite values.")
    if noise_variance is not None and not (noise_variance > 0 and math.isfinite(noise_variance)):
        raise ValueError(f"Expected `noise_variance` to be positive, but got {noise_variance}.")

    rows, columns = values.shape
    alpha = rows / columns
    tau_bar = 2.5129 * math.sqrt(alpha)
    threshold = (1 + tau_bar) * (1 + alpha / tau_bar)
    gamma = np.linalg.svd(values, compute_uv=False)
    # Zeros have no logarithm.
    squares = np.maximum(gamma**2, np.finfo(np.float64).tiny)
    if noise_variance is None:
        noise_variance = _noise_variance(squares, rows, columns, threshold)

    kept = gamma[squares > columns * noise_variance * threshold]
    ratio = noise_variance / kept**2
    middle = 1 - (rows + columns) * ratio
    shrunken = kept / 2 * (middle + np.sqrt(middle**2 - 4 * rows * columns * ratio**2))
    return EVBMF(rank=int(kept.size), singular_values=shrunken, noise_variance=float(noise_variance))
