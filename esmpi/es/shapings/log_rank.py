"""Shaped fitness as the utilities of natural evolution strategies: logarithms of ranks."""

import decimal
from functools import lru_cache

import numpy as np

from esmpi.es.ranks import by_rank


def shape(fitness: np.ndarray) -> np.ndarray:
    """Return N times the utility of each member's rank, (N,) float64; the fittest has rank 1.

    The utility of a rank is max(0, ln(N / 2 + 1) - ln(rank)), normalised to a sum of 1, less 1 / N (Wierstra et al.
    2014, Natural Evolution Strategies, section 3.1). Members of equal fitness share the mean of their utilities. The
    factor N makes the update alpha * sum of utility * eps, as theirs, because esmpi divides by N.
    """
    size = len(fitness)
    if fitness.min() == fitness.max():
        return np.zeros_like(fitness)
    return by_rank(fitness, _utilities(size))


@lru_cache(maxsize=8)
def _utilities(size: int) -> np.ndarray:
    """Return N times the utility of each rank, (N,) float64.

    Logarithms of the `decimal` module have the same digits on every machine, unlike those of a mathematical library.
    """
    with decimal.localcontext(decimal.Context(prec=30)):
        top = (decimal.Decimal(size) / 2 + 1).ln()
        kept = [top - decimal.Decimal(rank).ln() for rank in range(1, size // 2 + 2)]
        total = sum(kept, decimal.Decimal(0))
        made = [float(size * value / total - 1) for value in kept]
    utilities = np.full(size, -1.0)
    utilities[: len(made)] = made
    utilities.flags.writeable = False
    return utilities
