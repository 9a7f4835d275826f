"""Sums, means and standard deviations in float64 that have the same bits on every machine.

Sums are exact before their one rounding, so no order of summation or SIMD width matters.
"""

import math
import sys

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
