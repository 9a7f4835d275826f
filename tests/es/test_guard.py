"""What the guard does, by the evaluations so far."""

from collections.abc import Mapping
from typing import Any

import pytest

from esmpi.config.reader import ConfigError, parse_config
from esmpi.config.sections import GuardConfig
from esmpi.es.guard import Event, alpha_factor, events

LEAST = {"run": {"name": "x"}, "model": {"path": "m"}, "es": {"generations": 3}, "task": {"name": "countdown"}}


def results(accuracies: list[float], every: int = 10, **figures: list[float]) -> dict[int, dict[str, float]]:
    columns: Mapping[str, list[float]] = {"accuracy": accuracies, "reward_mean": accuracies, **figures}
    return {every * i: {name: column[i] for name, column in columns.items()} for i in range(len(accuracies))}


def found(guard: GuardConfig, accuracies: list[float], **figures: list[float]) -> list[Event]:
    return events(guard, results(accuracies, **figures), {})


def test_nothing_is_wrong_without_limits() -> None:
    assert found(GuardConfig(), [0.5, 0.0, 0.9, 0.0]) == []
    assert found(GuardConfig(max_drop=0.1), []) == []


def test_a_drop_is_measured_from_the_best_so_far() -> None:
    guard = GuardConfig(max_drop=0.1)
    assert found(guard, [0.2, 0.5, 0.45, 0.4]) == []
    # 0.5 - 0.1 is the limit; the run ends there, whatever came later
    expected = [Event(generation=30, action="stop", reason="accuracy fell from 0.5 to 0.39")]
    assert found(guard, [0.2, 0.5, 0.45, 0.39, 0.1]) == expected


def test_after_a_smaller_alpha_only_a_further_drop_counts() -> None:
    guard = GuardConfig(max_drop=0.1, action="shrink", factor=0.25)
    made = found(guard, [0.6, 0.3, 0.25, 0.35, 0.2])
    assert [(event.generation, event.action) for event in made] == [(10, "shrink"), (40, "shrink")]
    assert alpha_factor(guard, made) == 0.25**2
    assert alpha_factor(guard, made[:1]) == 0.25


def test_theta_is_taken_back_to_the_best_that_nothing_was_wrong_with() -> None:
    guard = GuardConfig(max_drop=0.1, max_kl=0.5, action="restore")
    made = found(guard, [0.2, 0.5, 0.5, 0.7, 0.3, 0.6], kl_per_token=[0, 0.1, 0.2, 0.6, 0.2, 0.3])
    # generation 30 is better, but too far from the base model; of 10 and 20, the earlier one
    assert [(event.generation, event.to) for event in made] == [(30, 10), (40, 10)]
    assert made[0].reason == "KL divergence of 0.6 per token"
    assert made[1].reason == "accuracy fell from 0.5 to 0.3"


def test_patience_counts_evaluations_since_the_best() -> None:
    guard = GuardConfig(patience=2)
    assert found(guard, [0.2, 0.5, 0.4]) == []
    assert found(guard, [0.2, 0.5, 0.4, 0.6, 0.6]) == []
    made = found(guard, [0.2, 0.5, 0.4, 0.5, 0.9])
    expected = Event(generation=30, action="stop", reason="no better accuracy than at generation 10 in 2 evaluations")
    assert made == [expected]


def test_the_reward_can_be_what_counts() -> None:
    guard = GuardConfig(patience=1, measure="reward_mean")
    rows = results([0.5, 0.5], reward_mean=[-700.0, -20.0])
    assert events(guard, rows, {}) == []
    assert events(GuardConfig(patience=1), rows, {})[0].generation == 10


def test_a_retention_suite_is_compared_with_the_base_model() -> None:
    guard = GuardConfig(max_retention_drop=0.05, action="shrink")
    kept, lost = results([0.8, 0.76, 0.9]), results([0.8, 0.9, 0.7])
    made = events(guard, results([0.1, 0.2, 0.3]), {"kept": kept, "lost": lost})
    assert [(event.generation, event.reason) for event in made] == [(20, "accuracy of lost fell from 0.8 to 0.7")]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"guard": {"max_kl": 1.0}, "eval": {"every": 1}}, "guard.max_kl: the KL divergence is only estimated with"),
        ({"guard": {"max_retention_drop": 0.1}, "eval": {"every": 1}}, "guard.max_retention_drop: name the suites in"),
        ({"guard": {"patience": 3}}, "guard: it looks at evaluations, so eval.every must be set"),
        ({"eval": {"retention": ["mmlu"]}}, "eval.retention: mmlu is none of eval.suites"),
    ],
)
def test_what_has_nothing_to_watch_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(LEAST | sections)
