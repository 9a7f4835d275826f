"""Countdown with a calculator: where the model writes an expression and `=`, the value is written for it.

It needs `sampling.stop: ["="]` and `sampling.include_stop: true`, so that a turn ends there. Problems, prompt and
reward are those of the task `countdown`, whose keys for problems are the parameters here.
"""

from __future__ import annotations

from typing import Any

from esmpi.data.problem import Example
from esmpi.tasks.countdown import MAX_LENGTH, Countdown, CountdownConfig, evaluate
from esmpi.tasks.environments._of_task import OfTask, keys_of
from esmpi.tasks.environments.base import Answer

_OF_EXPRESSIONS = "-+*/()0123456789 \t"


class CountdownCalculator(OfTask):
    """Examples are those of `countdown`."""

    def __init__(self, **params: Any):
        self.task: Countdown = Countdown(CountdownConfig(name="countdown", **keys_of(params)))

    def reset(self, example: Example, seed: int) -> str:
        self._example, self._said, self._uses = example, "", 0
        return self.task.prompt(example)

    def step(self, completion: str) -> Answer:
        self._said += completion
        if not completion.endswith("="):
            return self.finish()
        value = _value_before(self._said.removesuffix("="))
        self._said += value
        self._uses += bool(value)
        return {"append": value}

    def finish(self) -> dict[str, Any]:
        score = self.task.score(self._said, self._example)
        return {
            "reward": score.reward,
            "correct": score.correct,
            "parsed": score.parsed,
            "calculated": self._uses,
            **score.figures,
        }


def _value_before(text: str) -> str:
    """Return the value of the expression at the end of a text; empty if there is none, or if it has no value."""
    end = text[-MAX_LENGTH:]
    try:
        return str(evaluate(end[len(end.rstrip(_OF_EXPRESSIONS)) :]))
    except ValueError:
        return ""
