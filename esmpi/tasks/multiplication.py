"""Multiplication of two numbers of n digits. The last number of the completion is the answer.

For new prompts in each generation let `data.num_train` be `data.batch_size` times `es.generations`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from esmpi.config.keys import key
from esmpi.data.problem import Example, Prompt
from esmpi.tasks.answers import last_number
from esmpi.tasks.base import Score, Task
from esmpi.tasks.chat import ChatTaskConfig, chat

if TYPE_CHECKING:
    import numpy as np

PROMPT = "Compute {a} * {b}. Work it out step by step, and end with the product as one number."
_MAX_DIGITS = 18
"""Digits of a factor, so that it is an int64."""


@dataclass(frozen=True, kw_only=True)
class MultiplicationConfig(ChatTaskConfig):
    """Multiplication's own keys."""

    name: str = "multiplication"
    digits: int = key(3, minimum=1, maximum=_MAX_DIGITS)
    """Digits of both factors of the generated problems."""
    partial_credit: bool = False
    """Whether a wrong product is worth half the share of its last digits that are right, not 0."""


class Multiplication(Task):
    """Examples have `a` and `b` (int, from 0 on)."""

    name: ClassVar[str] = "multiplication"
    config_type: ClassVar[type[MultiplicationConfig]] = MultiplicationConfig
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 512, "temperature": 0.0}

    def __init__(self, config: MultiplicationConfig):
        self.config = config

    def prompt(self, example: Example) -> Prompt:
        return chat(self.config.chat_format, PROMPT.format(a=example["a"], b=example["b"]))

    def score(self, completion: str, example: Example) -> Score:
        product, answer = example["a"] * example["b"], last_number(completion)
        correct = answer == product
        right = 0.0
        if answer is not None and answer.denominator == 1 and answer >= 0:
            right = _digits_right(str(product), str(answer))
        reward = 1.0 if correct else right / 2 * self.config.partial_credit
        return Score(reward=reward, correct=correct, parsed=answer is not None, figures={"digits_right": right})

    def answer(self, completion: str, example: Example) -> str | None:
        """Return the last number."""
        number = last_number(completion)
        return None if number is None else str(number)

    def check(self, example: Example) -> None:
        for name in ("a", "b"):
            factor = example.get(name)
            if not isinstance(factor, int) or isinstance(factor, bool) or not 0 <= factor < 10**_MAX_DIGITS:
                wanted = f"an integer of 1 to {_MAX_DIGITS} digits"
                raise ValueError(f"`{name}` must be {wanted}, got {reprlib.repr(factor)}")

    def key(self, example: Example) -> Hashable:
        return min(example["a"], example["b"]), max(example["a"], example["b"])

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        low, high = 10 ** (self.config.digits - 1), 10**self.config.digits - 1

        def draw() -> Example:
            a, b = rng.integers(low, high, size=2, endpoint=True).tolist()
            return {"a": a, "b": b}

        return draw


def _digits_right(product: str, answer: str) -> float:
    """Return the share of places, counted from the last digit, in which two numbers agree."""
    right = sum(one == other for one, other in zip(reversed(product), reversed(answer), strict=False))
    return right / max(len(product), len(answer))
