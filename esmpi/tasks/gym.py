"""The procedural data sets of reasoning-gym (arXiv 2505.24760), as `gym:<name>`: gym:chain_sum, gym:maze, ...

A problem is made anew from its seed when it is scored, so an example is small and nothing of it is lost in JSON.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from esmpi.data.problem import Example, Prompt
from esmpi.errors import UserError, nearest
from esmpi.tasks.answers import last_tagged
from esmpi.tasks.base import Score, Task, load_extra
from esmpi.tasks.chat import ChatTaskConfig, chat
from esmpi.tasks.countdown import answer_is_right, expression_answer

if TYPE_CHECKING:
    import numpy as np

PREFIX = "gym:"

INSTRUCTION = "Think first. Then write just the answer between <answer> and </answer>."

MAX_LENGTH = 10_000
"""Characters of an answer; a longer one is wrong."""

_COMPARED = {"binary_matrix", "game_of_life_halting", "n_queens", "spiral_matrix", "string_insertion"}
"""Data sets whose answers are compared with the right ones. reasoning-gym executes them, with Python's eval; and for
game_of_life_halting it takes any text but "true" for "False"."""
_ARITHMETIC = {"countdown", "puzzle24"}
"""Data sets whose answers our own evaluator reads. reasoning-gym executes them, with sympy's parse_expr."""
_REFUSED = {
    "composite": "it may hold data sets that cannot",
    **dict.fromkeys(
        ("intermediate_integration", "polynomial_multiplication", "simple_integration"),
        "reasoning-gym would execute the model's text to score it",
    ),
    **dict.fromkeys(
        ("codeio", "isomorphic_strings", "knight_swap", "list_functions", "ransom_note", "word_ladder"),
        "reasoning-gym makes other problems or answers of the same seed in each process",
    ),
}
_SIZED = {"acre", "gsm_symbolic"}
"""Data sets that draw something for each of their problems when they are made: for them one is made for each seed."""
_NUM_SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class GymConfig(ChatTaskConfig):
    """Keys of all the data sets."""

    params: dict[str, Any] = field(default_factory=dict)
    """The data set's own settings, such as {min_terms: 2, max_terms: 4}."""


class Gym(Task):
    """Examples have `seed`, and the `question` and `answer` that the data set makes of it."""

    name: ClassVar[str] = f"{PREFIX}<name>"
    config_type: ClassVar[type[GymConfig]] = GymConfig
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 1024, "temperature": 0.0}

    def __init__(self, config: GymConfig):
        self.config = config
        self._library = load_extra("reasoning_gym", "gym")
        self._dataset = config.name.removeprefix(PREFIX)
        names = {name for name in self._library.factory.DATASETS if name not in _REFUSED}
        if self._dataset in _REFUSED:
            raise UserError(f"task.name: {config.name} cannot be used: {_REFUSED[self._dataset]}")
        if self._dataset not in names:
            raise UserError(f"task.name: no data set {config.name}{nearest(config.name, map(PREFIX.__add__, names))}")
        for key in ("seed", "size"):
            if key in config.params:
                raise UserError(f"task.params: {key} is set by esmpi: see run.seed, data.num_train and data.num_eval")
        self._make = lru_cache(maxsize=64)(self._create)
        self._entry = lru_cache(maxsize=4096)(self._find)
        try:
            self._entry(0)
        except (TypeError, ValueError, AssertionError, KeyError) as error:  # all that their checks raise
            raise UserError(f"task.params: {config.name} does not take {config.params}: {error}") from None

    @classmethod
    def goes_by(cls, name: str) -> bool:
        return name.startswith(PREFIX)

    def prompt(self, example: Example) -> Prompt:
        return chat(self.config.chat_format, f"{example['question']}\n\n{INSTRUCTION}\n")

    def score(self, completion: str, example: Example) -> Score:
        answer = last_tagged(completion)
        if not answer or len(answer) > MAX_LENGTH:
            return Score(reward=0.0, correct=False, parsed=False)
        dataset, entry = self._entry(example["seed"])
        metadata = entry["metadata"]
        if self._dataset in _COMPARED:
            reward = float(answer in metadata.get("valid_answers", [entry["answer"].strip()]))
        elif self._dataset in _ARITHMETIC:
            reward = float(answer_is_right(answer, metadata["numbers"], str(metadata.get("target", 24))))
        else:
            try:
                reward = float(dataset.score_answer(answer, entry))
            except Exception:  # some of their parsers raise any kind of exception for text that is no answer
                return Score(reward=0.0, correct=False, parsed=False)
        return Score(reward=reward, correct=math.isclose(reward, 1.0))

    def answer(self, completion: str, example: Example) -> str | None:
        """Return the text of the answer; an expression as in countdown."""
        answer = last_tagged(completion)
        if not answer or len(answer) > MAX_LENGTH:
            return None
        return expression_answer(answer) if self._dataset in _ARITHMETIC else answer

    def check(self, example: Example) -> None:
        seed = example.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < _NUM_SEEDS:
            raise ValueError(f"`seed` must be an integer from 0 to 2^31 - 1, got {reprlib.repr(seed)}")
        _, entry = self._entry(seed)
        if example.get("question") != entry["question"]:
            raise ValueError(
                f"`question` is not what {self.config.name} makes of `seed` {seed}: another version of reasoning-gym, "
                f"or other task.params"
            )

    def key(self, example: Example) -> Hashable:
        return example["question"]

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        def draw() -> Example:
            seed = int(rng.integers(_NUM_SEEDS))
            _, entry = self._entry(seed)
            return {"seed": seed, "question": entry["question"], "answer": entry["answer"]}

        return draw

    def _find(self, seed: int) -> tuple[Any, dict[str, Any]]:
        """Return the problem that a seed makes, with its data set. (Making a data set may take a second.)"""
        dataset, index = (self._make(seed, 1), 0) if self._dataset in _SIZED else (self._make(0, _NUM_SEEDS), seed)
        return dataset, dataset[index]

    def _create(self, seed: int, size: int) -> Any:
        return self._library.create_dataset(self._dataset, seed=seed, size=size, **self.config.params)
