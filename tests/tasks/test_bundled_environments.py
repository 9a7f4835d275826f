"""The environments that come with esmpi: a calculator, moves of Sudoku, Wordle."""

import numpy as np
import pytest
from own_tasks import make_environment

from esmpi.tasks import Score
from esmpi.tasks.environments.wordle import WORDS, compare


def test_a_calculator_writes_the_values() -> None:
    task = make_environment("countdown_calculator", params={"num_numbers": [3], "operators": "+-"})
    example = {"numbers": [12, 7, 3], "target": 16}
    task.check(example)
    first = task.play(example, 0, [])
    assert task.play(example, 0, [" 12+7="]) == f"{first} 12+7=19"
    assert task.play(example, 0, [" 12+7=", ",19-3="]) == f"{first} 12+7=19,19-3=16"
    score = task.play(example, 0, [" 12+7=", ",19-3=", "</think>\n<answer>(12+7)-3</answer>"])
    assert score == Score(reward=1.1, correct=True, figures={"turns": 3.0, "calculated": 2.0, "format": 1.0})
    # no expression, none that has a value
    assert task.play(example, 0, [" x="]) == f"{first} x="
    assert task.play(example, 0, [" 7/0="]) == f"{first} 7/0="
    draw = task.generator(np.random.default_rng(0))
    assert all(len(draw()["numbers"]) == 3 for _ in range(5))


def test_sudoku_by_moves() -> None:
    task = make_environment("sudoku_moves")
    example = {"puzzle": "3400010403010040", "solution": "3412213443211243"}
    task.check(example)
    blanks = [i for i, digit in enumerate(example["puzzle"]) if digit == "0"]
    moves = [f"r{i // 4 + 1}c{i % 4 + 1}={example['solution'][i]}" for i in blanks]
    half = f"<answer>{' '.join(moves[:5])}</answer>"
    assert str(task.play(example, 0, [half])).endswith("</answer>\n3 4 1 2\n2 1 3 4\n4 3 0 1\n0 0 4 0\n")
    solved = task.play(example, 0, [half, f"<answer>{','.join(moves[5:])}</answer>"])
    assert solved == Score(reward=1.0, correct=True, figures={"turns": 2.0, "cells_right": 1.0})
    every = " ".join(f"r{i // 4 + 1}c{i % 4 + 1}={digit}" for i in blanks for digit in range(1, 5))
    guessed = task.play(example, 0, [f"<answer>{every}</answer>"])
    assert isinstance(guessed, Score)
    assert not guessed.correct, "guesses are not free"
    wrong = ["<answer>r1c3=2</answer>", "no move", "<answer>r9c9=9</answer>"]
    assert "r1c3=2 is wrong." in str(task.play(example, 0, wrong[:1]))
    assert task.play(example, 0, wrong) == Score(reward=0.0, correct=False, figures={"turns": 3.0, "cells_right": 0.0})


def test_wordle() -> None:
    task = make_environment("wordle", params={"num_guesses": 3})
    task.check({"word": "hello"})
    assert "hello" not in str(task.play({"word": "hello"}, 0, []))
    assert "llama ??---\n2 left." in str(task.play({"word": "hello"}, 0, ["<answer>LLAMA</answer>"]))
    right = task.play({"word": "hello"}, 0, ["<answer>llama</answer>", "<answer>hello</answer>"])
    assert right == Score(reward=1.0, correct=True, figures={"turns": 2.0, "guesses": 2.0})
    lost = task.play({"word": "hello"}, 0, ["<answer>help</answer>", "<answer>hells</answer>", "?"])
    assert lost == Score(reward=0.4, correct=False, figures={"turns": 3.0, "guesses": 3.0})
    with pytest.raises(ValueError, match="five small letters"):
        task.check({"word": "Hello!"})
    assert all(len(word) == 5 for word in WORDS)
    assert len(set(WORDS)) == len(WORDS)


@pytest.mark.parametrize(
    ("guess", "word", "signs"),
    [
        ("hello", "hello", "+++++"),
        ("llama", "hello", "??---"),
        ("eerie", "there", "?-?-+"),
        ("allay", "lilac", "-?++-"),
        ("zzzzz", "hello", "-----"),
    ],
)
def test_letters_are_marked_as_often_as_they_are_there(guess: str, word: str, signs: str) -> None:
    assert compare(guess, word) == signs
