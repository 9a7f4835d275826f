"""Shaped fitness as z-scores."""

import numpy as np

from esmpi.es.exact_sums import mean_and_std


def shape(fitness: np.ndarray) -> np.ndarray:
    """Return (R - mean R) / (std R + 1e-8), std with ddof 0 (arXiv 2509.24372); (N,) float64 both."""
    if fitness.min() == fitness.max():
        return np.zeros_like(fitness)  # their mean may round to another number, which would then count as a signal
    mean, std = mean_and_std(fitness)
    return np.asarray((fitness - mean) / (std + 1e-8))
