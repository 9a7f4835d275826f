"""Countdown: combine given numbers, each once, with + - * / to reach a target.

Prompt, reward and accuracy are those of "Evolution Strategies at Scale" (arXiv 2509.24372).
The answer is evaluated by `evaluate`, exactly and in bounded time: model text is never executed.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from esmpi.config.sections import TaskConfig
from esmpi.data.problem import Example
from esmpi.tasks.answers import last_tagged
from esmpi.tasks.base import Score, Task

if TYPE_CHECKING:
    import numpy as np

PROMPT = (
    "You are a helpful assistant. You first think about the reasoning process in your mind and then "
    "provide the user with the answer.Using the numbers [{numbers}], create an equation that equals "
    "{target}. You can use basic arithmetic operations (+, -, *, /) and each number can only be used "
    "once. Show your work in <think> </think> tags. And return the final answer in <answer> </answer> "
    "tags, for example <answer> (1 + 2) / 3 </answer>.Let me solve this step by step.\n<think>"
)

MAX_LENGTH = 1000
"""Characters of an expression; a longer one is wrong."""
MAX_DEPTH = 50
"""Brackets and signs inside one another; a deeper expression is wrong."""
MAX_DRAWS = 100_000
"""Draws of the generator for one problem before it gives up."""
TOLERANCE = Fraction(1, 100_000)

_TOKEN = re.compile(r"[0-9]+|[-+*/()]")
_ALLOWED = re.compile(r"[-+*/()0-9 \t]+")
_OPERATORS = "+-*/"


@dataclass(frozen=True, kw_only=True)
class CountdownConfig(TaskConfig):
    """Countdown's own keys: they shape the problems that the generator makes."""

    name: str = "countdown"
    num_numbers: tuple[int, ...] = (3, 4)
    """How many numbers a problem has: one of these, at random."""
    number_range: tuple[int, int] = (1, 98)
    """Smallest and largest number."""
    target_range: tuple[int, int] = (10, 98)
    """Smallest and largest target (always an integer)."""
    operators: str = _OPERATORS
    """Operators that the hidden solution may use; each is at least possible."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.num_numbers or min(self.num_numbers) < 2 or max(self.num_numbers) > 6:
            raise ValueError("num_numbers: counts between 2 and 6 are possible")
        for name in ("number_range", "target_range"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name}: must be 0 <= smallest <= largest, got [{low}, {high}]")
        if not self.operators or set(self.operators) - set(_OPERATORS):
            raise ValueError(f"operators: must be some of {_OPERATORS!r}, got {self.operators!r}")


def evaluate(expression: str) -> Fraction:
    """Return the exact value of an arithmetic expression.

    Integers, + - * /, signs and round brackets, with the usual precedence. Neither `**` nor `//`
    exists here; a number must not start with a superfluous zero (as in Python).

    Raises
    ------
    ValueError
        If the text is no such expression, divides by zero, or is longer than `MAX_LENGTH` or deeper
        than `MAX_DEPTH`.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError("expression is too long")
    if not _ALLOWED.fullmatch(expression):
        raise ValueError("expression is empty or has a character that is not allowed")
    tokens = _TOKEN.findall(expression)
    value, position = _sum(tokens, 0, 0)
    if position != len(tokens):
        raise ValueError(f"unexpected {tokens[position]!r}")
    return value


def _sum(tokens: list[str], position: int, depth: int) -> tuple[Fraction, int]:
    value, position = _product(tokens, position, depth)
    while position < len(tokens) and tokens[position] in "+-":
        operator = tokens[position]
        right, position = _product(tokens, position + 1, depth)
        value = value + right if operator == "+" else value - right
    return value, position


def _product(tokens: list[str], position: int, depth: int) -> tuple[Fraction, int]:
    value, position = _factor(tokens, position, depth)
    while position < len(tokens) and tokens[position] in "*/":
        operator = tokens[position]
        right, position = _factor(tokens, position + 1, depth)
        if operator == "*":
            value = value * right
        elif right == 0:
            raise ValueError("division by zero")
        else:
            value = value / right
    return value, position


def _factor(tokens: list[str], position: int, depth: int) -> tuple[Fraction, int]:
    if depth > MAX_DEPTH:
        raise ValueError("expression is too deep")
    if position >= len(tokens):
        raise ValueError("expression ends too early")
    token = tokens[position]
    if token in "+-":
        value, position = _factor(tokens, position + 1, depth + 1)
        return (value if token == "+" else -value), position
    if token == "(":
        value, position = _sum(tokens, position + 1, depth + 1)
        if position >= len(tokens) or tokens[position] != ")":
            raise ValueError("bracket is not closed")
        return value, position + 1
    if not token.isdigit():
        raise ValueError(f"unexpected {token!r}")
    if token[0] == "0" and len(token) > 1:
        raise ValueError("number starts with a zero")
    return Fraction(int(token)), position + 1


def answer_is_right(answer: str, numbers: list[int], target: str) -> bool:
    """Whether `answer` uses exactly `numbers`, each once, and comes within 1e-5 of `target`."""
    # The numbers are compared first: what is evaluated then is bounded by their product.
    if len(answer) > MAX_LENGTH or not _ALLOWED.fullmatch(answer):
        return False
    if sorted(re.findall("[0-9]+", answer)) != sorted(map(str, numbers)):
        return False
    try:
        value = evaluate(answer)
    except ValueError:
        return False
    return abs(value - Fraction(target)) < TOLERANCE


def expression_answer(text: str | None) -> str | None:
    """Return an expression so that equal ones, such as "1 + 2" and "2+1", are equal: its value and its numbers.

    A text that has no value is returned without blanks; None stays None.
    """
    if text is None:
        return None
    try:
        value = evaluate(text)
    except ValueError:
        return "".join(text.split())
    return f"{value} = {' '.join(sorted(re.findall('[0-9]+', text)))}"


def format_score(response: str) -> float:
    """Score the shape of `response` ("<think>" + completion): 1 if all of it is a thought and an answer.

    Else 0.1 for a think pair and 0.5 for an answer pair, added.
    """
    think = response.find("</think>", len("<think>"))
    body = response.removesuffix("\n")
    if body.endswith("</answer>"):
        joint = body.find("</think>\n<answer>", len("<think>"))
        if 0 <= joint <= len(body) - len("</think>\n<answer></answer>"):
            return 1.0
    return 0.1 * (think >= 0) + 0.5 * (last_tagged(response) is not None)


class Countdown(Task):
    """Examples have `numbers` (list of int) and `target` (int, or decimal text such as "27.4")."""

    name: ClassVar[str] = "countdown"
    config_type: ClassVar[type[TaskConfig]] = CountdownConfig

    def __init__(self, config: CountdownConfig):
        self.config = config

    def prompt(self, example: Example) -> str:
        numbers = " ".join(str(number) for number in example["numbers"])
        return PROMPT.format(numbers=numbers, target=example["target"])

    def score(self, completion: str, example: Example) -> Score:
        response = "<think>" + completion
        answer = last_tagged(response)
        correct = answer is not None and answer_is_right(answer, example["numbers"], str(example["target"]))
        shape = format_score(response)
        return Score(
            reward=0.1 * shape + correct, correct=correct, parsed=answer is not None, figures={"format": shape}
        )

    def answer(self, completion: str, example: Example) -> str | None:
        """Return the value of the answer and the numbers that it uses; its text if it is no expression."""
        return expression_answer(last_tagged("<think>" + completion))

    def check(self, example: Example) -> None:
        numbers = example.get("numbers")
        if not isinstance(numbers, list) or not numbers:
            raise ValueError(f"`numbers` must be a list of integers, got {numbers!r}")
        for number in numbers:
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise ValueError(f"`numbers` must be integers from 0 on, got {number!r}")
        target = example.get("target")
        # bounded, and no exponent: Fraction would fill the memory with 1e999999999
        if not re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", str(target)):
            raise ValueError(f'`target` must be a number such as 98 or "27.4", got {reprlib.repr(target)}')

    def key(self, example: Example) -> Hashable:
        return tuple(sorted(example["numbers"])), Fraction(str(example["target"]))

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        def draw() -> Example:
            for _ in range(MAX_DRAWS):
                example = self._draw(rng)
                if example is not None:
                    return example
            raise ValueError(
                f"task countdown found no solvable problem in {MAX_DRAWS} draws: widen task.target_range "
                f"or task.number_range"
            )

        return draw

    def _draw(self, rng: np.random.Generator) -> Example | None:
        """Draw numbers and join them at random into one expression; None if its value will not do."""
        low, high = self.config.number_range
        numbers = rng.integers(low, high, size=rng.choice(self.config.num_numbers), endpoint=True).tolist()
        parts = [(str(number), Fraction(number)) for number in numbers]
        while len(parts) > 1:
            i, j = rng.choice(len(parts), size=2, replace=False).tolist()
            operator = self.config.operators[rng.integers(len(self.config.operators))]
            (left, a), (right, b) = parts[i], parts[j]
            if operator == "/" and b == 0:
                return None
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[operator]
            joined = f"{left} {operator} {right}"
            parts = [part for k, part in enumerate(parts) if k not in (i, j)]
            parts.append((f"({joined})" if parts else joined, value))
        solution, value = parts[0]
        low, high = self.config.target_range
        if value.denominator != 1 or not low <= value <= high:
            return None
        return {"numbers": numbers, "target": int(value), "solution": solution}
