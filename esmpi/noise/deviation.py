"""The standard deviation of a tensor, with the same bits on every machine."""

import math
from collections.abc import Callable, Iterable

import numpy as np

_LANES = 32
_AT_ONCE = 1 << 16
"""Elements: what is made of them stays in the second-level cache."""


def standard_deviation(parts: Callable[[], Iterable[np.ndarray]]) -> float:
    """Return the standard deviation (ddof 0) of a tensor, rounded to float32; 0 for an empty one.

    `parts()` yields its elements in order, (n,) float32, and is called twice. Sums are made in float64, in an order
    that does not depend on the parts: element e counts in sum e % 32, and the 32 sums are added one after another.
    """
    values, count = _total(parts(), 0.0, 1)
    if count == 0:
        return 0.0
    squares, _ = _total(parts(), values / count, 2)
    return float(np.float32(math.sqrt(squares / count)))


def _total(parts: Iterable[np.ndarray], mean: float, power: int) -> tuple[float, int]:
    """Return the sum of (x - mean) ** power, and how many elements there are."""
    sums, left, count = np.zeros((1, _LANES)), np.zeros(0), 0
    for some in (flat[i : i + _AT_ONCE] for flat in parts for i in range(0, flat.size, _AT_ONCE)):
        values = some.astype(np.float64) - mean
        count += len(values)
        values = np.concatenate([left, values if power == 1 else values * values])
        whole = len(values) // _LANES * _LANES
        # NumPy sums pairwise along the fastest axis only; along this one it adds a row after the other
        sums = np.add.reduce(np.concatenate([sums, values[:whole].reshape(-1, _LANES)]), axis=0, keepdims=True)
        left = values[whole:]
    sums[0, : len(left)] += left
    return sum(sums[0].tolist()), count
