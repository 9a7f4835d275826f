"""Rewards as others have them: TRL's own, unchanged, and ours in the forms of its documentation and of public code."""

import asyncio
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import require

from esmpi.errors import UserError
from esmpi.tasks import Calls, Progress, Sample, Score, make_task
from esmpi.tasks.python import PythonTaskConfig

TRL = """\
from trl.rewards import accuracy_reward, reasoning_accuracy_reward, think_format_reward
from trl.rewards import get_cosine_scaled_reward, get_repetition_penalty_reward, get_soft_overlong_punishment

cosine = get_cosine_scaled_reward(max_len=30)
repetition = get_repetition_penalty_reward(2, -1.0)
overlong = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=10)
"""
NAMES = (
    *("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"),
    *("cosine", "repetition", "overlong"),
)
SOLVED = r"<think>" + "a half of a half </think> It is $\\boxed{\\frac{1}{4}}$."
TEXTS = (SOLVED, r"It is $\boxed{\frac{1}{3}}$.", "and and and and and and")
EXAMPLE = {"prompt": "What is half of a half?", "solution": r"$\frac{1}{4}$"}


def scores(
    file: Path, function: str, texts: Sequence[str], examples: Sequence[dict[str, Any]], **keys: Any
) -> list[Score | BaseException]:
    task = make_task(PythonTaskConfig(name=f"{file}:{function}", **keys))
    samples = []
    for text, example in zip(texts, examples, strict=True):
        task.check(example)
        samples.append(Sample(completion=text, example=example, tokens=tuple(range(len(text.split())))))
    progress = Progress(generation=3, num_generations=9)

    async def score_async() -> Sequence[Score | BaseException]:
        return await task.score_async(samples, progress, Calls(4, 5.0))

    return list(asyncio.run(score_async()) if task.is_async else task.score_together(samples, progress))


def test_the_rewards_of_trl_as_they_are(tmp_path: Path) -> None:
    require("trl", importlib.util.find_spec("trl") is not None, "pip install 'esmpi[dev]'")
    file = tmp_path / "own.py"
    file.write_text(TRL, encoding="utf-8")
    found = scores(
        file, "cosine", TEXTS, [EXAMPLE] * 3, rewards=dict.fromkeys(NAMES, 1.0), chat_format="model", correct_from=3.0
    )
    there: dict[str, Any] = {}
    exec(TRL, there)
    columns = {
        "prompts": [[{"role": "user", "content": EXAMPLE["prompt"]}]] * 3,
        "completions": [[{"role": "assistant", "content": text}] for text in TEXTS],
        "completion_ids": [list(range(len(text.split()))) for text in TEXTS],
        "solution": [EXAMPLE["solution"]] * 3,
    }
    known = {name: there[name](**columns) for name in NAMES}
    assert known["accuracy_reward"] == [1, 0, 0]
    assert known["think_format_reward"] == [1, 0, 0]
    for place, score in enumerate(found):
        assert isinstance(score, Score), score
        assert score.figures == {name: known[name][place] for name in NAMES}
        assert score.reward == pytest.approx(sum(known[name][place] for name in NAMES))
        assert score.correct == (place == 0)
    [first, *_] = found
    assert isinstance(first, Score)
    assert first.notes["solution"] == EXAMPLE["solution"]
    [unknown] = scores(file, "accuracy_reward", ["4"], [{"prompt": "?", "solution": ""}], chat_format="model")
    assert isinstance(unknown, Score)
    assert unknown.reward is None, "TRL skips what has no solution that it can read"


FORMS = {
    # as in TRL's documentation
    "tokens": "def reward(completion_ids, **kwargs):\n    return [len(ids) * 1.0 for ids in completion_ids]\n",
    "characters": "def reward(completions, **kwargs):\n    return [float(len(text)) for text in completions]\n",
    "a pattern, in messages": (
        "import re\n"
        "def reward(completions, **kwargs):\n"
        "    said = [messages[0]['content'] for messages in completions]\n"
        "    return [1.0 if re.search(r'^<a>\\d+</a>$', text) else 0.0 for text in said]\n"
    ),
    "a column": (
        "import re\n"
        "def reward(completions, ground_truth, **kwargs):\n"
        "    found = [re.search(r'<a>(.*?)</a>', text) for text in completions]\n"
        "    return [1.0 if m and m.group(1) == truth else 0.0 for m, truth in zip(found, ground_truth)]\n"
    ),
    "a coroutine": (
        "import asyncio\n"
        "async def reward(prompts, completions, **kwargs):\n"
        "    await asyncio.sleep(0.001)\n"
        "    return [1.0 if text else 0.0 for text in completions]\n"
    ),
    "logging": (
        "def reward(completions, ground_truth, log_extra=None, log_metric=None, **kwargs):\n"
        "    right = [truth in text for text, truth in zip(completions, ground_truth)]\n"
        "    if log_extra:\n"
        "        log_extra('truth', list(ground_truth))\n"
        "    if log_metric:\n"
        "        log_metric('accuracy', sum(right) / len(right))\n"
        "    return [float(one) for one in right]\n"
    ),
    "the trainer's state": (
        "def reward(completions, trainer_state, **kwargs):\n"
        "    done = trainer_state.global_step / trainer_state.max_steps\n"
        "    return [done * len(text) for text in completions]\n"
    ),
    # as in scripts for GRPO: the first question is printed, and samples go to a file
    "the last message of the first prompt": (
        "def reward(prompts, completions, ground_truth, **kwargs) -> list[float]:\n"
        "    said = [messages[0]['content'] for messages in completions]\n"
        "    print('-' * 20, f'Question: {prompts[0][-1][\"content\"]}', f'Response: {said[0]}')\n"
        "    return [2.0 if truth in text else 0.0 for text, truth in zip(said, ground_truth)]\n"
    ),
    "a global that counts, and now and then a file": (
        "import os, random\n"
        "CALLS = 0\n"
        "def reward(completions, ground_truth, numbers, **kwargs):\n"
        "    global CALLS\n"
        "    CALLS += 1\n"
        "    rewards = []\n"
        "    for text, truth, own in zip(completions, ground_truth, numbers):\n"
        "        try:\n"
        "            if random.random() < 0.1:\n"
        "                with open(os.path.join(os.path.dirname(__file__), 'samples'), 'a') as file:\n"
        "                    file.write(text)\n"
        "            equation = text.removeprefix('<a>').removesuffix('</a>')\n"
        "            value = eval(equation, {'__builtins__': None}, {})\n"
        "            rewards.append(1.0 if value == int(truth) and sorted(own) == [4, 17] else 0.0)\n"
        "        except Exception:\n"
        "            rewards.append(0.0)\n"
        "    return rewards\n"
    ),
    # as in libraries of rewards: made by a function, and relative to the others of the batch
    "made by a function": (
        "import math\n"
        "def get_reward(longest=8):\n"
        "    def scaled(completions, ground_truth, **kwargs):\n"
        "        least = min(map(len, completions))\n"
        "        return [math.cos(min(1, (len(c) - least) / longest) * math.pi) for c in completions]\n"
        "    return scaled\n"
        "reward = get_reward()\n"
    ),
    # as in verl: one completion, with further arguments that have defaults; some have a dict as the ground truth
    "of verl": (
        "def reward(solution_str, ground_truth, method='strict', format_score=0.1, score=1.):\n"
        "    if '<a>' not in solution_str:\n"
        "        return 0\n"
        "    return score if f'>{ground_truth}<' in solution_str else format_score\n"
    ),
}
SAID = ("<a>21</a>", "<a>17+4</a>", "")
EXPECTED = {
    **{"tokens": [1, 1, 0], "characters": [9, 11, 0], "a pattern, in messages": [1, 0, 0], "a column": [1, 0, 0]},
    **{"a coroutine": [1, 1, 0], "logging": [1, 0, 0], "the trainer's state": [3, 11 / 3, 0]},
    **{"the last message of the first prompt": [2, 0, 0], "a global that counts, and now and then a file": [1, 1, 0]},
    **{"made by a function": [-1, -1, 1], "of verl": [1, 0.1, 0]},
}


@pytest.mark.parametrize("form", FORMS)
def test_rewards_in_the_forms_of_public_code(tmp_path: Path, form: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(FORMS[form], encoding="utf-8")
    example = {"prompt": "What is 17 + 4?", "ground_truth": "21", "numbers": [4, 17]}
    keys: dict[str, Any] = {"chat_format": "model"} if "message" in form else {}
    found = scores(file, "reward", SAID, [example] * 3, **keys)
    for score, reward in zip(found, EXPECTED[form], strict=True):
        assert isinstance(score, Score), score
        assert score.reward == pytest.approx(reward)
        if form == "logging":
            assert (score.figures, score.notes) == ({"accuracy": 1 / 3}, {"truth": "21"})


def test_several_tasks_with_a_reward_each(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "def mathematics(prompts, completions, task, **kwargs):\n"
        "    return [float('4' in c) if t == 'math' else None for c, t in zip(completions, task)]\n"
        "def code(prompts, completions, task, **kwargs):\n"
        "    return [float('def' in c) if t == 'code' else None for c, t in zip(completions, task)]\n",
        encoding="utf-8",
    )
    examples = [{"prompt": "?", "task": task} for task in ("math", "code", "poems")]
    weights = {"mathematics": 1.0, "code": 0.5}
    found = scores(file, "code", ["4", "def f(): pass", "O"], examples, rewards=weights)
    assert [score.reward for score in found if isinstance(score, Score)] == [1.0, 0.5, None]
    assert [dict(score.figures) for score in found if isinstance(score, Score)] == [{"mathematics": 1}, {"code": 1}, {}]


@pytest.mark.parametrize(
    ("line", "chat_format", "said"),
    [
        ("completion[0]['content']", "none", "completions are texts, as prompts are. A reward for messages needs "),
        (
            "re.sub('a', 'b', completion)",
            "model",
            "each completion is a list with one message, as prompts are messages",
        ),
        ("len(completion + 1)", "none", ""),
    ],
)
def test_a_reward_for_the_other_kind_of_prompts_is_told(tmp_path: Path, line: str, chat_format: Any, said: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        f"import re\ndef reward(completions, **kwargs):\n    return [{line} for completion in completions]\n"
    )
    [error] = scores(file, "reward", ["x"], [{"prompt": "p"}], chat_format=chat_format)
    assert isinstance(error, TypeError)
    assert (said in str(error)) if said else ("completions are" not in str(error))
    assert error.__traceback__ is not None


def test_a_module_of_a_package_is_told(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("from .utils import x\n")
    with pytest.raises(UserError, match="It is a module of a package: import what you need from it in a file of your"):
        make_task(PythonTaskConfig(name=f"{file}:reward"))
