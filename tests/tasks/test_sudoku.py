"""Task sudoku: its solver and generator against brute force, and what counts as a solution."""

import itertools
import re
import time

import numpy as np
import pytest
from test_tasks import make

from esmpi.tasks import Example
from esmpi.tasks.sudoku import Sudoku, SudokuConfig, solve

EXAMPLE: Example = {"puzzle": "1030" + "0012" + "2040" + "0321", "solution": "1234" + "3412" + "2143" + "4321"}


def task(**keys: object) -> Sudoku:
    return Sudoku(SudokuConfig(**keys))  # type: ignore[arg-type]


def is_valid(grid: str, size: int, box: int) -> bool:
    """The rules, said without the solver's tables."""
    rows = [grid[start : start + size] for start in range(0, size * size, size)]
    columns = ["".join(column) for column in zip(*rows, strict=True)]
    boxes = [
        "".join(rows[r + i][c + j] for i in range(box) for j in range(box))
        for r in range(0, size, box)
        for c in range(0, size, box)
    ]
    return all(sorted(unit) == sorted("123456789"[:size]) for unit in [*rows, *columns, *boxes])


def test_all_288_grids_of_4_x_4_are_found() -> None:
    found = solve("0" * 16, 1000)
    assert len(set(found)) == len(found) == 288
    assert all(is_valid(grid, 4, 2) for grid in found)
    lines = ["".join(line) for line in itertools.permutations("1234")]
    brute = {"".join(grid) for grid in itertools.product(lines, repeat=4) if is_valid("".join(grid), 4, 2)}
    assert set(found) == brute


def test_known_puzzles_of_9_x_9_are_solved() -> None:
    # Inkala's, of 2012, one of the hardest to search
    puzzle = "800000000003600000070090200050007000000045700000100030001000068008500010090000400"
    solution = "812753649943682175675491283154237896369845721287169534521974368438526917796318452"
    assert solve(puzzle, 2) == [solution]
    assert solve("11" + "0" * 79, 2) == []
    assert solve(puzzle.replace("8", "9", 1), 2) == [] or is_valid(solve(puzzle.replace("8", "9", 1), 1)[0], 9, 3)
    assert len(solve("0" * 81, 5)) == 5


@pytest.mark.parametrize(("size", "box", "count"), [(4, 2, 200), (9, 3, 20)])
def test_generated_puzzles_have_one_solution(size: int, box: int, count: int) -> None:
    sudoku = task(size=size)
    low, high = sudoku.config.num_blanks or (0, 0)
    draw = sudoku.generator(np.random.default_rng(2))
    seen, started = set(), time.perf_counter()
    for _ in range(count):
        example = draw()
        sudoku.check(example)
        puzzle, solution = example["puzzle"], example["solution"]
        assert is_valid(solution, size, box)
        assert solve(puzzle, 10) == [solution]
        assert all(digit in ("0", right) for digit, right in zip(puzzle, solution, strict=True))
        assert low <= puzzle.count("0") <= high
        seen.add((puzzle.count("0"), solution))
    assert len(seen) > count / 2
    assert (time.perf_counter() - started) / count < 1


def test_generated_puzzles_of_4_x_4_have_no_second_solution_among_all_grids() -> None:
    grids = solve("0" * 16, 1000)
    draw = task(num_blanks=(11, 11)).generator(np.random.default_rng(3))
    for _ in range(30):
        puzzle = draw()["puzzle"]
        assert sum(all(p in ("0", g) for p, g in zip(puzzle, grid, strict=True)) for grid in grids) == 1


def test_generator_is_the_seeds_alone() -> None:
    draws = [
        [draw() for _ in range(5)] for seed in (1, 1, 2) for draw in [task().generator(np.random.default_rng(seed))]
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    "answer",
    [
        "1234341221434321",
        "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1",
        "\n1,2,3,4\n3,4,1,2\n2,1,4,3\n4,3,2,1\n",
        "1 2 | 3 4\n3 4 | 1 2\n----+----\n2 1 | 4 3\n4 3 | 2 1",
        "[[1,2,3,4],[3,4,1,2],[2,1,4,3],[4,3,2,1]]",
    ],
)
def test_right_grids_in_any_dress(answer: str) -> None:
    for credit in (False, True):
        score = task(partial_credit=credit).score(f"so <answer>{answer}</answer>", EXAMPLE)
        assert (score.reward, score.correct, score.parsed, score.figures) == (1, True, True, {"cells_right": 1})


def test_partial_credit_is_for_blanks_that_are_right_and_givens_that_are_kept() -> None:
    blanks = [i for i, digit in enumerate(EXAMPLE["puzzle"]) if digit == "0"]
    answer = list(EXAMPLE["solution"])
    for number, cell in enumerate(blanks, start=1):
        answer[cell] = "0"
        score = task(partial_credit=True).score(f"<answer>{''.join(answer)}</answer>", EXAMPLE)
        right = 1 - number / len(blanks)
        assert score.reward == pytest.approx(right / 2)
        assert score.figures["cells_right"] == pytest.approx(right)
        assert not score.correct
        assert task().score(f"<answer>{''.join(answer)}</answer>", EXAMPLE).reward == 0
    given = EXAMPLE["solution"].replace("1", "5", 1)
    score = task(partial_credit=True).score(f"<answer>{given}</answer>", EXAMPLE)
    assert (score.reward, score.correct, score.figures["cells_right"]) == (0, False, 1)


@pytest.mark.parametrize(
    "completion",
    ["1234341221434321", "<answer>123434122143432</answer>", "<answer>12343412214343211</answer>", "<answer>x</answer>",
     "<answer>" + "1" * 100_000 + "</answer>", "<answer>\u0661234341221434321</answer>", "<answer></answer>"],
    ids=lambda text: ascii(text)[:25],
)  # fmt: skip
def test_what_is_no_grid_is_not_parsed(completion: str) -> None:
    score = task(partial_credit=True).score(completion, EXAMPLE)
    assert (score.reward, score.correct, score.parsed) == (0, False, False)


def test_prompt_shows_the_grid() -> None:
    assert "\n\n1 0 3 0\n0 0 1 2\n2 0 4 0\n0 3 2 1\n\n" in task().prompt(EXAMPLE)
    puzzle = "123456789" * 9
    assert len(re.findall(r"^1 2 3 4 5 6 7 8 9$", task(size=9).prompt({"puzzle": puzzle}), re.MULTILINE)) == 9


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"puzzle": "1030"}, "`puzzle` must be"),
        ({"puzzle": EXAMPLE["solution"]}, "has no 0"),
        ({"solution": EXAMPLE["solution"].replace("1", "2", 1)}, "`solution` must be the only one"),
        ({"puzzle": "0" * 16}, "`solution` must be the only one of `puzzle`, which has 2 or more"),
        ({"solution": "0" * 16}, "`solution` must be text of 16 digits from 1 to 4"),
        ({"puzzle": EXAMPLE["puzzle"].replace("1", "5")}, "`puzzle` must be"),
    ],
)
def test_unusable_files_are_refused(change: dict, expected: str) -> None:
    task().check(EXAMPLE)
    with pytest.raises(ValueError, match=expected):
        task().check(EXAMPLE | change)


@pytest.mark.parametrize("keys", [{"size": 5}, {"num_blanks": (0, 3)}, {"num_blanks": (4, 12)}, {"num_blanks": (5, 4)}])
def test_impossible_keys_are_refused_by_name(keys: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        SudokuConfig(**keys)


def test_config_reaches_the_task() -> None:
    sudoku = make("sudoku", size=9, num_blanks=[3, 5], partial_credit=True)
    assert isinstance(sudoku, Sudoku)
    assert sudoku.config == SudokuConfig(size=9, num_blanks=(3, 5), partial_credit=True)
