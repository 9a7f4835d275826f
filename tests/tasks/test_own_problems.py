"""The problems of a user's own task: of its file, and of others."""

import json
from pathlib import Path
from typing import Any

import pytest
from own_tasks import SHAPES, Write, make

from esmpi.config.problems import DataConfig
from esmpi.data.problems import Problems, load_problems
from esmpi.errors import UserError


def load(name: str, **keys: Any) -> Problems:
    task = make(name)
    return load_problems(DataConfig(**{"batch_size": 1, "train": "builtin", "eval": "builtin"} | keys), task, 0)


ROWS = "[{'prompt': str(i), 'target': i} for i in range(6)]"
ITS_PROBLEMS = {
    "lists": f"train = {ROWS}\nevaluation = train[4:]\n",
    "functions": f"def train():\n    yield from {ROWS}\ndef evaluation():\n    return {ROWS}[4:]\n",
    "batches of a DataLoader": (
        "from torch.utils.data import DataLoader, Dataset\n"
        "class Pairs(Dataset):\n"
        "    def __init__(self, first, end):\n        self.rows = list(range(first, end))\n"
        "    def __len__(self):\n        return len(self.rows)\n"
        "    def __getitem__(self, i):\n        return str(self.rows[i]), self.rows[i]\n"
        "train = DataLoader(Pairs(0, 6), batch_size=4)\n"
        "def evaluation():\n    return DataLoader(Pairs(4, 6), batch_size=2)\n"
    ),
    "batches of lists": (
        "train = [(['0', '1', '2', '3'], [0, 1, 2, 3]), (['4', '5'], [4, 5])]\nevaluation = train[1:]\n"
    ),
}


@pytest.mark.parametrize("kind", ITS_PROBLEMS)
def test_its_own_problems(write: Write, kind: str) -> None:
    expected = [{"prompt": str(i), "target": i} for i in range(6)]
    name = write(ITS_PROBLEMS[kind] + SHAPES["esmpi"])
    problems = load(name)
    assert problems.train == expected
    assert problems.held_out == expected[4:]
    assert all(type(example["target"]) is int for example in problems.train)
    json.dumps(problems.train)
    assert load(name, num_train=2).train == expected[:2]


@pytest.mark.parametrize(
    ("problems", "expected"),
    [
        ("", "has no `train`: give a file as data.train"),
        ("train = []", "data.num_train: 1 problems wanted"),
        ("def train():\n    raise OSError('gone\\naway')", "OSError: gone away"),
        ("train = [3]", "a problem is an object or a batch (prompts, targets), not 3"),
        ("train = [{'prompt': ['a', 'b'], 'target': [1, 2]}]", "a batch of objects"),
        ("train = [(['a', 'b'], [1])]", "zip() argument 2 is shorter"),
        ("train = [{'prompt': 'a', 'target': {1}}]", "Object of type set is not JSON serializable"),
        ("train = [{'prompt': 'a'}]", "reward needs a column 'target'"),
        ("train = [{'Prompt': 'a', 'target': 1}]", "task.template needs a column 'prompt', did you mean Prompt?"),
        ("train = [{'target': 1}]\ndef prompt(e):\n    return e['question']", "KeyError: 'question'"),
        ("train = [{'target': 1}]\ndef prompt(e):\n    return 3", "is 3, not text or messages"),
        ("train = [{'target': 1}]\ndef prompt(e):\n    return ['a']", "is ['a'], not text or messages"),
        ("train = [{'target': 1}]\ndef prompt(e):\n    return ''", "is '', not text or messages"),
    ],
)
def test_problems_that_cannot_be_used_are_refused(write: Write, problems: str, expected: str) -> None:
    name = write(problems + "\n" + SHAPES["ES-at-Scale"])
    with pytest.raises(UserError) as caught:
        load(name)
    text = str(caught.value)
    assert text.startswith("data.")
    assert expected in text
    assert "\n" not in text


def test_problems_of_a_file_are_checked_alike(write: Write, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "target": 1}\n{"prompt": "b"}\n')
    path = str(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match=r"line 2: reward needs a column 'target'"):
        load(write(SHAPES["TRL"]), train=path, eval=path, num_train=2)
