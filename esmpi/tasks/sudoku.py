"""Sudoku of 4 x 4 or 9 x 9 cells, with exactly one solution each."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from esmpi.data.problem import Example, Prompt
from esmpi.tasks.answers import last_tagged
from esmpi.tasks.base import Score, Task
from esmpi.tasks.chat import ChatTaskConfig, chat

if TYPE_CHECKING:
    import numpy as np

PROMPT = (
    "Solve this {size}x{size} Sudoku. Fill in each 0 so that every row, every column and every {box}x{box} box holds "
    "each digit from 1 to {size} once.\n\n{grid}\n\nThink first. Then write the whole solved grid, a row a line, "
    "between <answer> and </answer>.\n"
)

MAX_LENGTH = 1000
"""Characters of an answer; a longer one is wrong."""
MAX_DRAWS = 1000
"""Grids that the generator tries for one problem before it gives up."""

_MAX_BLANKS = {4: 11, 9: 54}
"""Cells that can be blank. (A few grids allow one or more beyond; they are hard to find.)"""
_DEFAULT_BLANKS = {4: (4, 10), 9: (30, 50)}


@dataclass(frozen=True, kw_only=True)
class SudokuConfig(ChatTaskConfig):
    """Sudoku's own keys."""

    name: str = "sudoku"
    size: Literal[4, 9] = 4
    """Rows of the grid."""
    num_blanks: tuple[int, int] | None = None
    """Fewest and most cells to fill in. null: 4 to 10 of 16, or 30 to 50 of 81."""
    partial_credit: bool = False
    """Whether a wrong grid that keeps what was given is worth half the share of blank cells that are right, not 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in _MAX_BLANKS:
            raise ValueError(f"size: must be one of 4, 9; got {self.size}")
        if self.num_blanks is None:
            object.__setattr__(self, "num_blanks", _DEFAULT_BLANKS[self.size])
        low, high = self.num_blanks or (0, 0)
        if not 1 <= low <= high <= _MAX_BLANKS[self.size]:
            wanted = f"1 <= fewest <= most <= {_MAX_BLANKS[self.size]}"
            raise ValueError(f"num_blanks: must be {wanted} for size {self.size}, got [{low}, {high}]")


class Sudoku(Task):
    """Examples have `puzzle` and `solution`: all cells row by row, as text of digits, 0 for a blank in the puzzle."""

    name: ClassVar[str] = "sudoku"
    config_type: ClassVar[type[SudokuConfig]] = SudokuConfig
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 1024, "temperature": 0.0}

    def __init__(self, config: SudokuConfig):
        self.config = config

    def prompt(self, example: Example) -> Prompt:
        size, puzzle = self.config.size, example["puzzle"]
        grid = "\n".join(" ".join(puzzle[start : start + size]) for start in range(0, size * size, size))
        return chat(self.config.chat_format, PROMPT.format(size=size, box=_box(size), grid=grid))

    def score(self, completion: str, example: Example) -> Score:
        puzzle, solution = example["puzzle"], example["solution"]
        answer = _read(completion, len(puzzle))
        if answer is None:
            return Score(reward=0.0, correct=False, parsed=False, figures={"cells_right": 0.0})
        blanks = [i for i, digit in enumerate(puzzle) if digit == "0"]
        right = sum(answer[i] == solution[i] for i in blanks) / len(blanks)
        kept = all(answer[i] == digit for i, digit in enumerate(puzzle) if digit != "0")
        correct = kept and right == 1
        reward = 1.0 if correct else right / 2 * (kept and self.config.partial_credit)
        return Score(reward=reward, correct=correct, figures={"cells_right": right})

    def answer(self, completion: str, example: Example) -> str | None:
        """Return the digits of the grid."""
        return _read(completion, len(example["puzzle"]))

    def check(self, example: Example) -> None:
        size = self.config.size
        puzzle, solution = example.get("puzzle"), example.get("solution")
        for name, text, least in (("puzzle", puzzle, 0), ("solution", solution, 1)):
            if not isinstance(text, str) or not re.fullmatch(f"[{least}-{size}]{{{size * size}}}", text):
                wanted = f"{size * size} digits from {least} to {size} (task.size: {size})"
                raise ValueError(f"`{name}` must be text of {wanted}, got {reprlib.repr(text)}")
        if puzzle is None or "0" not in puzzle:
            raise ValueError("`puzzle` has no 0, so nothing is to be filled in")
        solutions = solve(puzzle, 2)
        if solutions != [solution]:
            raise ValueError(f"`solution` must be the only one of `puzzle`, which has {len(solutions)} or more")

    def key(self, example: Example) -> Hashable:
        return example["puzzle"]

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        assert self.config.num_blanks is not None  # the config fills it in
        low, high = self.config.num_blanks
        size = self.config.size

        def draw() -> Example:
            num_blanks = int(rng.integers(low, high, endpoint=True))
            for _ in range(MAX_DRAWS):
                solution = solve("0" * size**2, 1, rng)[0]
                puzzle = _blank(solution, num_blanks, rng)
                if puzzle is not None:
                    return {"puzzle": puzzle, "solution": solution}
            raise ValueError(f"task sudoku found no grid with {num_blanks} blanks: lower task.num_blanks")

        return draw


def solve(puzzle: str, limit: int, rng: np.random.Generator | None = None) -> list[str]:
    """Return the solutions of a puzzle, at most `limit` of them; with `rng` they come in random order."""
    size = 4 if len(puzzle) == 16 else 9
    digits = [int(digit) for digit in puzzle]
    # bit d of a unit is set while digit d is missing in it
    free = [(2 << size) - 2] * (3 * size)
    for cell, digit in enumerate(digits):
        if digit:
            for unit in _units(size)[cell]:
                if not free[unit] >> digit & 1:
                    return []
                free[unit] &= ~(1 << digit)
    found: list[str] = []
    _search(digits, free, _units(size), limit, rng, found)
    return found


def _search(
    digits: list[int],
    free: list[int],
    units: tuple[tuple[int, int, int], ...],
    limit: int,
    rng: np.random.Generator | None,
    found: list[str],
) -> None:
    """Fill the blank cell with the fewest candidates in each possible way, and so on until `found` has `limit`."""
    best, candidates, fewest = -1, 0, 10
    for cell, digit in enumerate(digits):
        if digit == 0:
            row, column, box = units[cell]
            bits = free[row] & free[column] & free[box]
            count = bits.bit_count()
            if count < fewest:
                best, candidates, fewest = cell, bits, count
                if count <= 1:
                    break
    if best < 0:
        found.append("".join(map(str, digits)))
        return
    choices = [digit for digit in range(1, 10) if candidates >> digit & 1]
    if rng is not None:
        choices = rng.permutation(choices).tolist() if choices else []
    for digit in choices:
        digits[best] = digit
        for unit in units[best]:
            free[unit] ^= 1 << digit
        _search(digits, free, units, limit, rng, found)
        for unit in units[best]:
            free[unit] ^= 1 << digit
        digits[best] = 0
        if len(found) >= limit:
            return


def _blank(solution: str, num_blanks: int, rng: np.random.Generator) -> str | None:
    """Blank this many cells in random order, keeping the solution unique; None if that is not possible."""
    cells = list(solution)
    for cell in rng.permutation(len(cells)).tolist():
        if cells.count("0") == num_blanks:
            break
        cells[cell] = "0"
        if len(solve("".join(cells), 2)) > 1:
            cells[cell] = solution[cell]
    return "".join(cells) if cells.count("0") == num_blanks else None


def _read(completion: str, count: int) -> str | None:
    """Return the digits of the last answer, None unless it is a grid: `count` digits and what parts them."""
    answer = last_tagged(completion)
    if answer is None or len(answer) > MAX_LENGTH or not re.fullmatch(r"[0-9\s|+,\-\[\]]*", answer):
        return None
    digits = re.sub("[^0-9]", "", answer)
    return digits if len(digits) == count else None


def _box(size: int) -> int:
    return {4: 2, 9: 3}[size]


@lru_cache(maxsize=2)
def _units(size: int) -> tuple[tuple[int, int, int], ...]:
    """Return the row, column and box of each cell, as numbers from 0 to 3 * size - 1."""
    box = _box(size)
    return tuple(
        (row, size + column, 2 * size + row // box * box + column // box)
        for row in range(size)
        for column in range(size)
    )
