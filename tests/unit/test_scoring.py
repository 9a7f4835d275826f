"""Scoring: a reward that fails costs one completion, not the run."""

import logging
import math
from typing import Any

import pytest

from esmpi.engines.base import Completion
from esmpi.scoring import FAILURE_SCORE, Scorer
from esmpi.tasks import Example, Score, Task, TaskConfig


class Fragile(Task):
    """A task whose reward does what the completion says."""

    name = "fragile"
    config_type = TaskConfig

    def __init__(self, config: TaskConfig):
        pass

    def prompt(self, example: Example) -> str:
        return ""

    def check(self, example: Example) -> None:
        pass

    def key(self, example: Example) -> int:
        return 0

    def score(self, completion: str, example: Example) -> Score:
        if completion == "raise":
            raise ZeroDivisionError("out of reach")
        if completion == "recurse":
            return self.score(completion, example)
        if completion == "nothing":
            none: Any = None
            return none
        return Score(reward=float(completion) * example["weight"], correct=float(completion) > 0)


def score(texts: list[str], weight: float = 1.0) -> Any:
    completions = [Completion(text=text, num_tokens=1, truncated=False) for text in texts]
    scorer = Scorer(Fragile(TaskConfig(name="fragile")))
    return scorer.submit(completions, [{"weight": weight}] * len(texts)).result()


def test_scores_come_in_order_and_fitness_is_their_mean() -> None:
    scored = score(["1", "-0.5", "0.25"], weight=2.0)
    assert [s.reward for s in scored.scores] == [2.0, -1.0, 0.5]
    assert [s.correct for s in scored.scores] == [True, False, True]
    assert scored.failures == 0
    assert scored.fitness == 0.5
    assert scored.seconds >= 0


def test_each_completion_meets_its_own_example() -> None:
    completions = [Completion(text="1", num_tokens=1, truncated=False)] * 3
    scored = Scorer(Fragile(TaskConfig(name="fragile"))).submit(completions, [{"weight": w} for w in (1, 2, 3)])
    assert [s.reward for s in scored.result().scores] == [1, 2, 3]


@pytest.mark.parametrize("bad", ["raise", "recurse", "nothing", "nan", "inf", "-inf", "no number"])
def test_one_bad_completion_costs_itself_only(bad: str) -> None:
    scored = score(["1", bad, "2"])
    assert [s.reward for s in scored.scores] == [1, 0, 2]
    assert scored.scores[1] == FAILURE_SCORE == Score(reward=0.0, correct=False)
    assert scored.failures == 1
    assert scored.fitness == 1.0


def test_all_bad_completions_leave_no_fitness() -> None:
    scored = score(["nan", "raise", "nothing"])
    assert scored.failures == 3
    assert math.isnan(scored.fitness)


def test_failures_are_logged_once_a_kind(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "esmpi.scoring"):
        score(["raise", "nan", "raise", "inf", "1"])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "fragile" in messages[0]
    assert "ZeroDivisionError: out of reach" in messages[0]
    assert "ValueError: reward is nan" in messages[1]


def test_fitness_does_not_depend_on_the_order_of_the_completions() -> None:
    rewards = ["0.1", "1e16", "0.3", "-1e16", "0.7"]
    assert score(rewards).fitness == score(rewards[::-1]).fitness == pytest.approx(1.1 / 5)


def test_huge_rewards_leave_a_status_not_a_crash() -> None:
    fitness = score(["1e308", "1e308"]).fitness
    assert math.isnan(fitness) or fitness > 0


def test_failure_in_one_member_leaves_the_scorer_usable() -> None:
    scorer = Scorer(Fragile(TaskConfig(name="fragile")))
    futures = [
        scorer.submit([Completion(text=text, num_tokens=1, truncated=False)], [{"weight": 1}])
        for text in ("raise", "3", "nan", "4")
    ]
    fitness = [future.result().fitness for future in futures]
    assert [fitness[1], fitness[3]] == [3, 4]
    assert math.isnan(fitness[0])
    assert math.isnan(fitness[2])
