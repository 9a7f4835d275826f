"""The task that goes with `function_engine.py`: the reward is the number that the engine says."""

from typing import Any

train = [{"prompt": "f(theta) ="}]
evaluation = train


def value(completion: str, example: dict[str, Any]) -> float:
    return float(completion)
