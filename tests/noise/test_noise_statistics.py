"""The noise is standard normal and independent: in a tensor, and between tensors, members, generations and runs.

Seeds are fixed, so every figure here is always the same. Bounds are 4.5 standard errors.
"""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

from esmpi.noise import cpu, member_seed, tensor_key

N = 1 << 20
BOUND = 4.5
NAME = "model.layers.0.mlp.up_proj.weight"


def draw(name: str = NAME, seed: int = member_seed(0, 0, 0), first: int = 0, count: int = N) -> NDArray[np.float64]:
    eps = np.empty((1, count), np.float32)
    cpu.perturb(eps, np.zeros_like(eps), first, 0, tensor_key(name), seed, 1.0)
    return eps[0].astype(np.float64)


def correlation_in_errors(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The sample correlation in units of its standard error, 1 / sqrt(n)."""
    return abs(float(np.mean(a * b))) * np.sqrt(a.size)


@pytest.mark.parametrize("first", [0, 2**33 - N // 2, 2**37 - N // 2])
def test_moments(first: int) -> None:
    eps = draw(first=first)
    assert abs(eps.mean()) * np.sqrt(N) < BOUND
    assert abs((eps**2).mean() - 1) * np.sqrt(N / 2) < BOUND
    assert abs((eps**3).mean()) * np.sqrt(N / 15) < BOUND
    # The table's own kurtosis is 2.997; the standard error of the fourth moment is sqrt(96 / n).
    assert abs((eps**4).mean() - 2.997) * np.sqrt(N / 96) < BOUND


def test_distribution_function() -> None:
    """Kolmogorov-Smirnov against the normal; the 8192 steps of the table are far below the noise."""
    eps = np.sort(draw())
    distance = np.abs(ndtr(eps) - (np.arange(N) + 0.5) / N).max()
    assert distance * np.sqrt(N) < 1.95  # p = 0.001


def test_all_values_of_the_table_are_equally_frequent() -> None:
    values, counts = np.unique(draw(count=4 * N), return_counts=True)
    assert values.size == 8192
    expected = 4 * N / 8192
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 8191) / np.sqrt(2 * 8191) < BOUND


def test_tails_are_as_heavy_as_the_normal_ones() -> None:
    eps = draw(count=4 * N)
    for limit in (1.0, 2.0, 3.0, 3.5):
        for side in (eps, -eps):
            probability = ndtr(-limit)
            error = np.sqrt(probability / eps.size)
            # the table's steps shift a limit by up to half a step, 1/8192 of the probability
            assert abs((side > limit).mean() - probability) < BOUND * error + 1 / 8192, limit
    assert 3.8 < np.abs(eps).max() < 3.9


def test_tensors_of_one_shape_have_independent_noise() -> None:
    """Not so in the public implementations: there all tensors of one shape get the same noise."""
    names = [f"model.layers.{i}.mlp.{which}_proj.weight" for i in range(3) for which in ("up", "gate")]
    noises = [draw(name) for name in names]
    assert all(correlation_in_errors(a, b) < BOUND for a, b in itertools.combinations(noises, 2))


@pytest.mark.parametrize(
    "seeds",
    [
        [member_seed(run_seed, 0, 0) for run_seed in range(8)],
        [member_seed(0, generation, 0) for generation in range(8)],
        [member_seed(0, 0, member) for member in range(8)],
        [0, 1, 2, 3, 2**32, 2**63, 2**64 - 1],  # the member seed itself may be anything
    ],
    ids=["run seeds", "generations", "members", "raw"],
)
def test_neighbouring_seeds_have_independent_noise(seeds: list[int]) -> None:
    noises = [draw(seed=seed, count=1 << 18) for seed in seeds]
    assert all(correlation_in_errors(a, b) < BOUND for a, b in itertools.combinations(noises, 2))


def test_no_two_members_of_many_runs_share_a_seed() -> None:
    """Runs with neighbouring seeds share seed lists where a member's seed is run seed + generation."""
    places = itertools.product(range(10), range(40), range(30))
    assert len({member_seed(*place) for place in places}) == 10 * 40 * 30


@pytest.mark.parametrize("lag", [1, 2, 31, 32, 33, 64, 128, 255, 256, 257, 4096])
def test_neighbouring_elements_are_independent(lag: int) -> None:
    """Lags around lanes (1, 32), halves and words (32, 64, ...) and tiles (256); values and magnitudes."""
    eps = draw()
    assert correlation_in_errors(eps[lag:], eps[:-lag]) < BOUND
    squares = (eps**2 - 1) / np.sqrt(2)
    assert correlation_in_errors(squares[lag:], squares[:-lag]) < BOUND


def test_sign_and_magnitude_are_independent() -> None:
    eps = draw()
    assert correlation_in_errors(np.sign(eps), (np.abs(eps) - np.abs(eps).mean()) / np.abs(eps).std()) < BOUND


def test_projections_on_a_fixed_direction_are_standard_normal() -> None:
    """What ES relies on: one direction of the space, many members."""
    direction = np.random.default_rng(3).normal(size=4096)
    direction /= np.linalg.norm(direction)
    dots = np.array([draw(seed=member_seed(5, g, m), count=4096) @ direction for g in range(64) for m in range(32)])
    assert abs(dots.mean()) * np.sqrt(dots.size) < BOUND
    assert abs((dots**2).mean() - 1) * np.sqrt(dots.size / 2) < BOUND
