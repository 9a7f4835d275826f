"""Shaped fitness as centred ranks."""

import numpy as np


def shape(fitness: np.ndarray) -> np.ndarray:
    """Return ranks scaled to -0.5 ... 0.5; equal values share the mean of their ranks (arXiv 1703.03864)."""
    if len(fitness) == 1:
        return np.zeros_like(fitness)
    _, inverse, counts = np.unique(fitness, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = (2 * last - counts - 1) / 2
    return np.asarray(mean_rank[inverse] / (len(fitness) - 1) - 0.5)
