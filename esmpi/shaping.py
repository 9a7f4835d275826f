"""Shaped fitness and coefficients: float64 arithmetic that gives the same bits on every machine.

Sums are `math.fsum`, which is exact before its one rounding, so no order of summation or SIMD width matters.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np


def zscore(fitness: Sequence[float]) -> list[float]:
    """Return (R - mean R) / (std R + 1e-8), std with ddof 0 (arXiv 2509.24372)."""
    if min(fitness) == max(fitness):
        return [0.0] * len(fitness)  # their mean may round to another number, which would then count as a signal
    mean = math.fsum(fitness) / len(fitness)
    centered = [value - mean for value in fitness]
    std = math.sqrt(math.fsum(value * value for value in centered) / len(fitness))
    return [value / (std + 1e-8) for value in centered]


def centered_rank(fitness: Sequence[float]) -> list[float]:
    """Return ranks scaled to -0.5 ... 0.5; equal values share the mean of their ranks (arXiv 1703.03864)."""
    if len(fitness) == 1:
        return [0.0]
    values = np.asarray(fitness, np.float64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = (2 * last - counts - 1) / 2
    return [float(rank) / (len(fitness) - 1) - 0.5 for rank in mean_rank[inverse]]


SHAPINGS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "zscore": zscore,
    "centered_rank": centered_rank,
}


def coefficients(fitness: np.ndarray, failed: np.ndarray, signs: np.ndarray, shaping: str, alpha: float) -> np.ndarray:
    """Return what multiplies each member's eps in the update: alpha / N * shaped fitness * sign.

    Parameters
    ----------
    fitness : (N,) float64
    failed : (N,) bool
        Members without a fitness: they take no part in the shaping and get 0.
    signs : (N,) int8
    shaping : str
        A name of `SHAPINGS`.
    alpha : float

    Returns
    -------
    (N,) float32
        Computed in float64, rounded once. All 0 if all members failed: theta then stays as it is.
    """
    good = np.flatnonzero(~failed)
    shaped = np.zeros(len(fitness), np.float64)
    if good.size:
        shaped[good] = SHAPINGS[shaping](fitness[good].tolist())
    return (alpha / len(fitness) * shaped * signs).astype(np.float32)
