"""Utilities by rank, as several shapings have them."""

import numpy as np

from esmpi.es.exact_sums import exact_sum


def by_rank(fitness: np.ndarray, utilities: np.ndarray) -> np.ndarray:
    """Return each member's utility, (N,) float64, from those of the ranks, (N,) float64.

    The fittest has the first rank. Members of equal fitness share the mean of their utilities.
    """
    order = np.argsort(-fitness, kind="stable")
    _, starts, inverse, counts = np.unique(-fitness, return_index=True, return_inverse=True, return_counts=True)
    if len(starts) == len(fitness):
        shaped = np.empty(len(fitness))
        shaped[order] = utilities
        return shaped
    ends = np.cumsum(counts)
    means = np.array([exact_sum(utilities[end - n : end]) / n for end, n in zip(ends, counts, strict=True)])
    return np.asarray(means[inverse])
