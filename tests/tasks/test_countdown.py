"""Countdown's rewards and generator."""

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esmpi.tasks.answers import last_tagged
from esmpi.tasks.countdown import Countdown, CountdownConfig, format_score

EXAMPLE = {"numbers": [44, 19, 35], "target": "98"}
DATA = Path(__file__).parents[3] / "shared" / "data" / "countdown"


def task(**keys: object) -> Countdown:
    return Countdown(CountdownConfig(**keys))  # type: ignore[arg-type]


def reward(completion: str, numbers: list[int] | None = None, target: object = "98") -> float:
    return task().score(completion, {"numbers": numbers or EXAMPLE["numbers"], "target": target}).reward


def is_right(answer: str, numbers: list[int] | None = None, target: object = "98") -> bool:
    """Whether a well-formed completion with this answer counts as right; reward and accuracy must agree."""
    example = {"numbers": numbers or EXAMPLE["numbers"], "target": target}
    score = task().score(f" x </think>\n<answer>{answer}</answer>", example)
    assert score.reward == pytest.approx(0.1 + score.correct)
    return score.correct


def test_prompt_is_the_papers() -> None:
    assert task().prompt(EXAMPLE) == (
        "You are a helpful assistant. You first think about the reasoning process in your mind and then provide the "
        "user with the answer.Using the numbers [44 19 35], create an equation that equals 98. You can use basic "
        "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> "
        "tags. And return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
        "Let me solve this step by step.\n<think>"
    )


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (" x </think>\n<answer> 44 + 19 + 35 </answer>", 1.1),
        (" x </think>\n<answer> 44 + 19 + 35 </answer> ok", 1.06),
        (" x </think>\n<answer> 44 + 19 + 35 </answer>\n", 1.1),
        (" x </think>\n<answer> 44 + 19 + 35 </answer>\n\n", 1.06),
        (" x </think><answer> 44 + 19 + 35 </answer>", 1.06),
        ("<answer> 44 + 19 + 35 </answer>", 1.05),
        (" x </think>\n<answer>44+19+35=98</answer>", 0.1),
        (" x </think>\n<answer> 44 + 19 </answer>", 0.1),
        (" x </think> 98", 0.01),
        (" x </think>\n<answer> 44 + 19 + 35", 0.01),
        ("", 0.0),
        ("44 + 19 + 35", 0.0),
        ("</answer><answer>", 0.0),
    ],
)
def test_rewards_of_the_reference(completion: str, expected: float) -> None:
    assert reward(completion) == pytest.approx(expected, abs=1e-12)


def test_accuracy_is_the_answer_not_the_reward() -> None:
    right, shaped = (
        task().score("<answer>44+19+35</answer>", EXAMPLE),
        task().score("</think>\n<answer></answer>", EXAMPLE),
    )
    assert right.correct
    assert not shaped.correct
    assert shaped.reward == pytest.approx(0.1)


def test_the_last_answer_counts() -> None:
    right, wrong = "<answer>44+19+35</answer>", "<answer>44</answer>"
    assert task().score(wrong + right, EXAMPLE).correct
    assert not task().score(right + wrong, EXAMPLE).correct
    assert task().score(f"</think>\n{wrong}\n{right}", EXAMPLE).reward == pytest.approx(1.1)
    assert task().score(right + "<answer>44", EXAMPLE).correct  # an open tag is no pair


@pytest.mark.parametrize(
    ("answer", "numbers", "target"),
    [
        ("44+19+35", [35, 44, 19], 98),
        ("(44 + (19)) + 35", [44, 19, 35], "98"),
        ("  35+19 +\t44  ", [44, 19, 35], "98"),
        ("\n35+19+44\n", [44, 19, 35], "98"),
        ("(92 - 2) / 36", [92, 2, 36], "2.5"),
        ("1/3", [1, 3], "0.33333"),  # within 1e-5
        ("-(2 - 9)", [2, 9], "7"),
        ("2 - -9", [2, 9], "11"),
        ("7*7", [7, 7], 49),
        ("0 + 5", [0, 5], 5),
    ],
)
def test_right_answers(answer: str, numbers: list[int], target: object) -> None:
    assert is_right(answer, numbers, target)


@pytest.mark.parametrize(
    ("answer", "numbers", "target"),
    [
        ("44+19+36", [44, 19, 35], "98"),
        ("44+19+35+0", [44, 19, 35], "98"),  # a number that was not given
        ("98", [44, 19, 35], "98"),
        ("7*7", [7], 49),
        ("7", [7, 7], 7),
        ("4419+35", [44, 19, 35], "4454"),  # numbers run together
        ("44 19 35", [44, 19, 35], "98"),
        ("1//1", [1, 1], "1"),
        ("1 / / 1", [1, 1], "1"),
        ("2**3", [2, 3], "8"),
        ("2 * * 3", [2, 3], "8"),
        ("1/(2-2)", [1, 2, 2], "0"),
        ("1/0", [1, 0], "1"),
        ("0/0", [0, 0], "0"),
        ("07+2", [7, 2], "9"),
        ("7.0+2", [7, 0, 2], "9"),
        ("7+2=9", [7, 2], "9"),
        ("7e0+2", [7, 0, 2], "9"),
        ("(7)(2)", [7, 2], "14"),
        ("7 2", [7, 2], "72"),
        ("7+2)", [7, 2], "9"),
        ("(7+2", [7, 2], "9"),
        ("7+2+", [7, 2], "9"),
        ("*7+2", [7, 2], "9"),
        ("()7+2", [7, 2], "9"),
        ("", [7, 2], "9"),
        ("1/3", [1, 3], "0.3333"),  # further off than 1e-5
        ("7_0+2", [70, 2], "72"),
        ("7+2#", [7, 2], "9"),
        ("7\u00d72", [7, 2], "14"),
        ("\u0667+2", [7, 2], "9"),  # digits of other scripts
        ("\uff17+2", [7, 2], "9"),
        ("7\u00b2", [7, 2], "49"),
        ("7\u00a0+2", [7, 2], "9"),
        ("7+\n2", [7, 2], "9"),
        ("__import__('os')", [7, 2], "9"),
        ("<answer>7+2</answer>", [7, 2], "9"),  # nested: the inner pair ends first
        ("<answer>7+2", [7, 2], "9"),
    ],
)
def test_wrong_answers(answer: str, numbers: list[int], target: object) -> None:
    assert not is_right(answer, numbers, target)


@pytest.mark.timeout(20)  # against hanging for ever, which is what eval does here
@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("9**9**9**9", [9, 9, 9, 9]),
        ("9" * 100_000, [9]),
        ("9" * 900, [9]),
        ("9" * 900, [int("9" * 900), 1]),
        ("*".join(["9" * 900] * 1000), [9]),
        ("(" * 10_000 + "9" + ")" * 10_000, [9]),
        ("(" * 10_000, [9]),
        ("(" * 999, [9]),
        ("(" * 499 + "9" + ")" * 499, [9]),
        ("-" * 999 + "9", [9]),
        ("+" * 100_000 + "9", [9]),
        ("<answer>" * 20_000 + "9" + "</answer>" * 20_000, [9]),
        ("<answer>" * 100_000, [9]),
        ("</think>\n<answer>" * 50_000, [9]),
        ("\0" * 1000, [9]),
        ("\ud800", [9]),
        ("().__class__.__bases__[0].__subclasses__()", [9]),
        ("(lambda: (yield))()", [9]),
        ("{0}{1}%s%n", [9]),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_hostile_answers_are_wrong_and_cost_nothing(answer: str, numbers: list[int]) -> None:
    score = task().score(f" x </think>\n<answer>{answer}</answer>", {"numbers": numbers, "target": "8"})
    assert not score.correct
    assert score.reward <= 0.1 + 1e-12
    assert reward(answer) < 0.1


@given(st.text(max_size=60))
def test_any_text_has_a_reward(text: str) -> None:
    for completion in (text, f"<answer>{text}</answer>", f"</think>\n<answer>{text}</answer>"):
        score = task().score(completion, EXAMPLE)
        assert 0 <= score.reward <= 1.1 + 1e-12
        assert score.correct == (score.reward > 0.5)


pieces = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<answer>", "</answer>", "\n", "</think>\n<answer>", "1+1", " ", "</answer"]
    ),
    max_size=12,
).map("".join)


@given(pieces)
def test_format_and_last_answer_are_those_of_the_patterns(completion: str) -> None:
    """The definitions, as regular expressions (which need quadratic time and are not used for that)."""
    response = "<think>" + completion
    found = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
    assert last_tagged(response) == (found[-1].strip() if found else None)
    if re.match(r"^<think>.*?</think>\n<answer>.*?</answer>$", response, re.DOTALL):
        expected = 1.0
    else:
        expected = 0.1 * bool(re.search(r"<think>.*?</think>", response, re.DOTALL)) + 0.5 * bool(found)
    assert format_score(response) == pytest.approx(expected)


def test_files_are_checked_line_by_line() -> None:
    good = task()
    for example in (EXAMPLE, {"numbers": [1], "target": 27.4}, {"numbers": [0, 5], "target": "-3.25", "id": 7}):
        good.check(example)
    for bad in (
        {},
        {"numbers": [1, 2]},
        {"target": 3},
        {"numbers": [], "target": 3},
        {"numbers": "1 2", "target": 3},
        {"numbers": [1, "2"], "target": 3},
        {"numbers": [1, 2.5], "target": 3},
        {"numbers": [1, True], "target": 3},
        {"numbers": [1, -2], "target": 3},
        {"numbers": [1, 2], "target": "three"},
        {"numbers": [1, 2], "target": None},
        {"numbers": [1, 2], "target": True},
        {"numbers": [1, 2], "target": [3]},
        {"numbers": [1, 2], "target": "1/0"},
        {"numbers": [1, 2], "target": float("inf")},
        {"numbers": [1, 2], "target": float("nan")},
        {"numbers": [1, 2], "target": "1e999999999"},
    ):
        with pytest.raises(ValueError, match="must be"):
            good.check(bad)


def test_key_knows_a_problem_in_any_order_and_spelling() -> None:
    key = task().key
    assert key({"numbers": [3, 1, 2], "target": "6.0"}) == key({"numbers": [1, 2, 3], "target": 6, "id": 9})
    assert key({"numbers": [1, 2, 3], "target": 6}) != key({"numbers": [1, 2, 3], "target": 7})
    assert key({"numbers": [1, 2, 2], "target": 6}) != key({"numbers": [1, 1, 2], "target": 6})


CONFIGS: list[dict] = [
    {},
    {"num_numbers": (2,), "number_range": (1, 9), "target_range": (1, 20)},
    {"num_numbers": (3,), "number_range": (1, 20), "target_range": (1, 99), "operators": "+-*"},
    {"num_numbers": (6,), "number_range": (0, 3), "target_range": (0, 5), "operators": "/-"},
    {"num_numbers": (2, 3, 4, 5), "number_range": (50, 50), "target_range": (100, 250), "operators": "+"},
]


@pytest.mark.parametrize("keys", CONFIGS, ids=str)
def test_generated_problems_are_solvable_and_in_range(keys: dict) -> None:
    countdown = task(**keys)
    config = countdown.config
    draw = countdown.generator(np.random.default_rng(1))
    sizes, operators = set(), set()
    for _ in range(300):
        example = draw()
        countdown.check(example)
        numbers, target = example["numbers"], example["target"]
        sizes.add(len(numbers))
        assert all(config.number_range[0] <= number <= config.number_range[1] for number in numbers)
        assert isinstance(target, int)
        assert config.target_range[0] <= target <= config.target_range[1]
        solution = example["solution"]
        operators |= set(re.findall(r"[-+*/]", solution))
        assert sorted(int(digits) for digits in re.findall(r"\d+", solution)) == sorted(numbers)
        assert eval(re.sub(r"(\d+)", r"Fraction(\1)", solution)) == target  # the test's own text, not a model's
        assert countdown.score(f" x </think>\n<answer>{solution}</answer>", example).reward == pytest.approx(1.1)
        assert json.loads(json.dumps(example)) == example
    assert sizes == set(config.num_numbers)
    assert operators == set(config.operators)


def test_generator_is_the_seeds_alone() -> None:
    def draw(seed: int) -> list[dict]:
        one = task().generator(np.random.default_rng(seed))
        return [one() for _ in range(20)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(3)[0] != draw(3)[1]


def test_generator_gives_up_on_what_no_problem_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esmpi.tasks.countdown.MAX_DRAWS", 500)
    draw = task(num_numbers=(2,), number_range=(1, 2), target_range=(90, 98)).generator(np.random.default_rng(0))
    with pytest.raises(ValueError, match="no solvable problem in 500 draws"):
        draw()


@pytest.mark.parametrize(
    "keys",
    [
        {"num_numbers": ()},
        {"num_numbers": (1,)},
        {"num_numbers": (3, 7)},
        {"number_range": (5, 4)},
        {"number_range": (-1, 4)},
        {"target_range": (9, 3)},
        {"operators": ""},
        {"operators": "+^"},
    ],
    ids=str,
)
def test_impossible_keys_are_refused_by_name(keys: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        CountdownConfig(**keys)


@pytest.mark.skipif(not DATA.is_dir(), reason="the reference's puzzles are not beside this checkout")
@pytest.mark.parametrize(("name", "count", "not_integer"), [("train.jsonl", 200, 0), ("test.jsonl", 2000, 43)])
def test_puzzles_of_the_reference_load(name: str, count: int, not_integer: int) -> None:
    examples = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    assert len(examples) == count
    for example in examples:
        task().check(example)
    assert sum(Fraction(example["target"]).denominator != 1 for example in examples) == not_integer
