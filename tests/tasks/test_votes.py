"""What tasks read as the answer by which completions vote: one text for equal answers, which are equally right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tasks import ARC, CASES, GSM, MATH, TASKS, make

from esmpi.tasks import Example

SOLVED = "1234341221434321"
COUNTDOWN: Example = {"numbers": [1, 2, 3], "target": 6}
SUDOKU: Example = {"puzzle": "0" + SOLVED[1:], "solution": SOLVED}
PUZZLE: Example = {"numbers": [4, 4], "target": 8}

EQUAL: list[tuple[str, Example, list[str]]] = [
    (
        "countdown",
        COUNTDOWN,
        [f"</think><answer>{text}</answer>" for text in ("1+2+3", "3 + (2 + 1)", "1*2*3", "6/1+0")],
    ),
    ("gsm8k", GSM, ["#### 7", "so\n#### $7.00", r"\boxed{7}", "#### 7 apples"]),
    ("multiplication", {"a": 30, "b": 40}, ["1200", "It is 1,200.", "no, 1200.0"]),
    ("math", MATH, [r"\boxed{8}", r"so \boxed{$8$.}", r"\boxed{\frac{16}{2}}", r"\boxed{8.0}", r"\boxed{2^3}"]),
    ("math", MATH, [r"\boxed{\frac12}", r"\boxed{0.5}", r"\boxed{\dfrac{2}{4}}"]),
    ("math", MATH, [r"\boxed{p - q}", r"\boxed{-q+p}"]),
    ("math", MATH, [r"\boxed{\text{no} number}", r"\boxed{\text{no}   number}"]),
    ("arc", ARC, ["<answer>4 3\n0 0</answer>", "<answer>[[4, 3], [0, 0]]</answer>", "<answer> 43\n00 </answer>"]),
    ("sudoku", SUDOKU, [f"<answer>{SOLVED}</answer>", f"<answer>{'|'.join(SOLVED)}</answer>"]),
]
OTHER: list[tuple[str, Example, list[str]]] = [
    (
        "countdown",
        COUNTDOWN,
        [
            f"</think><answer>{text}</answer>"
            for text in ("1+2+3", "1+2", "6", "3*2", "1+2+", "1+2+3+0", "1+1+1+3", "33", "3 3")
        ],
    ),
    ("gsm8k", GSM, ["#### 7", "#### 8", "#### -7", "#### 0.7"]),
    ("multiplication", {"a": 30, "b": 40}, ["1200", "1201", "-1200"]),
    (
        "math",
        MATH,
        [rf"\boxed{{{text}}}" for text in ("8", "-8", "80", "8.001", "x", "2^{1009}", "2^{1009}+1", r"\text{a}")],
    ),
    (
        "math",
        MATH,
        [rf"\boxed{{{text}}}" for text in ("(2,3]", "[2,3]", "2,3", r"\sqrt{2}", r"\sqrt{3}", "x^2", "2^x")],
    ),
    ("arc", ARC, ["<answer>4 3\n0 0</answer>", "<answer>4 3\n0 1</answer>", "<answer>4 3 0 0</answer>"]),
    ("sudoku", SUDOKU, [f"<answer>{SOLVED}</answer>", f"<answer>{SOLVED[:-1]}2</answer>"]),
]


@pytest.mark.parametrize(("name", "example", "texts"), EQUAL)
def test_equal_answers_are_one_text_and_equally_right(name: str, example: Example, texts: list[str]) -> None:
    task = make(name)
    answers = [task.answer(text, example) for text in texts]
    if name == "countdown":  # the last one uses another number
        *answers, other = answers
        assert other not in answers
        *texts, _ = texts
    assert len(set(answers)) == 1
    assert answers[0] is not None
    assert len({task.score(text, example).correct for text in texts}) == 1


@pytest.mark.parametrize(("name", "example", "texts"), OTHER)
def test_other_answers_are_other_texts(name: str, example: Example, texts: list[str]) -> None:
    task = make(name)
    answers = [task.answer(text, example) for text in texts]
    assert None not in answers
    assert len(set(answers)) == len(texts)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("code", "conciseness")])
def test_a_right_completion_has_an_answer_and_an_empty_one_has_none(name: str) -> None:
    keys, example, perfect, *_ = CASES[name]
    task = make(name, **keys)
    assert task.has_answers
    example = example or task.generator(np.random.default_rng(0))()
    answer = task.answer(perfect(example), example)
    assert isinstance(answer, str)
    assert answer
    assert task.answer("", example) is None
    # a completion that is parsed has an answer, and the other way round
    for text in (perfect(example), "", "no idea", "<answer></answer>", "#### ", r"\boxed{}", "<answer>?</answer>"):
        assert task.score(text, example).parsed == (task.answer(text, example) is not None), text


def test_all_others_say_that_they_have_none() -> None:
    assert [name for name in TASKS if not make(name).has_answers] == ["code", "conciseness"]
    with pytest.raises(NotImplementedError):
        make("conciseness").answer("8", {"question": "?", "answer": "8"})


def test_an_expression_of_reasoning_gym_is_one_text() -> None:
    task: Any = make("gym:countdown")
    texts = [f"<answer>{text}</answer>" for text in ("4+4", "(4 + 4)", "8", "4 4")]
    assert [task.answer(text, PUZZLE) for text in texts] == ["8 = 4 4", "8 = 4 4", "8 = 8", "44"]


def test_a_file_says_what_its_answers_are_or_not(tmp_path: Path) -> None:
    path = tmp_path / "task.py"
    path.write_text("def reward(completion, example):\n    return 1.0\n")
    assert not make(f"{path}:reward").has_answers
    path.write_text(
        "def reward(completion, example):\n    return 1.0\n"
        "def answer(completion, example):\n"
        "    example.clear()\n"
        "    return {'number': 3, 'none': None}.get(completion, completion)\n"
    )
    task = make(f"{path}:reward")
    assert task.has_answers
    example = {"prompt": "?"}
    assert task.answer("text", example) == "text"
    assert task.answer("none", example) is None
    assert example == {"prompt": "?"}
    with pytest.raises(TypeError, match="`answer` returned 3, which is neither text nor None"):
        task.answer("number", example)
