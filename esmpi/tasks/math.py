r"""Mathematics: the last \boxed{} of the completion is compared with the gold answers by math-verify.

The system text is that of "Evolution Strategies at Scale" (arXiv 2509.24372). math-verify reads LaTeX into expressions
of sympy and executes no text here. It has no time limit of its own here either (its alarm works in a main thread
only): what is sure to be expensive is refused beforehand, the rest is up to a limit around the whole reward.
"""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from esmpi.data.problem import Example, Prompt
from esmpi.tasks._answer_forms import by_text, differ_in_size, rewritten, same_in_other_form
from esmpi.tasks.answers import last_boxed
from esmpi.tasks.base import Score, Task, load_extra
from esmpi.tasks.chat import ChatFormat, ChatTaskConfig, chat

SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."

MAX_LENGTH = 500
"""Characters of an answer; a longer one is wrong. (The longest gold answer of the usual suites has 204.)"""
MAX_DEPTH = 10
"""Brackets inside one another in an answer; a deeper one is wrong: the time to read it grows exponentially.
(The usual suites' gold answers have 3 at most.)"""
MAX_EXPONENT = 10_000
"""Exponents, and what factorials and binomials are taken of; a larger number is not computed."""
MAX_SUM_EXPONENT = 10
"""Exponents of what contains symbols and is more than one symbol: such a power may be multiplied out."""
MAX_DIGITS = 10_000
"""Digits of a power of numbers; a larger one is not computed."""

_NEVER_COMPUTED = ("Sum", "Product", "Integral", "Derivative", "Limit")


@dataclass(frozen=True, kw_only=True)
class MathConfig(ChatTaskConfig):
    """Math's own keys."""

    name: str = "math"
    chat_format: ChatFormat = "chatml"
    """Form of the prompt: none (raw text), model (its own chat template), chatml (Qwen), llama3, gemma."""


class Math(Task):
    """Examples have `problem` (text) and `answer` (LaTeX text or a number, or a list of them: any of them counts)."""

    name: ClassVar[str] = "math"
    config_type: ClassVar[type[MathConfig]] = MathConfig
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 3000, "temperature": 0.0}

    def __init__(self, config: MathConfig):
        self.config = config
        _math_verify()

    def prompt(self, example: Example) -> Prompt:
        return chat(self.config.chat_format, example["problem"], SYSTEM)

    def score(self, completion: str, example: Example) -> Score:
        answer = last_boxed(completion)
        if not answer:
            return Score(reward=0.0, correct=False, parsed=False)
        correct = any(same_answer(gold, answer) for gold in _golds(example))
        return Score(reward=float(correct), correct=correct)

    def answer(self, completion: str, example: Example) -> str | None:
        r"""Return the last box in one form, so that \frac{1}{2} and 0.5 are equal."""
        answer = last_boxed(completion)
        return canonical(answer) if answer else None

    def check(self, example: Example) -> None:
        problem = example.get("problem")
        if not isinstance(problem, str) or not problem.strip():
            raise ValueError(f"`problem` must be text, got {reprlib.repr(problem)}")
        answer = example.get("answer")
        golds = answer if isinstance(answer, list) else [answer]
        for gold in golds:
            if isinstance(gold, bool) or not isinstance(gold, str | int | float) or not str(gold).strip(" $"):
                raise ValueError(f"`answer` must be text or a number, or a list of them, got {reprlib.repr(answer)}")
        if not golds:
            raise ValueError("`answer` must not be an empty list")

    def key(self, example: Example) -> Hashable:
        return " ".join(example["problem"].split())


def same_answer(gold: str, answer: str) -> bool:
    """Whether two LaTeX texts are the same answer: to the letter, or as math-verify reads them."""
    gold, answer = _bare(gold), _bare(answer)
    if gold == answer:
        return True
    if len(answer) > MAX_LENGTH or _depth(answer) > MAX_DEPTH:
        return False
    if (said := by_text(gold, answer)) is not None:
        return said
    golds, answers = _read(gold), _read(answer)
    if not golds or not answers or any(_is_expensive(expression) for expression in answers):
        return False
    if _math_verify().verify(list(golds), list(answers), timeout_seconds=None):
        return "%" in gold + answer or not differ_in_size(golds, answers)
    return same_in_other_form(golds, answers)


def canonical(answer: str) -> str:
    """Return an answer in LaTeX as a text that most equal answers share, and no others.

    What cannot be read, or would be expensive to compute, stays as it is written.
    """
    text = _bare(answer)
    if len(text) > MAX_LENGTH or _depth(text) > MAX_DEPTH:
        return text
    expressions = _read(text)
    if not expressions or any(_is_expensive(expression) for expression in expressions):
        return text
    try:
        # a percentage stays one: math-verify takes 10 % for 10, but 0.1 for another number
        return " or ".join(str(each) if "%" in text else _computed(each) for each in expressions)
    except Exception:  # sympy raises exceptions of any kind for what is well formed and makes no sense
        return text


def _computed(expression: Any) -> str:
    """Return an expression as text, with numbers as exact fractions."""
    from sympy import Expr, nsimplify

    return str(nsimplify(expression.doit(), rational=True) if isinstance(expression, Expr) else expression)


def _golds(example: Example) -> list[str]:
    answer = example["answer"]
    return [str(gold) for gold in (answer if isinstance(answer, list) else [answer])]


def _bare(text: str) -> str:
    """Return the text without the dollar signs around it, a full stop, and blanks that mean nothing.

    A number such as 4.5e33, as in Minerva's gold answers, becomes LaTeX: there e is Euler's number.
    """
    text = " ".join(text.split()).strip("$ ")
    if text.endswith(".") and not text.endswith("\\right."):
        text = text[:-1].rstrip("$ ")
    number = re.fullmatch(r"(-?[0-9.]+)[eE]([-+]?[0-9]+)", text)
    return rf"{number[1]} \times 10^{{{number[2].lstrip('+')}}}" if number else rewritten(text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[\[({\])}]", text):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    return deepest + text.count("|") // 2  # bars are brackets whose pairs only the parser knows


@lru_cache(maxsize=1024)
def _read(text: str) -> tuple[Any, ...]:
    """Return the expressions that math-verify reads in the text; none if it cannot."""
    library = _math_verify()
    # LaTeX alone: for plain expressions math-verify would go through sympy's parse_expr, which executes text
    config = library.LatexExtractionConfig(boxed_match_priority=0)
    boxed = rf"\boxed{{{text}}}"
    return tuple(library.parse(boxed, [config], fallback_mode="no_fallback", parsing_timeout=None))


def _is_expensive(expression: Any) -> bool:
    """Whether computing the expression may take for ever. From the leaves up: what is evaluated here is harmless."""
    from sympy import MatrixBase, Pow, binomial, factorial, log, postorder_traversal

    if isinstance(expression, MatrixBase):
        return any(_is_expensive(entry) for entry in expression.flat())
    for node in postorder_traversal(expression):
        if type(node).__name__ in _NEVER_COMPUTED:
            return True
        if isinstance(node, (Pow, factorial, binomial)):
            arguments = node.args[1:] if isinstance(node, Pow) else node.args
            is_sum = isinstance(node, Pow) and node.base.free_symbols and not node.base.is_Symbol
            limit = MAX_SUM_EXPONENT if is_sum else MAX_EXPONENT
            if not all(_is_at_most(argument, limit) for argument in arguments):
                return True
        if isinstance(node, Pow) and not node.free_symbols:
            base = abs(node.base.evalf())
            if base != 0 and not _is_at_most(node.exp * log(base), MAX_DIGITS * log(10)):
                return True
    return False


def _is_at_most(number: Any, limit: Any) -> bool:
    """Whether the absolute value of an expression is at most `limit`; an expression with symbols always is."""
    if number.free_symbols:
        return True
    size = abs(number.evalf())
    return bool(size.is_Number and size.is_finite and size <= limit)


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    library = load_extra("math_verify", "math")
    # it warns that its own time limits are off
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return library
