"""What the guard does, by the evaluations so far."""

from collections.abc import Mapping
from typing import Any

import pytest

from esmpi.config.reader import ConfigError, parse_config
from esmpi.config.search import GuardConfig
from esmpi.es.guard import Event, Results, alpha_factor, decide

LEAST = {"run": {"name": "x"}, "model": {"path": "m"}, "es": {"generations": 3}, "task": {"name": "countdown"}}


def results(accuracies: list[float], every: int = 10, **figures: list[float]) -> dict[int, dict[str, float]]:
    columns: Mapping[str, list[float]] = {"accuracy": accuracies, "reward_mean": accuracies, **figures}
    return {every * i: {name: column[i] for name, column in columns.items()} for i in range(len(accuracies))}


def events(guard: GuardConfig, held_out: Results, retention: Mapping[str, Results]) -> list[Event]:
    """Return what the guard does in a run that has these evaluations, one after another, until it stops."""
    made: list[Event] = []
    for generation in held_out:
        event = decide(guard, held_out, retention, made, generation)
        if event is not None:
            made.append(event)
            if event.action == "stop":
                break
    return made


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


def test_without_a_sound_generation_theta_stays() -> None:
    guard = GuardConfig(max_kl=0.5, action="restore")
    made = found(guard, [0.2, 0.3], kl_per_token=[0.6, 0.7])
    assert [(event.action, event.to) for event in made] == [("shrink", None), ("shrink", None)]
    assert made[0].reason == "KL divergence of 0.6 per token; nothing was right before, so theta stays"


def test_after_a_smaller_alpha_only_what_becomes_worse_counts() -> None:
    guard = GuardConfig(max_kl=0.5, action="shrink")
    made = found(guard, [0.2] * 5, kl_per_token=[0, 0.6, 0.6, 0.55, 0.7])
    assert [event.generation for event in made] == [10, 40]
    guard = GuardConfig(max_retention_drop=0.05, action="shrink")
    lost = results([0.8, 0.7, 0.7, 0.72, 0.6])
    assert [event.generation for event in events(guard, results([0.1] * 5), {"lost": lost})] == [10, 40]


def test_what_was_done_before_stays_whatever_is_evaluated_later() -> None:
    guard = GuardConfig(max_drop=0.1, action="restore")
    rows = results([0.2, 0.5, 0.3])
    past = [decide(guard, rows, {}, [], 20)]
    assert past == [Event(generation=20, action="restore", reason="accuracy fell from 0.5 to 0.3", to=10)]
    later = rows | {15: {"accuracy": 0.9, "reward_mean": 0.9}, 30: {"accuracy": 0.45, "reward_mean": 0.45}}
    assert decide(guard, later, {}, [event for event in past if event], 30) is None


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
        ({"guard": {"action": "shrink"}, "eval": {"every": 1}}, "guard.action: shrink needs a limit"),
        ({"guard": {"factor": 0.1, "patience": 1}, "eval": {"every": 1}}, "guard.factor: has no effect on"),
        ({"guard": {"patience": 3}}, "guard: it looks at evaluations, so eval.every must be set"),
        ({"eval": {"retention": ["mmlu"]}}, "eval.retention: mmlu is none of eval.suites"),
    ],
)
def test_what_has_nothing_to_watch_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(LEAST | sections)
