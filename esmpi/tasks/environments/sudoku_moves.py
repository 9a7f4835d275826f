"""Sudoku by moves: the model fills in a few cells in each turn, and sees the grid that results."""

from __future__ import annotations

import re
from typing import Any

from esmpi.data.problem import Example
from esmpi.tasks.answers import last_tagged
from esmpi.tasks.environments._of_task import OfTask, keys_of
from esmpi.tasks.environments.base import Answer
from esmpi.tasks.sudoku import MAX_LENGTH, Sudoku, SudokuConfig

_RULES = (
    "Solve this {size}x{size} Sudoku: every row, every column and every {box}x{box} box holds each digit from 1 to "
    "{size} once; 0 is an empty cell.\n\n{grid}\n\nThink, then write one or more moves between <answer> and </answer>, "
    "such as <answer>r1c2=3</answer> for a 3 in row 1, column 2. You then see the new grid and go on.\n"
)
_MOVE = re.compile(r"r([1-9])c([1-9])=([1-9])")


class SudokuMoves(OfTask):
    """Examples are those of `sudoku`, whose keys for problems are the parameters here.

    The reward of a solved grid is 1, else half the share of the cells that were filled in. A wrong digit is refused;
    three of them end the episode.
    """

    def __init__(self, **params: Any):
        self.task: Sudoku = Sudoku(SudokuConfig(**keys_of(params)))
        self._size = self.task.config.size

    def reset(self, example: Example, seed: int) -> str:
        self._solution, self._cells = example["solution"], list(example["puzzle"])
        self._num_blanks, self._num_wrong = self._cells.count("0"), 0
        return _RULES.format(size=self._size, box={4: 2, 9: 3}[self._size], grid=self._grid())

    def step(self, completion: str) -> Answer:
        answer = last_tagged(completion)
        moves = _MOVE.findall(answer) if answer is not None and len(answer) <= MAX_LENGTH else []
        if not moves:
            self._num_wrong += 1
            said = "There was no move such as <answer>r1c2=3</answer>."
        else:
            said = ""
            for move in moves:
                if self._num_wrong < 3:
                    said += self._move(*map(int, move))
        if "0" not in self._cells or self._num_wrong >= 3:
            return self.finish()
        return f"{said.rstrip()}\n\n{self._grid()}".lstrip()

    def finish(self) -> dict[str, Any]:
        left = self._cells.count("0")
        filled = 1 - left / self._num_blanks
        return {"reward": 1.0 if left == 0 else filled / 2, "correct": left == 0, "cells_right": filled}

    def _move(self, row: int, column: int, digit: int) -> str:
        """Fill in a cell; return what is wrong with that, if something is."""
        if max(row, column, digit) > self._size:
            self._num_wrong += 1
            return f"There is no r{row}c{column}={digit}. "
        cell = (row - 1) * self._size + column - 1
        if self._solution[cell] != str(digit):
            self._num_wrong += 1
            return f"r{row}c{column}={digit} is wrong. "
        self._cells[cell] = str(digit)
        return ""

    def _grid(self) -> str:
        starts = range(0, self._size**2, self._size)
        return "\n".join(" ".join(self._cells[start : start + self._size]) for start in starts)
