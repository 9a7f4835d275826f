"""The worst completions that `tools/fuzz.py` has found, a million characters each: no grader dwells on them.

`tools/fuzz.py` holds graders to 10 ms. Tests run on machines of any speed with other tests beside them, so they allow
ten times as much; a grader whose time grows faster than the text takes seconds or minutes. What math-verify does is
left out: what bounds it is `scoring.time_limit_s`, after which the process is replaced (see tests/scoring).
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from esmpi.config.reader import parse_config
from esmpi.tasks import Example, Task, find_task
from esmpi.tasks.answers import MAX_TAGGED_TEXT
from esmpi.tasks.code import MAX_LENGTH, program_of
from esmpi.tasks.countdown import evaluate
from esmpi.tasks.env import EnvTask
from esmpi.tasks.environments.base import Environment
from esmpi.tasks.tools import MAX_CALLS, calls_in, result_of

LIMIT_S = 0.1
LONG = 1_000_000


def seconds(function: Callable[[], object]) -> float:
    """Return the least CPU time of four calls, as the machine may be busy."""
    taken = []
    for _ in range(4):
        began = time.thread_time()
        function()
        taken.append(time.thread_time() - began)
    return min(taken)


def task_of(name: str) -> Task:
    words = {"run": {"name": "x"}, "model": {"path": "x"}, "es": {"generations": 1}, "task": {"name": name}}
    kind = find_task(name)
    assert kind is not None
    return kind.make(parse_config(words).task, b"")


def repeated(*units: str) -> Sequence[str]:
    return [unit * (LONG // len(unit)) for unit in units]


CASES: list[tuple[str, Example, Sequence[str]]] = [
    ("conciseness", {"question": "Which?", "answer": "Paris"}, repeated("P", "pari", " ", "é", "-Pari")),
    ("gsm8k", {"question": "?", "answer": 7}, [f"####1{text}" for text in repeated("\nab", "\n", "\u2028x", " 1")]),
    (
        "countdown",
        {"numbers": [1, 2], "target": 3},
        repeated("<answer>", "</answer>", "</think>\n", "<answer></answer>"),
    ),
    ("multiplication", {"a": 12, "b": 12}, repeated("1 ", "1,111", "-", "$", "9")),
]


@pytest.mark.parametrize(
    ("name", "example", "text"),
    [(name, example, text) for name, example, texts in CASES for text in texts],
    ids=lambda value: repr(value[:8]) if isinstance(value, str) else "",
)
def test_long_completions(name: str, example: Example, text: str) -> None:
    task = task_of(name)
    task.check(example)
    assert seconds(lambda: task.score(text, example)) < LIMIT_S
    if task.has_answers:
        assert seconds(lambda: task.answer(text, example)) < LIMIT_S


@pytest.mark.parametrize("unit", ["x\n", "```\n```\n", "from __future__ import x\n", " ", "\n"], ids=repr)
def test_programs_are_found(unit: str) -> None:
    example = {"prompt": "def f():\n", "entry_point": "f", "test": ""}
    for text in (unit * (LONG // len(unit)), "```\n" + unit * (LONG // len(unit))):
        assert seconds(lambda text=text: program_of(text, example, goes_on=True)) < LIMIT_S  # type: ignore[misc]
    assert len(program_of("    x\n" * MAX_LENGTH, example, goes_on=True)) > MAX_LENGTH
    assert program_of("x" * LONG + "\n```\ny = 1\n```\n", example, goes_on=False).endswith("y = 1\n")


def test_a_program_is_parsed_in_the_sandbox() -> None:
    """Parsing takes 25 ms for this one, and other texts make the parser take much memory."""
    task = task_of("code")
    example = {"prompt": "Add.", "test_list": ["assert True"]}
    for program, parsed in (("a;" * (MAX_LENGTH // 2), True), ("(" * MAX_LENGTH, False), ("x = \0", False)):
        task.score(program, example)  # the sandbox starts with the first one
        score = task.score(program, example)
        assert score.parsed is parsed
        assert score.reward == 0
        assert seconds(lambda program=program: task.score(program, example)) < LIMIT_S  # type: ignore[misc]
    assert task.score("return", example).parsed, "it can be parsed, but not compiled"


@pytest.mark.parametrize("end", ["1+" * 499 + "x1", "+".join(f"1/{99991 + 2 * i}" for i in range(110)), "(1/7-" * 200])
def test_a_calculator(end: str) -> None:
    task = task_of("env:countdown_calculator")
    assert isinstance(task, EnvTask)
    text = "x" * (LONG - len(end)) + end + "="

    def play() -> None:
        task._kept.clear()
        task.play({"numbers": [1, 2], "target": 3}, 0, [text])

    assert seconds(play) < LIMIT_S


def test_what_a_calculator_computes_is_as_before() -> None:
    from esmpi.tasks.environments.countdown_calculator import _value_before

    for text in ("so 44 + 19", "x1/3", "(1", "", "1 + 2\n3*3", "2 * (3 + 4) "):
        end = text[len(text.rstrip("-+*/()0123456789 \t")) :]
        try:
            value = str(evaluate(end))
        except ValueError:
            value = ""
        assert _value_before(text) == value
    assert _value_before("so 44 + 19") == "63"


def _echo(text: str) -> Any:
    return text


class WithTools(Environment):
    tools = (_echo,)

    def reset(self, example: Example, seed: int) -> str:
        return "x"

    def step(self, completion: str) -> str:
        return completion


CALL = '<tool_call>{"name": "_echo", "arguments": {"text": "x"}}</tool_call>'


@pytest.mark.parametrize("text", repeated("<tool_call>", "<tool_call></tool_call>", CALL, "{", '{"a":'))
def test_calls_of_tools(text: str) -> None:
    environment = WithTools()
    assert seconds(lambda: [result_of(environment, call) for call in calls_in(text)]) < LIMIT_S


def test_many_calls_are_not_made() -> None:
    environment = WithTools()
    assert [result_of(environment, call) for call in calls_in(CALL * MAX_CALLS)] == ["x"] * MAX_CALLS
    [said] = [result_of(environment, call) for call in calls_in(CALL * (MAX_CALLS + 1))]
    assert said == "error: there are 101 calls, more than 100, and none of them was made"


@pytest.mark.parametrize("name", ["\ud800", "x" * (MAX_TAGGED_TEXT // 2)], ids=["half a character", "long"])
def test_an_error_that_quotes_the_model_is_a_text(name: str) -> None:
    text = json.dumps({"name": "_echo", "arguments": {name: 1}})
    [said] = [result_of(WithTools(), call) for call in calls_in(f"<tool_call>{text}</tool_call>")]
    assert said.encode().startswith(b"error: ")
    assert len(said) < 11_000
