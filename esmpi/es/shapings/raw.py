"""Shaped fitness that keeps the scale of rewards."""

import numpy as np

from esmpi.es.exact_sums import exact_sum


def shape(fitness: np.ndarray) -> np.ndarray:
    """Return R - mean R, (N,) float64: an update along the gradient of the mean reward (arXiv 1703.03864, eq. 1)."""
    if fitness.min() == fitness.max():
        return np.zeros_like(fitness)  # their mean may round to another number
    return np.asarray(fitness - exact_sum(fitness) / len(fitness))
