"""From fitness to coefficients: float64 arithmetic that gives the same bits on every machine."""

import importlib
from collections.abc import Callable

import numpy as np

from esmpi import plugins

Shaping = Callable[[np.ndarray], np.ndarray]
"""Returns the shaped fitness of members, (N,) float64, from their fitness, (N,) float64 without NaN."""


def find_shaping(name: str) -> Shaping:
    """Return a way to shape fitness by its name; raise KeyError if there is none."""
    shape: Shaping = importlib.import_module(plugins.modules("esmpi.es.shapings")[name]).shape
    return shape


def coefficients(fitness: np.ndarray, signs: np.ndarray, shaping: str, alpha: float) -> np.ndarray:
    """Return what multiplies each member's eps in the update: alpha / N * shaped fitness * sign.

    Parameters
    ----------
    fitness : (N,) float64
        NaN for members without one: they take no part in the shaping and get 0.
    signs : (N,) int8
    shaping : str
        A module of `esmpi.es.shapings`.
    alpha : float

    Returns
    -------
    (N,) float32
        Computed in float64, rounded once. All 0 if all members failed: theta then stays as it is.
    """
    good = ~np.isnan(fitness)
    shaped = np.zeros(len(fitness), np.float64)
    if good.any():
        shaped[good] = find_shaping(shaping)(fitness[good])
    return (alpha / len(fitness) * shaped * signs).astype(np.float32)
