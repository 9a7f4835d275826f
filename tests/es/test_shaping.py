"""Shaped fitness and coefficients against NumPy and SciPy, and their corner cases."""

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from esmpi import plugins
from esmpi.config.search import EsConfig
from esmpi.errors import SharedError
from esmpi.es.exact_sums import exact_sum
from esmpi.es.shaping import Shaping, coefficients, find_shaping

fitness_lists = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=2, max_size=40)

SHAPINGS = {name: find_shaping(name) for name in plugins.modules("esmpi.es.shapings")}


def shaped(fitness: list[float], name: str = "zscore") -> list[float]:
    shaping = SHAPINGS[name]
    values: list[float] = shaping.shape(as_taken(np.array(fitness), shaping)).tolist()
    return values


def as_taken(fitness: np.ndarray, shaping: Shaping) -> np.ndarray:
    """Return fitness as a shaping takes it: as the rewards for the only prompt if it needs those."""
    return fitness[:, None] if shaping.by_prompt else fitness


def shape(fitness: list[float], name: str = "zscore", alpha: float = 1.0) -> np.ndarray:
    shaping = SHAPINGS[name]
    return coefficients(as_taken(np.array(fitness), shaping), np.ones(len(fitness), np.int8), shaping, alpha)


@given(fitness_lists)
def test_zscore_is_numpys(fitness: list[float]) -> None:
    expected = (np.array(fitness) - np.mean(fitness)) / (np.std(fitness) + 1e-8)
    if np.std(fitness) > 1e-6:
        np.testing.assert_allclose(shaped(fitness), expected, rtol=1e-9, atol=1e-9)
    else:
        np.testing.assert_allclose(shaped(fitness), 0, atol=1e-4)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=60),
    st.sampled_from([1.0, 1e-300, 1e10]),
    st.integers(1, 200),
)
def test_exact_sum_is_fsum(values: list[float], scale: float, copies: int) -> None:
    scaled = [value * scale for value in values * copies if abs(value) < 1e290]
    assert exact_sum(np.array(scaled)) == math.fsum(scaled)


def test_exact_sum_rounds_once() -> None:
    rng = np.random.default_rng(5)
    for size in (1, 2, 30, 1000, 10_000):
        for spread in (0, 20, 300):
            values = rng.normal(size=size) * 10.0 ** rng.integers(-spread, 1, size)
            values[size // 2 :] -= values[: size - size // 2]  # so that much cancels
            assert exact_sum(values) == math.fsum(values.tolist())
    assert exact_sum(np.array([1e16, 1.0, -1e16])) == 1.0
    assert exact_sum(np.array([5e-324] * 3)) == 1.5e-323
    assert exact_sum(np.array([])) == 0.0
    assert exact_sum(np.array([1.7e308, -1.7e308, 1.0])) == 1.0
    assert math.isnan(exact_sum(np.array([np.nan, 1.0])))
    assert exact_sum(np.array([np.inf, 1.0])) == math.inf


def test_zscore_by_hand() -> None:
    assert shaped([1.0, 2.0, 3.0, 4.0]) == pytest.approx(np.array([-3, -1, 1, 3]) / 5**0.5, rel=1e-7)
    # ddof 0: with ddof 1 these would be -0.7071 and 0.7071
    assert shaped([0.0, 1.0]) == pytest.approx([-1, 1], rel=1e-7)
    # the 1e-8 stands beside the standard deviation, not under its root
    assert shaped([0.0, 2e-8]) == pytest.approx([-0.5, 0.5], rel=1e-12)


@given(fitness_lists)
def test_centered_rank_is_scipys(fitness: list[float]) -> None:
    expected = (rankdata(fitness) - 1) / (len(fitness) - 1) - 0.5
    np.testing.assert_allclose(shaped(fitness, "centered_rank"), expected, rtol=0, atol=1e-12)


def test_centered_rank_by_hand() -> None:
    assert shaped([10.0, -5.0, 7.0], "centered_rank") == [0.5, -0.5, 0.0]
    assert shaped([1.0, 1.0, 0.0, 1.0], "centered_rank") == pytest.approx([1 / 6, 1 / 6, -0.5, 1 / 6])
    assert shaped([3.0], "centered_rank") == [0.0]


@given(fitness_lists, st.sampled_from(list(SHAPINGS)), st.randoms())
def test_who_comes_first_does_not_matter(fitness: list[float], name: str, rng: random.Random) -> None:
    """Not to the last bit: ranks may learn of the members in any order, sums must not notice."""
    order = list(range(len(fitness)))
    rng.shuffle(order)
    before = shaped(fitness, name)
    assert shaped([fitness[i] for i in order], name) == [before[i] for i in order]


def test_sums_are_exact_where_a_plain_sum_is_not() -> None:
    fitness = [1e16, 1.0, -1e16, 1.0, 0.5, 0.25]
    orders = [fitness, sorted(fitness), sorted(fitness, key=abs)]
    assert len({sum(order) for order in orders}) > 1
    assert len({tuple(sorted(shaped(order))) for order in orders}) == 1


@pytest.mark.parametrize("name", list(SHAPINGS))
@pytest.mark.parametrize("value", [0.0, 1.0, 0.5, -3.25, 0.1, 0.7, 1.1, 1 / 3])
@pytest.mark.parametrize("size", [2, 3, 6, 7, 30, 31])
def test_constant_fitness_moves_nothing(name: str, value: float, size: int) -> None:
    assert (shape([value] * size, name) == 0).all()


@given(fitness_lists, st.floats(1e-6, 1.0))
def test_coefficients_are_alpha_over_n_times_shaped_rounded_once(fitness: list[float], alpha: float) -> None:
    factors = shape(fitness, alpha=alpha)
    assert factors.dtype == np.float32
    expected = alpha / len(fitness) * np.array(shaped(fitness), np.float64)
    assert (factors == expected.astype(np.float32)).all()


def test_antithetic_sign_is_in_the_coefficient() -> None:
    fitness, signs = np.array([3.0, 1.0, 2.0, 5.0]), np.array([1, -1, 1, -1], np.int8)
    plain = coefficients(fitness, np.ones(4, np.int8), SHAPINGS["zscore"], 0.1)
    assert (coefficients(fitness, signs, SHAPINGS["zscore"], 0.1) == plain * signs).all()
    assert (plain != 0).all()


@pytest.mark.parametrize("name", list(SHAPINGS))
def test_failed_members_get_zero_and_do_not_weigh_in(name: str) -> None:
    fitness = np.array([1.0, np.nan, 3.0, np.nan, 8.0])
    shaping = SHAPINGS[name]
    factors = coefficients(as_taken(fitness, shaping), np.ones(5, np.int8), shaping, 0.5)
    assert factors[[1, 3]].tolist() == [0, 0]
    # alpha / N has the whole population's N, the shaping only those that have a fitness
    expected = 0.5 / 5 * np.array(shaped([1.0, 3.0, 8.0], name))
    assert (factors[[0, 2, 4]] == expected.astype(np.float32)).all()


@pytest.mark.parametrize("name", list(SHAPINGS))
def test_one_member_left_moves_nothing(name: str) -> None:
    factors = shape([np.nan, 2.0], name, 0.5)
    assert factors.tolist() == [0, 0]


def test_no_member_left_moves_nothing() -> None:
    factors = coefficients(np.full(3, np.nan), np.ones(3, np.int8), SHAPINGS["zscore"], 0.5)
    assert factors.tolist() == [0, 0, 0]


def test_higher_fitness_has_the_higher_coefficient() -> None:
    for name in SHAPINGS:
        steps = np.diff(shape([-2.0, 0.0, 1.0, 7.0], name))
        if name == "log_rank":  # the worse half are all the same
            assert steps[0] == 0 < steps[1:].min()
        elif name == "top_k":  # one of four counts
            assert (steps[:2] == 0).all()
            assert steps[2] > 0
        else:
            assert (steps > 0).all()


@given(fitness_lists)
def test_log_rank_is_the_utilities_of_nes(fitness: list[float]) -> None:
    size = len(fitness)
    by_rank = np.maximum(0, np.log(size / 2 + 1) - np.log(np.arange(1, size + 1)))
    by_rank = by_rank / by_rank.sum() - 1 / size
    values = np.array(fitness)
    # members of equal fitness share the mean
    places = [np.flatnonzero(np.sort(-values) == -value) for value in values]
    expected = [size * by_rank[place].mean() for place in places]
    np.testing.assert_allclose(shaped(fitness, "log_rank"), expected, rtol=1e-12, atol=1e-12)


def test_log_rank_by_hand() -> None:
    # N 4: ln 3 - ln 1 and ln 3 - ln 2, which sum to ln 4.5
    best, second = 4 * np.log(3) / np.log(4.5) - 1, 4 * np.log(1.5) / np.log(4.5) - 1
    assert shaped([1.0, 9.0, 3.0, -2.0], "log_rank") == pytest.approx([-1, best, second, -1], rel=1e-14)
    assert shaped([2.0, 2.0, 2.0], "log_rank") == [0, 0, 0]
    assert shaped([2.0, 2.0, 0.0, 0.0], "log_rank") == pytest.approx([1, 1, -1, -1], rel=1e-14)
    assert shaped([5.0], "log_rank") == [0]
    many = SHAPINGS["log_rank"].shape(np.arange(10_000.0))
    assert abs(many.sum()) < 1e-6
    assert many[-1] == many.max() > 9
    assert many.std() == pytest.approx(3**0.5, rel=0.01)  # a step like that of z-scores


def test_raw_is_the_fitness_less_its_mean() -> None:
    assert shaped([1.5, -2.0, 2.0], "raw") == [1.0, -2.5, 1.5]
    assert shaped([0.1, 0.1, 0.1], "raw") == [0, 0, 0]


def test_top_k_by_hand() -> None:
    fitness = np.array([3.0, 9.0, 1.0, 7.0, 5.0, 0.0, 2.0, 4.0])
    es = EsConfig(generations=1, population_size=8, shaping="top_k", top_k=3)
    chosen = find_shaping("top_k", es).shape
    assert chosen(fitness).tolist() == pytest.approx([-1, 5 / 3, -1, 5 / 3, 5 / 3, -1, -1, -1])
    assert find_shaping("top_k").shape(fitness).tolist() == [-1, 3, -1, 3, -1, -1, -1, -1]  # a quarter of eight
    # two members share the third place: each has half of its utility
    assert chosen(np.array([8.0, 7.0, 6.0, 6.0, 1.0])).tolist() == pytest.approx([2 / 3, 2 / 3, -1 / 6, -1 / 6, -1])
    assert chosen(np.array([2.0, 1.0])).tolist() == [1, -1]  # of the eight, only two did not fail


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"top_k": 3}, "top_k: has no effect on shaping zscore: set es.shaping=top_k, too"),
        ({"top_k": 8, "shaping": "top_k"}, "top_k: must be less than es.population_size, 8, got 8"),
    ],
)
def test_a_top_k_without_a_meaning_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EsConfig(generations=1, population_size=8, **keys)


def test_per_prompt_is_the_mean_of_each_prompts_zscores() -> None:
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(7, 5)) * [1, 100, 0.01, 3, 0]  # the last prompt tells no member apart
    found = SHAPINGS["per_prompt"].shape(rewards)
    zscores = (rewards - rewards.mean(0)) / (rewards.std(0) + 1e-8)
    np.testing.assert_allclose(found, zscores[:, :4].sum(1) / 5, rtol=1e-6)
    # a prompt whose rewards are a hundred times as far apart counts no more than the others
    np.testing.assert_allclose(found, SHAPINGS["per_prompt"].shape(rewards * [1, 0.01, 1, 1, 1]), rtol=1e-6)


def test_a_member_without_rewards_takes_no_part_in_per_prompt() -> None:
    rewards = np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 8.0]])
    factors = coefficients(rewards, np.ones(3, np.int8), SHAPINGS["per_prompt"], 0.5)
    assert factors.tolist() == pytest.approx([-0.5 / 3, 0, 0.5 / 3], rel=1e-7)


@pytest.mark.parametrize("shaping", ["zscore", "raw"])
@pytest.mark.parametrize("fitness", [[1e300, -1e300, 0.0], [1.7e308, 1.7e308, -1.7e308], [np.inf, 0.0, 1.0]])
def test_fitness_that_would_make_theta_infinite_is_refused(shaping: str, fitness: list[float]) -> None:
    signs = np.ones(3, np.int8)
    with pytest.raises(SharedError, match=r"the update would not be finite.*centered_rank"):
        coefficients(np.array(fitness), signs, find_shaping(shaping), 0.1)
    assert np.isfinite(coefficients(np.array(fitness), signs, find_shaping("centered_rank"), 0.1)).all()
