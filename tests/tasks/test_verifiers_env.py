"""Environments of the library verifiers run unchanged, as programs that ask by the endpoint."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import require

from esmpi.errors import UserError
from esmpi.tasks import Score, make_task
from esmpi.tasks.env import EnvConfig, EnvTask

COUNT_UP = '''
import verifiers as vf
from datasets import Dataset


class CountUp(vf.MultiTurnEnv):
    """The user says a number, and the assistant the one after it."""

    async def setup_state(self, state, **kwargs):
        state["right"] = 0
        return state

    async def env_response(self, messages, state, **kwargs):
        wanted = int(messages[-2]["content"].split()[-1]) + 1
        state["right"] += str(wanted) in messages[-1]["content"]
        return [{"role": "user", "content": str(wanted)}], state


def right_numbers(state, **kwargs):
    return state["right"] / 2


def says_little(completion, **kwargs):
    return 1.0 / (1 + sum(len(turn["content"]) for turn in completion if turn["role"] == "assistant"))


def load_environment(num_turns=3):
    rows = [{"question": f"Count on from {i}", "answer": str(i + 1)} for i in range(6)]
    rubric = vf.Rubric(funcs=[right_numbers, says_little], weights=[1.0, 0.5])
    return CountUp(
        dataset=Dataset.from_list(rows[:4]),
        eval_dataset=Dataset.from_list(rows[4:]),
        rubric=rubric,
        system_prompt="Count.",
        max_turns=num_turns,
    )
'''
ONE_TURN = """
import verifiers as vf
from datasets import Dataset


def load_environment():
    parser = vf.XMLParser(["thought", "answer"])

    def is_right(completion, answer, info, **kwargs):
        return float(parser.parse_answer(completion) == answer) * info["worth"]

    rubric = vf.Rubric(funcs=[is_right, parser.get_format_reward_func()], weights=[1.0, 0.1], parser=parser)
    rows = [{"question": f"{i} + 1", "answer": str(i + 1), "info": {"worth": 0.5}} for i in range(3)]
    return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), rubric=rubric, parser=parser)
"""

TOOLS = '''
import verifiers as vf
from datasets import Dataset


def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: A number.
        b: Another one.
    """
    return a * b


def is_right(completion, answer, **kwargs):
    return float(completion[-1]["content"] == answer)


def load_environment():
    rubric = vf.ToolRubric(tools=[multiply])
    rubric.add_reward_func(is_right)
    rows = [{"question": "12 * 34", "answer": "408"}]
    return vf.ToolEnv(dataset=Dataset.from_list(rows), tools=[multiply], rubric=rubric, max_turns=4)
'''


@pytest.fixture(scope="module")
def _environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    try:
        import verifiers  # noqa: F401
    except ImportError:
        require("verifiers", False, "pip install 'esmpi[env]'")
    folder = tmp_path_factory.mktemp("environments")
    names = {"esmpi_test_count_up": COUNT_UP, "esmpi_test_one_turn": ONE_TURN, "esmpi_test_tools": TOOLS}
    for name, text in names.items():
        Path(folder, f"{name}.py").write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def made(name: str, **keys: Any) -> EnvTask:
    task = make_task(EnvConfig(name=f"env:verifiers:{name}", chat_format="model", **keys))
    assert isinstance(task, EnvTask)
    return task


@pytest.mark.usefixtures("_environments")
def test_several_turns() -> None:
    task = made("esmpi-test-count-up", params={"num_turns": 2})
    example, *others = task.problems("train")
    assert len(others) == 3
    assert [one["answer"] for one in task.problems("eval")] == ["5", "6"]
    task.check(example)
    first = [{"role": "system", "content": "Count."}, {"role": "user", "content": "Count on from 0"}]
    assert task.play(example, 0, []) == first
    said = [{"role": "assistant", "content": "so 1"}, {"role": "user", "content": "1"}]
    assert task.play(example, 0, ["so 1"]) == [*first, *said]
    figures = {"turns": 2.0, "right_numbers": 0.5, "says_little": 0.2}
    for again in range(2):  # where it was, and from its beginning
        assert task.play(example, again, ["so 1"]) == [*first, *said]
        known = made("esmpi-test-count-up", params={"num_turns": 2}) if again else task
        assert known.play(example, again, ["so 1", ""]) == Score(reward=0.6, correct=False, figures=figures)


@pytest.mark.usefixtures("_environments")
def test_one_turn_with_a_parser_and_info() -> None:
    task = made("esmpi-test-one-turn", correct_from=0.6)
    example = task.problems("train")[1]
    right = "<thought>\nx\n</thought>\n<answer>\n2\n</answer>"
    score = task.play(example, 0, [right])
    assert isinstance(score, Score)
    assert score.reward == pytest.approx(0.6)
    assert score.correct
    assert score.figures["is_right"] == 0.5
    wrong = task.play(example, 0, [right.replace("2", "3")])
    assert isinstance(wrong, Score)
    assert wrong.reward == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"has no data set for this: set data\.eval=split"):
        task.problems("eval")


@pytest.mark.usefixtures("_environments")
def test_tools_are_called() -> None:
    task = made("esmpi-test-tools")
    [example] = task.problems("train")
    task.check(example)
    [system, user] = task.play(example, 0, [])
    assert isinstance(system, dict)
    assert "Multiply two numbers." in system["content"]
    assert user == {"role": "user", "content": "12 * 34"}
    said = '<tool_call>\n{"name": "multiply", "arguments": {"a": 12, "b": 34}}\n</tool_call>'
    result = {"role": "user", "content": "<tool_response>\n408\n</tool_response>"}
    assert task.play(example, 0, [said]) == [system, user, {"role": "assistant", "content": said}, result]
    score = task.play(example, 0, [said, "408"])
    assert isinstance(score, Score)
    assert score.figures == {"turns": 2.0, "total_tool_calls": 1.0, "multiply_calls": 1.0, "is_right": 1.0}
    assert score.reward == 1.0
    wrong = task.play(example, 0, [said.replace("multiply", "divide"), "?"])
    assert isinstance(wrong, Score), "the model is told by the library that there is no such tool"
    assert wrong.reward == 0


@pytest.mark.usefixtures("_environments")
def test_what_cannot_be_loaded_is_told() -> None:
    with pytest.raises(UserError, match=r"task\.name: verifiers cannot load none-such with \{\}: .*none-such"):
        made("none-such")
    with pytest.raises(UserError, match=r'verifiers cannot load esmpi-test-count-up with \{"turns": 3\}: .*turns'):
        made("esmpi-test-count-up", params={"turns": 3})
