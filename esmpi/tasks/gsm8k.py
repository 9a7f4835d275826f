"""Word problems whose answer is a number, in the manner of GSM8K (arXiv 2110.14168)."""

import reprlib
from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

from esmpi.data.problem import Example, Prompt
from esmpi.tasks.answers import MAX_TAGGED_TEXT, last_boxed, last_number
from esmpi.tasks.base import Score, Task
from esmpi.tasks.chat import ChatTaskConfig, chat

INSTRUCTION = 'Think step by step. Then give the answer on a last line of its own: "####" and the number.'
_MARK = "####"


@dataclass(frozen=True, kw_only=True)
class Gsm8kConfig(ChatTaskConfig):
    """gsm8k's own keys."""

    name: str = "gsm8k"
    answer: Literal["marked", "last_number"] = "marked"
    r"""What counts as the answer. marked: a number after the last "####" or in the last \boxed{}. last_number: any."""


class Gsm8k(Task):
    """Examples have `question` and `answer`: a number, or a text in which it stands after "####"."""

    name: ClassVar[str] = "gsm8k"
    config_type: ClassVar[type[Gsm8kConfig]] = Gsm8kConfig
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 512, "temperature": 0.0}

    def __init__(self, config: Gsm8kConfig):
        self.config = config

    def prompt(self, example: Example) -> Prompt:
        return chat(self.config.chat_format, f"{example['question']}\n\n{INSTRUCTION}\n")

    def score(self, completion: str, example: Example) -> Score:
        answer = self._number(completion)
        correct = answer is not None and answer == _gold(example)
        return Score(reward=float(correct), correct=correct, parsed=answer is not None)

    def answer(self, completion: str, example: Example) -> str | None:
        """Return the number, so that 0.50 and 1/2 are equal."""
        number = self._number(completion)
        return None if number is None else str(number)

    def _number(self, completion: str) -> Fraction | None:
        return _marked(completion) if self.config.answer == "marked" else last_number(completion)

    def check(self, example: Example) -> None:
        question = example.get("question")
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"`question` must be text, got {reprlib.repr(question)}")
        if _gold(example) is None:
            raise ValueError(
                f"`answer` must be a number, or text with one after {_MARK}, got {reprlib.repr(example.get('answer'))}"
            )

    def key(self, example: Example) -> Hashable:
        return " ".join(example["question"].split())


def _gold(example: Example) -> Fraction | None:
    text = str(example.get("answer"))
    return last_number(text.rpartition(_MARK)[2])


def _marked(completion: str) -> Fraction | None:
    """Return the number on the line of the last mark, else in the last box, None without either."""
    _, mark, rest = completion.rpartition(_MARK)
    if mark:
        lines = rest.lstrip()[:MAX_TAGGED_TEXT].rstrip().splitlines()
        return last_number(lines[0]) if lines else None
    boxed = last_boxed(completion)
    return None if boxed is None else last_number(boxed)
