"""Conciseness: the shorter the reply, the better, down to the length of the shortest right answer.

Reward and problems are those of "Evolution Strategies at Scale" (arXiv 2509.24372). The reward looks at nothing but
the length: `correct`, and so accuracy, says whether the answer is there at all. So the longest completion is the
worst, not an empty one.
"""

import re
import reprlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from esmpi.data.problem import Example, Part, Prompt
from esmpi.tasks.answers import MAX_TAGGED_TEXT
from esmpi.tasks.base import Score, Task
from esmpi.tasks.chat import ChatTaskConfig, chat

_WORST = 2000
"""Characters too many at which the scaled reward is 0."""

_PROBLEMS: dict[Part, tuple[tuple[str, str], ...]] = {
    "train": (
        ("Solve: 3 + 5 =", "8"),
        ("If all birds can fly and penguins are birds, can penguins fly?", "No"),
    ),
    "eval": (
        ("What is the capital of France?", "Paris"),
        ("Calculate: 12 * 7 =", "84"),
        ('Is the statement "All cats are mammals" true or false?', "True"),
        ("Which number comes next? 2, 4, 6, 8, ?", "10"),
        ('How do you say "Hello" in Spanish?', "Hola"),
        ("What is 15% of 200?", "30"),
        ("Name one primary color.", "Red"),
        ("How many days are in a week?", "7"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class ConcisenessConfig(ChatTaskConfig):
    """Conciseness has no keys but the form of the prompt."""

    name: str = "conciseness"


class Conciseness(Task):
    """Examples have `question` and `answer`, the shortest right one (text or a number)."""

    name: ClassVar[str] = "conciseness"
    config_type: ClassVar[type[ConcisenessConfig]] = ConcisenessConfig
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 100, "temperature": 0.0}

    def __init__(self, config: ConcisenessConfig):
        self.config = config

    def prompt(self, example: Example) -> Prompt:
        return chat(self.config.chat_format, example["question"])

    def score(self, completion: str, example: Example) -> Score:
        answer = str(example["answer"])
        reward = -abs(len(completion) - len(answer))
        word = rf"(?<!\w){re.escape(answer)}(?!\w)"
        return Score(
            reward=float(reward),
            correct=re.search(word, completion[-MAX_TAGGED_TEXT:], re.IGNORECASE) is not None,
            parsed=bool(completion.strip()),
            figures={"scaled_reward": 1 + reward / _WORST},
        )

    def check(self, example: Example) -> None:
        question, answer = example.get("question"), example.get("answer")
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"`question` must be text, got {reprlib.repr(question)}")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
            raise ValueError(f"`answer` must be text or a number, got {reprlib.repr(answer)}")

    def key(self, example: Example) -> Hashable:
        return " ".join(example["question"].split())

    def problems(self, part: Part) -> list[Example]:
        return [{"question": question, "answer": answer} for question, answer in _PROBLEMS[part]]
