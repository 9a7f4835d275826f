"""Shaped fitness and coefficients: float64 arithmetic that gives the same bits on every machine.

Sums are `math.fsum`, which is exact before its one rounding, so no order of summation or SIMD width matters.
"""

import math
from collections.abc import Callable

import numpy as np


def zscore(fitness: np.ndarray) -> np.ndarray:
    """Return (R - mean R) / (std R + 1e-8), std with ddof 0 (arXiv 2509.24372); (N,) float64 both."""
    if fitness.min() == fitness.max():
        return np.zeros_like(fitness)  # their mean may round to another number, which would then count as a signal
    mean = math.fsum(fitness.tolist()) / len(fitness)
    centered = fitness - mean
    std = math.sqrt(math.fsum((centered * centered).tolist()) / len(fitness))
    return np.asarray(centered / (std + 1e-8))


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
        shaped[good] = SHAPINGS[shaping](fitness[good])
    return (alpha / len(fitness) * shaped * signs).astype(np.float32)
