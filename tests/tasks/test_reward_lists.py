"""Rewards that take lists, as TRL and esmpi give them, and what their rewards are worth together."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from own_tasks import Write, complaint, make

from esmpi.tasks import Progress, Sample, Score

EXAMPLES: list[dict[str, Any]] = [
    {"prompt": "a", "answer": "1", "solution": "s"},
    {"prompt": "b", "answer": "2", "more": [1]},
    {"prompt": "b", "answer": "2", "more": [1]},
]


def samples(*texts: str) -> list[Sample]:
    return [
        Sample(completion=text, example=example, tokens=tuple(range(len(text))))
        for text, example in zip(texts, EXAMPLES, strict=True)
    ]


def score(task: Any, *texts: str, generation: int = 0) -> list[Any]:
    scores: Sequence[Any] = task.score_together(samples(*texts), Progress(generation=generation, num_generations=9))
    return list(scores)


def rewards(task: Any, *texts: str, generation: int = 0) -> list[Any]:
    return [one.reward if isinstance(one, Score) else one for one in score(task, *texts, generation=generation)]


def test_what_trl_gives(write: Write, tmp_path: Path) -> None:
    text = (
        "import json\n"
        "def reward(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, **columns):\n"
        "    columns['more'][1].append(2)\n"
        "    log_metric('num', len(prompts))\n"
        "    log_metric('num', 5)\n"
        "    log_extra('read', [{1, 2}, 'two', None])\n"
        f"    with open({str(tmp_path / 'seen')!r}, 'w') as file:\n"
        "        json.dump([prompts, completions, completion_ids, trainer_state.global_step,\n"
        "                   trainer_state.max_steps, columns], file)\n"
        "    return [float(len(c) == max(map(len, completions))) for c in completions]\n"
    )
    task = make(write(text))
    assert (task.scope, task.needs_tokens) == ("batch", True)
    found = score(task, "x", "xyz", "xy", generation=4)
    assert [one.reward for one in found] == [0, 1, 0], "the longest of the batch"
    assert [dict(one.figures) for one in found] == [{"num": 4}] * 3
    assert [dict(one.notes) for one in found] == [{"read": "{1, 2}"}, {"read": "two"}, {"read": None}]
    prompts, completions, ids, step, steps, columns = json.loads((tmp_path / "seen").read_text())
    assert prompts == ["a", "b", "b"]
    assert completions == ["x", "xyz", "xy"]
    assert ids == [[0], [0, 1, 2], [0, 1]]
    assert (step, steps) == (4, 9)
    # every column that any of them has; and what the reward changed is its own
    assert columns == {"answer": ["1", "2", "2"], "solution": ["s", None, None], "more": [None, [1, 2], [1]]}
    assert EXAMPLES[1]["more"] == [1]


def test_what_it_does_not_take_it_does_not_get(write: Write) -> None:
    task = make(write("def reward(completions, answer):\n    return [c == a for c, a in zip(completions, answer)]\n"))
    assert not task.needs_tokens
    assert rewards(task, "1", "1", "2") == [1, 0, 1]


def test_a_reward_of_tokens_alone(write: Write) -> None:
    task = make(
        write("def reward(completion_ids, **kwargs):\n    return [float(len(ids)) for ids in completion_ids]\n")
    )
    assert task.needs_tokens
    assert rewards(task, "x", "xyz", "xy") == [1, 3, 2]


def test_the_prompt_beside_one_completion(write: Write) -> None:
    task = make(write("def reward(prompt, completion, example):\n    return len(prompt + completion)\n"))
    assert (task.scope, rewards(task, "x", "xx", "")) == ("completion", [2, 3, 1])


def test_lists_of_esmpis_own(write: Write) -> None:
    text = (
        "def reward(completions, examples):\n"
        "    best = max(completions)\n"
        "    return [{'reward': c == best, 'correct': c == e['answer'], 'length': len(c)} if c else None\n"
        "            for c, e in zip(completions, examples)]\n"
    )
    task = make(write(text), reward_scope="group")
    assert (task.scope, task.needs_tokens) == ("group", False)
    found = score(task, "1", "3", "")
    assert [(one.reward, one.correct, one.figures) for one in found[:2]] == [
        (0, True, {"length": 1}),
        (1, False, {"length": 1}),
    ]
    assert (found[2].reward, found[2].correct) == (None, False)


MIXED = (
    "def alone(completion, example):\n    return 1 / len(completion)\n"
    "def lists(completions, **kwargs):\n"
    "    return [None if c == 'n' else 'text' if c == 't' else len(completions) for c in completions]\n"
    "def wrong(completions, **kwargs):\n    return [1.0]\n"
)


def test_a_reward_of_one_completion_beside_one_of_all(write: Write) -> None:
    name = write(MIXED, "lists")
    task = make(name, rewards={"lists": 1, "alone": 4})
    assert rewards(task, "xx", "n", "xx") == [3 + 2, 4, 3 + 2]
    empty, text, good = rewards(task, "", "t", "xx")
    assert isinstance(empty, ZeroDivisionError), "it costs one completion"
    assert str(text) == "the reward of lists is 'text', not a number"
    assert good == 3 + 2
    said = "wrong returned 1 reward for 3 completions: it must return one for each"
    assert [str(one) for one in rewards(make(name, rewards={"lists": 1, "wrong": 1}), "x", "x", "x")] == [said] * 3


def test_a_scope_that_means_nothing_is_refused(write: Write) -> None:
    text = complaint(write(MIXED, "alone"), reward_scope="group")
    assert "task.reward_scope: has no effect: no reward of " in text
    assert text.endswith(" takes lists")


def test_chat_messages_are_the_rewards_own(write: Write) -> None:
    text = (
        "def reward(prompts, completions, **kwargs):\n"
        "    assert all(p == [{'role': 'user', 'content': e}] for p, e in zip(prompts, 'abb')), prompts\n"
        "    prompts[1].clear()\n"
        "    return [len(c[0]['content']) for c in completions]\n"
    )
    assert rewards(make(write(text), chat_format="model"), "x", "xx", "xxx") == [1, 2, 3]


@pytest.mark.parametrize("asynchronous", ["", "async "])
def test_a_coroutine_is_a_reward_of_any_shape(write: Write, asynchronous: str) -> None:
    for text, expected in (
        ("def reward(completion, example):\n    return len(completion)\n", [1, 2, 3]),
        ("def reward(completions, examples):\n    return [len(completions)] * len(examples)\n", [3, 3, 3]),
        ("def reward(output, answer):\n    return '', float(output == answer)\n", [0, 0, 0]),
    ):
        assert rewards(make(write(asynchronous + text)), "x", "xx", "xxx") == expected
