"""Shaped fitness by truncation: only the fittest members count, and all of them the same."""

import numpy as np

from esmpi.es.ranks import by_rank


def shape(fitness: np.ndarray, *, top_k: int | None = None) -> np.ndarray:
    """Return N / k - 1 for the k fittest members and -1 for the others, (N,) float64.

    It is N times the utility 1 / k - 1 / N: truncation selection, as evolution strategies with mu parents out of lambda
    children have it (Wierstra et al. 2014, Natural Evolution Strategies, section 3.1). Members of equal fitness share
    the mean of their utilities. k is a quarter of the members if `top_k` is None, at least 1, and
    at most all members but one, where others failed.
    """
    size = len(fitness)
    if fitness.min() == fitness.max():
        return np.zeros_like(fitness)
    count = min(max(1, size // 4) if top_k is None else top_k, size - 1)
    utilities = np.full(size, -1.0)
    utilities[:count] = size / count - 1
    return by_rank(fitness, utilities)
