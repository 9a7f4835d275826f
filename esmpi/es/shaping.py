"""Shaped fitness and coefficients: float64 arithmetic that gives the same bits on every machine.

Sums are exact before their one rounding, so no order of summation or SIMD width matters.
"""

import math
import sys
from collections.abc import Callable

import numpy as np

_LARGEST_EXPONENT = sys.float_info.max_exp - 2


def exact_sum(values: np.ndarray) -> float:
    """Return the sum, rounded once, as `math.fsum` does, which for thousands of values takes several times as long.

    Parameters
    ----------
    values : (n,) float64

    The leading bits of all values, down to a unit that they share, add up without rounding, in whatever order; what
    is left of each value is exact as well, and treated likewise until nothing is left (Rump, Ogita, Oishi: Accurate
    Floating-Point Summation, SIAM J. Sci. Comput. 31, 2008).
    """
    parts: list[float] = []
    while values.size and (largest := float(np.abs(values).max())):
        # at least n times the largest: no partial sum reaches it, and its 53 bits are room for all of them
        exponent = math.frexp(largest)[1] + len(values).bit_length()
        if not math.isfinite(largest) or exponent > _LARGEST_EXPONENT:
            return math.fsum([*parts, *values.tolist()])  # infinite, no number, or an overflow: as it says
        ceiling = math.ldexp(1.0, exponent)
        leading = (values + ceiling) - ceiling
        parts.append(float(leading.sum()))
        values = values - leading
    return math.fsum(parts)


def mean_and_std(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation (ddof 0) of (n,) float64, from exact sums."""
    mean = exact_sum(values) / len(values)
    centered = values - mean
    return mean, math.sqrt(exact_sum(centered * centered) / len(values))


def zscore(fitness: np.ndarray) -> np.ndarray:
    """Return (R - mean R) / (std R + 1e-8), std with ddof 0 (arXiv 2509.24372); (N,) float64 both."""
    if fitness.min() == fitness.max():
        return np.zeros_like(fitness)  # their mean may round to another number, which would then count as a signal
    mean, std = mean_and_std(fitness)
    return np.asarray((fitness - mean) / (std + 1e-8))


def centered_rank(fitness: np.ndarray) -> np.ndarray:
    """Return ranks scaled to -0.5 ... 0.5; equal values share the mean of their ranks (arXiv 1703.03864)."""
    if len(fitness) == 1:
        return np.zeros_like(fitness)
    _, inverse, counts = np.unique(fitness, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = (2 * last - counts - 1) / 2
    return np.asarray(mean_rank[inverse] / (len(fitness) - 1) - 0.5)


SHAPINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zscore": zscore,
    "centered_rank": centered_rank,
}


def coefficients(fitness: np.ndarray, signs: np.ndarray, shaping: str, alpha: float) -> np.ndarray:
    """Return what multiplies each member's eps in the update: alpha / N * shaped fitness * sign.

    Parameters
    ----------
    fitness : (N,) float64
        NaN for members without one: they take no part in the shaping and get 0.
    signs : (N,) int8
    shaping : str
        A name of `SHAPINGS`.
    alpha : float

    Returns
    -------
    (N,) float32
        Computed in float64, rounded once. All 0 if all members failed: theta then stays as it is.
    """
    good = ~np.isnan(fitness)
    shaped = np.zeros(len(fitness), np.float64)
    if good.any():
        shaped[good] = SHAPINGS[shaping](fitness[good])
    return (alpha / len(fitness) * shaped * signs).astype(np.float32)
