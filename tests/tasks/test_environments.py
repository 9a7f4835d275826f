"""Environments: what follows a completion, and what an episode is worth, as a function of what was said."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from own_tasks import make_environment

from esmpi.errors import UserError
from esmpi.tasks import Score

OWN = '''
import esmpi

class Counter(esmpi.Environment):
    """Say numbers up to the example's."""

    resets = 0
    steps = 0

    def __init__(self, bonus=0):
        self.bonus = bonus

    def reset(self, example, seed):
        Counter.resets += 1
        self.left, self.seed = example["count"], seed
        return f"Count to {example['count']}."

    def step(self, completion):
        Counter.steps += 1
        self.left -= 1
        if completion == "stop":
            return {"reward": self.bonus, "correct": False, "left": self.left}
        if self.left == 0:
            return 1.0
        return {"observation": f"{self.left} left", "reward": 0.25}

    def finish(self):
        return {"reward": -1, "parsed": False}


class Chatty(Counter):
    def reset(self, example, seed):
        return [{"role": "system", "content": "Be good."}, {"role": "user", "content": super().reset(example, seed)}]


class Weather(esmpi.Environment):
    def reset(self, example, seed):
        self.asked = []
        return "What is the weather in " + example["city"] + "?"

    def weather(self, city: str, days: int = 1) -> str:
        """Look the weather up.

        Args:
            city: The name of the city.
            days: Number of days.
        """
        self.asked.append(city)
        if city == "Atlantis":
            raise ValueError("it has sunk")
        return f"sun in {city} for {days}"

    tools = (weather,)

    def step(self, completion):
        return {"reward": float("sun" in completion), "asked": len(self.asked)}


class Lacking(esmpi.Environment):
    def reset(self, example, seed):
        return ""
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN, encoding="utf-8")
    return path


def test_an_episode_goes_on_until_its_environment_ends_it(own: Path) -> None:
    task = make_environment(f"{own}:Counter")
    example = {"count": 3}
    assert task.play(example, 0, []) == "Count to 3."
    assert task.play(example, 0, [" one"]) == "Count to 3. one\n2 left\n"
    assert task.play(example, 0, [" one", " two"]) == "Count to 3. one\n2 left\n two\n1 left\n"
    assert task.play(example, 0, [" one", " two", " three"]) == Score(
        reward=1.5, correct=True, figures={"turns": 3.0}
    ), "the rewards of turns are added up"
    assert task.play(example, 0, [" one", "stop"]) == Score(
        reward=0.25, correct=False, figures={"turns": 2.0, "left": 1.0}
    )


def test_messages_make_a_conversation(own: Path) -> None:
    task = make_environment(f"{own}:Chatty", chat_format="model")
    conversation = task.play({"count": 2}, 0, ["one"])
    assert [turn["role"] for turn in conversation] == ["system", "user", "assistant", "user"]
    assert [turn["content"] for turn in conversation][2:] == ["one", "1 left"]
    texts = make_environment(f"{own}:Counter", chat_format="model", system="Be good.").play({"count": 2}, 0, ["one"])
    assert texts == conversation


@pytest.mark.parametrize(
    ("chat_format", "between"),
    [
        ("chatml", "one<|im_end|>\n<|im_start|>user\n1 left<|im_end|>\n<|im_start|>assistant\n"),
        ("gemma", "one<end_of_turn>\n<start_of_turn>user\n1 left<end_of_turn>\n<start_of_turn>model\n"),
        (
            "llama3",
            "one<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n1 left<|eot_id|><|start_header_id|>assist",
        ),
    ],
)
def test_a_conversation_as_text_has_the_marks_of_its_form(own: Path, chat_format: Any, between: str) -> None:
    assert between in str(make_environment(f"{own}:Counter", chat_format=chat_format).play({"count": 2}, 0, ["one"]))


def test_limits_end_an_episode_with_what_it_is_worth_by_then(own: Path) -> None:
    task = make_environment(f"{own}:Counter", max_turns=2)
    worth = Score(reward=0.25 + 0.25 - 1, correct=False, parsed=False, figures={"turns": 2.0})
    assert task.play({"count": 5}, 0, ["a", "b"]) == worth
    task = make_environment(f"{own}:Counter")
    task.play({"count": 5}, 0, [])
    assert task.play({"count": 5}, 0, ["a", "b"], is_over=True) == worth
    assert task.play({"count": 2}, 0, ["a", "b"], is_over=True) == Score(
        reward=1.25, correct=True, figures={"turns": 2.0}
    ), "an episode that is over anyway is no other for a limit"


def test_the_state_is_kept_and_a_lost_one_is_made_again(own: Path) -> None:
    task = make_environment(f"{own}:Counter")
    counter = task._type
    said = ["a", "b", "c", "d"]
    for turns in range(5):
        task.play({"count": 9}, 7, said[:turns])
    assert (counter.resets, counter.steps) == (1, 4), "each turn is one step"
    # the same words in two episodes, and one of another seed
    for seed in (7, 8):
        task.play({"count": 9}, seed, [])
        task.play({"count": 9}, seed, [])
    steps = counter.steps
    assert [task.play({"count": 9}, 7, ["a"]) for _ in range(2)] == ["Count to 9.a\n8 left\n"] * 2
    assert counter.steps == steps + 2
    fresh = make_environment(f"{own}:Counter")
    assert fresh.play({"count": 9}, 7, said) == task.play({"count": 9}, 7, said)


def test_what_is_kept_is_bounded(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esmpi.tasks.env._MOST_CHARACTERS", 100)
    task = make_environment(f"{own}:Counter")
    for seed in range(50):
        task.play({"count": 9}, seed, [])
    assert 0 < task._length == sum(one.length for episodes in task._kept.values() for one in episodes) <= 100
    assert task.play({"count": 9}, 0, ["a"]) == "Count to 9.a\n8 left\n", "played again"
    for seed in range(50):
        task.play({"count": 1}, seed, [])
        task.play({"count": 1}, seed, ["a"])
    assert task._length == sum(one.length for episodes in task._kept.values() for one in episodes)


def test_tools_are_described_called_and_answered(own: Path) -> None:
    task = make_environment(f"{own}:Weather", chat_format="model")
    [schema] = task.tools
    assert schema["function"]["name"] == "weather"
    assert schema["function"]["parameters"]["required"] == ["city"]
    assert schema["function"]["parameters"]["properties"].keys() == {"city", "days"}
    example = {"city": "Rome"}
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'
    conversation = task.play(example, 0, [call])
    assert conversation[-2:] == [
        {"role": "assistant", "content": call},
        {"role": "tool", "content": "sun in Rome for 2"},
    ]
    assert task.play(example, 0, [call, "It is sun."]) == Score(
        reward=1.0, correct=True, figures={"turns": 2.0, "asked": 1.0}
    )


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ('{"name": "weather", "parameters": {"city": "Oslo"}}', "sun in Oslo for 1"),
        (
            '<tool_call>{"name": "weather", "arguments": {"city": "Atlantis"}}</tool_call>',
            "error: ValueError: it has sunk|error: it has sunk",
        ),
        ('<tool_call>{"name": "rain", "arguments": {}}</tool_call>', "error: there is no function 'rain'; .* weather"),
        (
            '<tool_call>{"name": "weather", "arguments": {"town": "x"}}</tool_call>',
            "error: missing a required argument",
        ),
        ("<tool_call>weather(Oslo)</tool_call>", "error: the call is no JSON"),
        ('<tool_call>["weather"]</tool_call>', "error: the call is no JSON object"),
        ('<tool_call>{"name": "__init__", "arguments": {}}</tool_call>', "error: there is no function '__init__'"),
    ],
)
def test_a_wrong_call_is_told_to_the_model(own: Path, call: str, result: str) -> None:
    [said] = make_environment(f"{own}:Weather", chat_format="model").play({"city": "Rome"}, 0, [call])[-1:]
    assert isinstance(said, dict)
    assert re.match(result, said["content"])


def test_a_text_conversation_has_the_tools_in_its_system_text(own: Path) -> None:
    task = make_environment(f"{own}:Weather", chat_format="chatml", system="Be good.")
    text = str(task.play({"city": "Rome"}, 0, ['<tool_call>{"name": "weather", "arguments": {"city": "R"}}']))
    assert text.startswith("<|im_start|>system\nBe good.\n\nYou may call functions.")
    assert json.dumps(task.tools[0]) in text
    assert "<|im_start|>user\n<tool_response>\nsun in R for 1\n</tool_response><|im_end|>" in text


def test_what_is_wrong_is_told(own: Path, tmp_path: Path) -> None:
    for name, message in (
        ("wordl", r"task\.name: no environment wordl: there are countdown_calculator, sudoku_moves, wordle"),
        (
            f"{own}:Counte",
            r"task\.name: .*own\.py has no class Counte that is a subclass of esmpi\.Environment.*Counter",
        ),
        (f"{own}:Lacking", r"task\.name: Lacking of .*own\.py lacks step"),
        (f"{tmp_path}/none.py:Counter", r"task\.name: no file .*none\.py"),
    ):
        with pytest.raises(UserError, match=message):
            make_environment(name)
    with pytest.raises(UserError, match=r"task\.params: env:wordle does not take \{'guesses': 3\}"):
        make_environment("wordle", params={"guesses": 3})
    with pytest.raises(ValueError, match=r"no episode can begin with \{\}: .*count"):
        make_environment(f"{own}:Counter").check({})
    with pytest.raises(ValueError, match=r"set task\.chat_format=model, not none"):
        make_environment(f"{own}:Chatty").check({"count": 1})


NONE = '''
import esmpi

class Doubtful(esmpi.Environment):
    """Gives the rewards that the example has, and notes when it is closed."""

    closed = []

    def reset(self, example, seed):
        self.rewards, self.number = list(example["rewards"]), example["number"]
        return "Go on."

    def step(self, completion):
        if completion == "raise":
            raise ValueError("as told")
        more = {"observation": "more"} if len(self.rewards) > 1 else {}
        return {"reward": self.rewards.pop(0), **more}

    def close(self):
        self.closed.append(self.number)
        if self.number == 99:
            raise OSError("cannot be closed")
'''


def test_none_counts_for_nothing_and_an_environment_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "none.py"
    path.write_text(NONE, encoding="utf-8")
    task = make_environment(f"{path}:Doubtful")
    closed: list[int] = task._type.closed  # type: ignore[attr-defined]
    for number, (rewards, known) in enumerate([([None, 1.5], 1.5), ([None, None], None), ([None], None), ([0.5], 0.5)]):
        example = {"rewards": rewards, "number": number}
        score = task.play(example, 0, ["x"] * len(rewards))
        assert score == Score(reward=known, correct=known == 1.5, figures={"turns": float(len(rewards))})
    assert closed == [0, 1, 2, 3]
    example = {"rewards": [1, 1], "number": 4}
    task.check(example)
    task.prompt(example)
    assert closed[4:] == [4, 4]
    with pytest.raises(ValueError, match="as told"):
        task.play(example, 0, ["x", "raise"])
    assert closed[6:] == [4]
    task.play(example, 0, ["x"])
    assert closed[7:] == [], "it goes on"
    task.play(example, 0, ["x"], is_over=True)
    assert closed[7:] == [4]
    last = task.play({"rewards": [1], "number": 99}, 0, ["x"])
    assert isinstance(last, Score)
    assert last.reward == 1, "what goes wrong in `close` changes nothing"


def test_an_environment_cannot_change_its_parameters(tmp_path: Path) -> None:
    path = tmp_path / "collects.py"
    path.write_text(
        "import esmpi\n\nclass Collects(esmpi.Environment):\n"
        "    def __init__(self, seen): self.seen = seen\n"
        "    def reset(self, example, seed): self.seen.append(1); return str(len(self.seen))\n"
        "    def step(self, completion): return 0\n"
    )
    task = make_environment(f"{path}:Collects", params={"seen": []})
    assert [task.play({}, seed, []) for seed in range(3)] == ["1"] * 3


ANSWERS = """
import esmpi

class Says(esmpi.Environment):
    def reset(self, example, seed):
        return "?"

    def step(self, completion):
        return eval(completion)
"""


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("None", "no text, list, number or dict"),
        ("[]", "no message"),
        ("['a']", "neither a text nor messages"),
        ("[{'role': 'tool'}]", "neither a text nor messages"),
        ("'\\ud800'", "no Unicode text"),
        ("'x' * 200_000", "200,000 characters in a turn, more than 100,000"),
        ("{'observation': 'a', 'append': 'b'}", "observation and append: at most one of them"),
        ("{'observation': 5}", "neither a text nor messages"),
        ("{'reward': 'high'}", "not a number"),
        ("{'reward': 1, 'correct': 'no'}", "not true or false"),
        ("{'reward': 1, 'correct': float('nan')}", "not true or false"),
        ("{'reward': 1, 'turns': 3}", "give it another name"),
    ],
)
def test_an_answer_that_is_none_is_told(tmp_path: Path, answer: str, message: str) -> None:
    path = tmp_path / "says.py"
    path.write_text(ANSWERS, encoding="utf-8")
    with pytest.raises((TypeError, ValueError), match=message):
        make_environment(f"{path}:Says", chat_format="model").play({}, 0, [answer])


@pytest.mark.parametrize("first", ["None", "[]", "[{'role': 'user'}]", "'x' * 200_000", "'\\ud800'"])
def test_an_episode_that_cannot_begin_is_told_before_the_run(tmp_path: Path, first: str) -> None:
    path = tmp_path / "says.py"
    path.write_text(ANSWERS.replace('return "?"', f"return {first}"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no episode can begin with \{\}"):
        make_environment(f"{path}:Says", chat_format="model").check({})


def test_a_tool_that_cannot_be_used_is_told(own: Path) -> None:
    text = own.read_text().replace('return f"sun in {city} for {days}"', "return {(1, 2): object()}")
    own.write_text(text)
    call = '{"name": "weather", "arguments": {"city": "R"}}'
    said = make_environment(f"{own}:Weather", chat_format="model").play({"city": "R"}, 0, [call])
    assert isinstance(said, list)
    assert said[-1]["content"].startswith("error: the result of weather is no text")
    own.write_text(text.replace("    def weather", "    async def weather"))
    with pytest.raises(UserError, match="tools: weather is a coroutine"):
        make_environment(f"{own}:Weather")
