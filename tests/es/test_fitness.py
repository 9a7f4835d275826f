"""What several completions of a prompt are worth together: each rule against a count of its own."""

import itertools
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import LEAST_CONFIG

from esmpi.config.overrides import ConfigError
from esmpi.config.reader import parse_config
from esmpi.es.fitness import Fitness, best_of, elect, majority, mean, pass_at_k

REWARDS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9)
ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=9)


@given(REWARDS)
def test_the_mean_is_exactly_rounded_and_the_best_is_no_worse_than_any(rewards: list[float]) -> None:
    assert mean(rewards) == pytest.approx(float(sum(map(Fraction, rewards)) / len(rewards)), rel=1e-15, abs=1e-300)
    assert mean(rewards[:1]) == rewards[0]
    assert best_of(rewards) in rewards
    assert not any(reward > best_of(rewards) for reward in rewards)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int) -> None:
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([i < correct for i in range(n)], k))
        assert pass_at_k(n, correct, k) == pytest.approx(float(Fraction(sum(map(any, subsets)), len(subsets))), 1e-15)


def test_pass_at_k_of_many_samples_neither_overflows_nor_loses_all_digits() -> None:
    chance = 1 - math.prod(1 - 5000 / i for i in range(10_000 - 3 + 1, 10_001))  # the product form of Chen et al.
    assert pass_at_k(10_000, 3, 5000) == pytest.approx(chance, rel=1e-12)


def counted_by_hand(answers: list[str | None], weights: list[float]) -> int:
    """Choose as a person would: count, then compare sums, then look who was first."""
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return 0
    most = [answer for answer in counts if counts[answer] == max(counts.values())]
    sums = {
        answer: sum(Fraction(weight) for other, weight in zip(answers, weights, strict=True) if other == answer)
        for answer in most
    }
    heaviest = [answer for answer in most if sums[answer] == max(sums.values())]
    return next(place for place, answer in enumerate(answers) if answer in heaviest)


@given(ANSWERS, st.lists(st.integers(-2, 2), min_size=9, max_size=9))
def test_the_most_frequent_answer_is_elected(answers: list[str | None], weights: list[int]) -> None:
    exact = [weight / 4 for weight in weights[: len(answers)]]
    assert elect(answers, exact) == counted_by_hand(answers, exact)
    assert elect(answers) == counted_by_hand(answers, [0.0] * len(answers))


def test_ties_by_weight_and_then_by_place() -> None:
    assert elect(["a", "b", "b", "a"], [1, 2, 2, 1]) == 1
    assert elect(["a", "b", "b", "a"], [1, 1, 1, 1]) == 0
    assert elect(["b", "a", "a", None, None, None], [9, 0, 0, 9, 9, 9]) == 1, "weights decide ties only"
    assert elect([None, None]) == 0
    assert majority([5.0, 1.0, 2.0], [None, "a", "a"]) == 1.0


@pytest.mark.parametrize(
    ("kind", "k", "expected"),
    [
        ("mean", 3, [1.0, (0.5 + 0.25 + 1) / 3, 0.0]),
        ("best_of", 3, [2.0, 1.0, 0.0]),
        ("pass_at_k", 1, [2 / 3, 1 / 3, 0.0]),
        ("pass_at_k", 2, [1.0, 2 / 3, 0.0]),
        ("pass_at_k", 3, [1.0, 1.0, 0.0]),
        ("majority", 3, [2.0, 0.5, 0.0]),
    ],
)
def test_the_samples_of_a_prompt_stand_side_by_side(kind: str, k: int, expected: list[float]) -> None:
    rewards = [0.0, 2.0, 1.0, 0.5, 0.25, 1.0, 0.0, 0.0, 0.0]
    correct = [False, True, True, False, False, True, False, False, False]
    answers = [None, "8", "8", "3", "4", "5", None, None, None]
    found = Fitness(kind=kind, num_samples=3, k=k).of_prompts(rewards, correct, answers)
    assert found.dtype == np.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-15)


def config(**keys: Any) -> Any:
    sampling = {"num_samples": keys.pop("num_samples", 1), "temperature": keys.pop("temperature", 0.0)}
    data = {"prompts": keys.pop("prompts", "shared")}
    return parse_config(LEAST_CONFIG | {"es": {"generations": 1} | keys, "sampling": sampling, "data": data})


def test_what_the_config_says() -> None:
    assert Fitness.of(config()) == Fitness()
    hot = {"num_samples": 8, "temperature": 1.0}
    assert Fitness.of(config(fitness="pass_at_k", **hot)) == Fitness(kind="pass_at_k", num_samples=8, k=8)
    assert Fitness.of(config(fitness="pass_at_k", fitness_k=2, **hot)).k == 2
    assert Fitness.of(config(fitness="majority", **hot)).needs_answers
    assert not Fitness.of(config(fitness="best_of", **hot)).needs_answers
    assert Fitness.of(config(fitness="pass_at_k")).of_prompts([0.3], [True], []).tolist() == [1.0]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_samples": 2}, "sampling.num_samples: several greedy completions are all the same"),
        ({"fitness": "best_of"}, "es.fitness: best_of needs several completions"),
        ({"fitness": "majority", "temperature": 1.0}, "es.fitness: majority needs several completions"),
        ({"fitness": "pass_at_k", "fitness_k": 3, "num_samples": 2, "temperature": 1.0}, "es.fitness_k: 3 is more"),
        ({"fitness": "mean", "fitness_k": 1}, "es.fitness_k: has no effect on es.fitness: mean"),
        ({"prompts": "per_member", "shaping": "per_prompt"}, "es.shaping: per_prompt compares members on the same"),
        ({"fitness": "worst_of"}, "es.fitness: must be one of mean, best_of, pass_at_k, majority"),
    ],
)
def test_what_would_have_no_effect_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**keys)
