"""Environments: what follows a completion, and what an episode is worth, as a function of what was said."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esmpi.errors import UserError
from esmpi.tasks import Score, make_task
from esmpi.tasks.env import EnvConfig, EnvTask
from esmpi.tasks.environments.wordle import WORDS, compare

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


def made(name: str, **keys: Any) -> EnvTask:
    task = make_task(EnvConfig(name=f"env:{name}", **keys))
    assert isinstance(task, EnvTask)
    return task


def test_an_episode_goes_on_until_its_environment_ends_it(own: Path) -> None:
    task = made(f"{own}:Counter")
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
    task = made(f"{own}:Chatty", chat_format="model")
    conversation = task.play({"count": 2}, 0, ["one"])
    assert [turn["role"] for turn in conversation] == ["system", "user", "assistant", "user"]
    assert [turn["content"] for turn in conversation][2:] == ["one", "1 left"]
    texts = made(f"{own}:Counter", chat_format="model", system="Be good.").play({"count": 2}, 0, ["one"])
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
    assert between in str(made(f"{own}:Counter", chat_format=chat_format).play({"count": 2}, 0, ["one"]))


def test_limits_end_an_episode_with_what_it_is_worth_by_then(own: Path) -> None:
    task = made(f"{own}:Counter", max_turns=2)
    worth = Score(reward=0.25 + 0.25 - 1, correct=False, parsed=False, figures={"turns": 2.0})
    assert task.play({"count": 5}, 0, ["a", "b"]) == worth
    task = made(f"{own}:Counter")
    task.play({"count": 5}, 0, [])
    assert task.play({"count": 5}, 0, ["a", "b"], is_over=True) == worth
    assert task.play({"count": 2}, 0, ["a", "b"], is_over=True) == Score(
        reward=1.25, correct=True, figures={"turns": 2.0}
    ), "an episode that is over anyway is no other for a limit"


def test_the_state_is_kept_and_a_lost_one_is_made_again(own: Path) -> None:
    task = made(f"{own}:Counter")
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
    fresh = made(f"{own}:Counter")
    assert fresh.play({"count": 9}, 7, said) == task.play({"count": 9}, 7, said)


def test_what_is_kept_is_bounded(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esmpi.tasks.env._MOST_CHARACTERS", 100)
    task = made(f"{own}:Counter")
    for seed in range(50):
        task.play({"count": 9}, seed, [])
    assert 0 < task._length == sum(one.length for episodes in task._kept.values() for one in episodes) <= 100
    assert task.play({"count": 9}, 0, ["a"]) == "Count to 9.a\n8 left\n", "played again"
    for seed in range(50):
        task.play({"count": 1}, seed, [])
        task.play({"count": 1}, seed, ["a"])
    assert task._length == sum(one.length for episodes in task._kept.values() for one in episodes)


def test_tools_are_described_called_and_answered(own: Path) -> None:
    task = made(f"{own}:Weather", chat_format="model")
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
    [said] = made(f"{own}:Weather", chat_format="model").play({"city": "Rome"}, 0, [call])[-1:]
    assert isinstance(said, dict)
    assert re.match(result, said["content"])


def test_a_text_conversation_has_the_tools_in_its_system_text(own: Path) -> None:
    task = made(f"{own}:Weather", chat_format="chatml", system="Be good.")
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
            made(name)
    with pytest.raises(UserError, match=r"task\.params: env:wordle does not take \{'guesses': 3\}"):
        made("wordle", params={"guesses": 3})
    with pytest.raises(ValueError, match=r"no episode can begin with \{\}: .*count"):
        made(f"{own}:Counter").check({})
    with pytest.raises(ValueError, match=r"set task\.chat_format=model, not none"):
        made(f"{own}:Chatty").check({"count": 1})


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
    task = made(f"{path}:Doubtful")
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


PROGRAM = '''
import asyncio

train = [{"question": "2+2"}, {"question": "3+3"}]
calls = 0


async def solve(client, example, times=2):
    """Ask for drafts, perhaps at the same time, then for the best of them."""
    global calls
    calls += 1
    await asyncio.sleep(0)
    texts = [f"{example['question']}, {i}" for i in range(times)]
    asked = [client.chat.completions.create(model="x", messages=[{"role": "user", "content": text}]) for text in texts]
    texts = [reply.choices[0].message.content for reply in await asyncio.gather(*asked)]
    best = await client.complete([{"role": "user", "content": "Best of " + " and ".join(texts)}])
    if best == "fail":
        raise RuntimeError("as told")
    return {"reward": len(best), "correct": best == texts[0], "drafts": times}


async def silent(client, example):
    return 1.0
'''


def test_a_program_asks_the_model(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    task = made(f"{path}:solve", chat_format="model", params={"times": 2})
    [example, _] = task.problems("train")
    task.check(example)
    calls = task._type.module.calls  # type: ignore[attr-defined]
    said: list[str] = []
    asked = []
    for completion in ("four", "five", "four"):
        [turn] = task.play(example, 0, said)
        assert isinstance(turn, dict)
        asked.append(turn["content"])
        said.append(completion)
    assert asked == ["2+2, 0", "2+2, 1", "Best of four and five"], "each is a conversation of its own"
    assert task.play(example, 0, said) == Score(reward=4.0, correct=True, figures={"turns": 3.0, "drafts": 2.0})
    assert task._type.module.calls == calls + 1, "the program goes on where it was"  # type: ignore[attr-defined]
    assert task.play(example, 0, ["four", "five", "five"]) == Score(
        reward=4.0, correct=False, figures={"turns": 3.0, "drafts": 2.0}
    ), "from its beginning"
    with pytest.raises(RuntimeError, match="as told"):
        task.play(example, 0, ["four", "five", "fail"])
    limited = made(f"{path}:solve", chat_format="model", max_turns=2)
    assert limited.play(example, 0, ["four", "five"]) == Score(reward=0.0, correct=False, figures={"turns": 2.0})
    with pytest.raises(ValueError, match="returned without asking the model"):
        made(f"{path}:silent", chat_format="model").check(example)


CHAINS = """
import asyncio

async def chain(client, name):
    said = ""
    for i in range(3):
        said = await client.complete([{"role": "user", "content": f"{name}{i}{said}"}])
    return said

async def solve(client, example):
    both = await asyncio.gather(chain(client, "a"), chain(client, "b"))
    reply = await client.chat.completions.create(messages=[{"role": "user", "content": " ".join(both)}])
    messages = [{"role": "user", "content": "x"}, reply.choices[0].message]
    await client.complete(messages)
    return 1
"""


def test_what_a_program_asks_depends_on_no_other_episode(tmp_path: Path) -> None:
    path = tmp_path / "chains.py"
    path.write_text(CHAINS, encoding="utf-8")

    def asked(others: int) -> list[Any]:
        task = made(f"{path}:solve", chat_format="model")
        found, said = [], []
        for turn in range(8):
            for number in range(others):
                task.play({"number": number}, 0, [str(i) for i in range(turn)])
            found.append(task.play({"number": -1}, 0, said))
            said.append(f"-{turn}")
        return found

    alone = asked(0)
    assert [turns[-1]["content"][:2] for turns in alone[:6]] == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert alone[7] == [{"role": "user", "content": "x"}, {"role": "assistant", "content": "-6"}]
    assert asked(5) == alone


def test_an_environment_cannot_change_its_parameters(tmp_path: Path) -> None:
    path = tmp_path / "collects.py"
    path.write_text(
        "import esmpi\n\nclass Collects(esmpi.Environment):\n"
        "    def __init__(self, seen): self.seen = seen\n"
        "    def reset(self, example, seed): self.seen.append(1); return str(len(self.seen))\n"
        "    def step(self, completion): return 0\n"
    )
    task = made(f"{path}:Collects", params={"seen": []})
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
        made(f"{path}:Says", chat_format="model").play({}, 0, [answer])


@pytest.mark.parametrize("first", ["None", "[]", "[{'role': 'user'}]", "'x' * 200_000", "'\\ud800'"])
def test_an_episode_that_cannot_begin_is_told_before_the_run(tmp_path: Path, first: str) -> None:
    path = tmp_path / "says.py"
    path.write_text(ANSWERS.replace('return "?"', f"return {first}"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no episode can begin with \{\}"):
        made(f"{path}:Says", chat_format="model").check({})


def test_a_tool_that_cannot_be_used_is_told(own: Path) -> None:
    text = own.read_text().replace('return f"sun in {city} for {days}"', "return {(1, 2): object()}")
    own.write_text(text)
    call = '{"name": "weather", "arguments": {"city": "R"}}'
    said = made(f"{own}:Weather", chat_format="model").play({"city": "R"}, 0, [call])
    assert isinstance(said, list)
    assert said[-1]["content"].startswith("error: the result of weather is no text")
    own.write_text(text.replace("    def weather", "    async def weather"))
    with pytest.raises(UserError, match="tools: weather is a coroutine"):
        made(f"{own}:Weather")


def test_a_calculator_writes_the_values() -> None:
    task = made("countdown_calculator", params={"num_numbers": [3], "operators": "+-"})
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
    task = made("sudoku_moves")
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
    task = made("wordle", params={"num_guesses": 3})
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
