"""Tasks of a user's own, which tests write and make."""

from collections.abc import Callable
from typing import Any

import pytest

from esmpi.config.reader import parse_config
from esmpi.errors import UserError
from esmpi.tasks import Task, TaskConfig, make_task
from esmpi.tasks.env import EnvConfig, EnvTask

EXAMPLE = {"prompt": "Say four.", "target": "4", "length": 3}
MESSAGES = [{"role": "user", "content": "Hi."}]

Write = Callable[..., str]


def section(name: str, **keys: Any) -> TaskConfig:
    tree = {"run": {"name": "x"}, "model": {"path": "x"}, "es": {"generations": 1}, "task": {"name": name} | keys}
    return parse_config(tree).task


def make(name: str, **keys: Any) -> Task:
    return make_task(section(name, **keys))


def complaint(name: str, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        make(name, **keys)
    text = str(caught.value)
    assert "\n" not in text
    return text


SHAPES = {
    "esmpi": "def reward(completion, example):\n    return float(completion == example['target'])\n",
    "esmpi, by position": "def reward(text, row, scale=1):\n    return scale * float(text == row['target'])\n",
    "ES-at-Scale": "def reward(output, target):\n    return ('label', float(output == target))\n",
    "TRL": (
        "def reward(prompts, completions, target, **kwargs):\n"
        "    assert prompts == ['Say four.'] and kwargs['length'] == [3], (prompts, kwargs)\n"
        "    others = ['completion_ids', 'length', 'log_extra', 'log_metric', 'trainer_state']\n"
        "    assert sorted(kwargs) == others, kwargs\n"
        "    return [float(c == t) for c, t in zip(completions, target, strict=True)]\n"
    ),
    "TRL, with what it needs": (
        "def reward(completions, target):\n    return [float(c == t) for c, t in zip(completions, target)]\n"
    ),
    "an object": (
        "class Reward:\n"
        "    def __call__(self, completion, example):\n"
        "        return float(completion == example['target'])\n"
        "reward = Reward()\n"
    ),
}


def make_environment(name: str, **keys: Any) -> EnvTask:
    task = make_task(EnvConfig(name=f"env:{name}", **keys))
    assert isinstance(task, EnvTask)
    return task
