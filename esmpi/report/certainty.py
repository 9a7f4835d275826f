"""How sure a result is: intervals of an accuracy, and a paired test of two evaluations on the same problems."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
"""Of all confidence intervals."""
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def interval(share: float, count: int) -> tuple[float, float]:
    """Return the Wilson score interval of a share of `count` independent problems.

    If each problem has several completions, whose results are alike, `count` is still the number of problems: the
    interval is then wider than it need be, never narrower. Wilson, "Probable Inference", 1927.
    """
    if count < 1 or math.isnan(share):
        return math.nan, math.nan
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(max(0.0, share * (1 - share)) / count + (_Z / (2 * count)) ** 2)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def sign_test(num_better: int, num_worse: int) -> float:
    """Return the two-sided p-value of the exact sign test: the chance of so uneven a split of fair coins.

    For problems that are either right or wrong it is McNemar's exact test.
    """
    n, least = num_better + num_worse, min(num_better, num_worse)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


@dataclass(frozen=True, kw_only=True)
class Change:
    """Two evaluations of the same problems, compared problem by problem."""

    num_better: int
    """Problems that more of the later completions get right."""
    num_worse: int
    difference: float
    """Of the accuracies."""
    low: float
    """Lower end of its confidence interval."""
    high: float
    p_value: float
    """Of the sign test: the chance of such a split if neither evaluation were better than the other."""


def change(before: Sequence[Sequence[bool]], after: Sequence[Sequence[bool]]) -> Change:
    """Compare two evaluations.

    Parameters
    ----------
    before, after : sequence of sequence of bool
        For each problem, in the same order, whether each of its completions is right.

    The interval is the mean of the problems' differences plus or minus 1.96 standard errors.
    """
    gain = np.array([np.mean(new) - np.mean(old) for old, new in zip(before, after, strict=True)])
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
    mean = float(gain.mean())
    return Change(
        num_better=better,
        num_worse=worse,
        difference=mean,
        low=max(-1.0, mean - _Z * error),
        high=min(1.0, mean + _Z * error),
        p_value=sign_test(better, worse),
    )


def p_text(p_value: float) -> str:
    """Return a p-value in words that claim no more digits than it has."""
    return "p < 0.0001" if p_value < 1e-4 else f"p = {p_value:.4f}" if p_value < 0.1 else f"p = {p_value:.2f}"
