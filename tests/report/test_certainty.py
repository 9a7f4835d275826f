"""Intervals and tests, compared with SciPy's and with what they promise."""

import numpy as np
import pytest
from scipy import stats

from esmpi.report.certainty import change, interval, p_text, sign_test


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (10, 10), (812, 2000), (1, 1)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    known = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(interval(right / count, count), (known.low, known.high), atol=1e-12)


def test_the_interval_holds_the_truth_as_often_as_it_says_and_more_often_if_completions_are_alike() -> None:
    rng = np.random.default_rng(0)
    independent, alike = 0, 0
    for _ in range(2000):
        # four completions of each of 100 problems, whose chances differ
        chances = rng.beta(2, 4, 100)
        share = rng.binomial(4, chances).mean() / 4
        low, high = interval(share, 100)
        alike += low <= 1 / 3 <= high
        low, high = interval(rng.binomial(100, 1 / 3) / 100, 100)
        independent += low <= 1 / 3 <= high
    assert 0.93 < independent / 2000 < 0.97
    assert alike >= independent


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (12, 5), (5, 12), (900, 1000), (1500, 20)])
def test_the_sign_test_is_the_binomial_test(better: int, worse: int) -> None:
    known = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert sign_test(better, worse) == pytest.approx(known, rel=1e-9)


def test_a_change_counts_problems_and_not_completions() -> None:
    before = [[False, False], [True, False], [True, True], [False, False]]
    after = [[True, False], [True, True], [True, False], [False, False]]
    found = change(before, after)
    assert (found.num_better, found.num_worse) == (2, 1)
    gain = [0.5, 0.5, -0.5, 0]
    assert found.difference == np.mean(gain)
    half = 1.959964 * np.std(gain, ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half), rel=1e-6)


def test_a_p_value_claims_no_more_digits_than_it_has() -> None:
    assert [p_text(p) for p in (1e-9, 0.0123, 0.5)] == ["p < 0.0001", "p = 0.0123", "p = 0.50"]
