"""A user's own task: a Python file with a reward of any shape, or an entry point."""

import json
import math
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_tasks import EXAMPLE, MESSAGES, SHAPES, Write, complaint, make, section
from support import ROOT

from esmpi.config.problems import ScoringConfig
from esmpi.config.reader import ConfigError
from esmpi.errors import UserError
from esmpi.scoring import Scorer
from esmpi.tasks import Sample, make_task


@pytest.mark.parametrize("shape", SHAPES)
def test_rewards_of_each_shape(write: Write, shape: str) -> None:
    task = make(write(SHAPES[shape]))
    task.check(EXAMPLE)
    assert task.prompt(EXAMPLE) == "Say four."
    for completion, expected in (("4", 1.0), ("5", 0.0)):
        score = task.score(completion, EXAMPLE)
        assert (score.reward, score.correct, score.parsed, score.figures) == (expected, expected == 1, True, {})


def test_trl_rewards_get_messages_where_the_prompt_is_messages(write: Write) -> None:
    text = (
        "def reward(prompts, completions, **kwargs):\n"
        "    assert prompts == [[{'role': 'system', 'content': 'Be brief.'},\n"
        "                        {'role': 'user', 'content': 'Say four.'}]]\n"
        "    return [float(len(completion[0]['content'])) for completion in completions]\n"
    )
    task = make(write(text), chat_format="model", system="Be brief.")
    assert task.score("four", EXAMPLE).reward == 4


def test_a_reward_of_several_numbers(write: Write) -> None:
    text = (
        "def reward(completion, example):\n"
        "    number = completion.isdigit()\n"
        "    return {'reward': len(completion), 'correct': completion == '4', 'parsed': number, 'words': 1}\n"
    )
    task = make(write(text))
    score = task.score("4", EXAMPLE)
    assert (score.reward, score.correct, score.parsed, score.figures) == (1, True, True, {"words": 1})
    score = task.score("four", EXAMPLE)
    assert (score.reward, score.correct, score.parsed, score.figures) == (4, False, False, {"words": 1})


def test_what_counts_as_right_without_a_word_from_the_reward(write: Write) -> None:
    name = write("def reward(completion, example):\n    return len(completion)\n")
    assert [make(name).score("x" * n, EXAMPLE).correct for n in (0, 1, 2)] == [False, True, True]
    assert [make(name, correct_from=1.5).score("x" * n, EXAMPLE).correct for n in (1, 2)] == [False, True]


SEVERAL = (
    "def exact(output, target):\n    return '', float(output == target)\n"
    "def short(completions, **kwargs):\n    return [-float(len(c)) for c in completions]\n"
    "def shape(completion, example):\n    return {'reward': 3, 'correct': completion != 'wrong', 'digits': 1}\n"
)


def test_several_rewards_with_weights(write: Write) -> None:
    name = write(SEVERAL, "exact")
    task = make(name, rewards={"exact": 2.0, "short": 0.5, "shape": 1})
    score = task.score("4", EXAMPLE)
    assert score.reward == 2 * 1 - 0.5 * 1 + 3
    assert score.figures == {"exact": 1, "short": -1, "shape": 3, "digits": 1}
    assert score.correct
    assert not task.score("wrong", EXAMPLE).correct
    assert "lacks 'exact'" in complaint(name, rewards={"short": 1.0})
    assert "has no function 'shorts', did you mean short?" in complaint(name, rewards={"exact": 1, "shorts": 1.0})


PROMPTS = {
    "the default": ("", {}, "Say four."),
    "a template": ("", {"template": "{length} words: {prompt}\n"}, "3 words: Say four.\n"),
    "a function": ("def prompt(example):\n    return example['prompt'].upper()\n", {}, "SAY FOUR."),
    "a function of ES-at-Scale": ("def template(question):\n    return 'Q: ' + question\n", {}, "Q: Say four."),
    "a function that uses a text": (
        "template = 'x{}'\ndef prompt(example):\n    return template.format(example['target'])\n",
        {},
        "x4",
    ),
    "braces": ("", {"template": "{{{prompt}}} in \\boxed{{}}"}, "{Say four.} in \\boxed{}"),
    "a function and a form": (
        "def prompt(example):\n    return 'hi'\n",
        {"chat_format": "chatml", "system": "S"},
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "messages of a column": (
        "",
        {"template": "{messages}", "system": "S"},
        [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi."}],
    ),
    "messages": (
        "def prompt(example):\n    return [{'role': 'user', 'content': example['prompt']}]\n",
        {},
        [{"role": "user", "content": "Say four."}],
    ),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts(write: Write, kind: str) -> None:
    text, keys, expected = PROMPTS[kind]
    task = make(write(text + SHAPES["esmpi"]), **keys)
    example = EXAMPLE | {"messages": MESSAGES}
    task.check(example)
    assert task.prompt(example) == expected


@pytest.mark.parametrize(
    ("example", "keys", "expected"),
    [
        ({"prompt": None}, {}, "column 'prompt' is empty"),
        ({"prompt": "a"}, {"template": "{prompt} \\boxed{}"}, "braces that are text are doubled: {{ and }}"),
        ({"prompt": "a"}, {"template": "{json: {prompt}"}, "braces that are text are doubled: {{ and }}"),
        ({"prompt": MESSAGES}, {"chat_format": "chatml"}, "task.chat_format chatml is for text; choose model"),
        ({"prompt": [{"role": "system", "content": "A"}]}, {"system": "S"}, "a system turn of its own"),
        ({"prompt": [{"role": "user", "content": None}]}, {}, "not text or messages"),
    ],
)
def test_prompts_that_cannot_be_made(write: Write, example: Any, keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        make(write(SHAPES["esmpi"]), **keys).check(example)


def test_a_template_beside_a_function_is_not_ignored(write: Write) -> None:
    text = complaint(write("def prompt(example):\n    return 'x'\n" + SHAPES["esmpi"]), template="{target}")
    assert "has a function that makes the prompt: leave one of them out" in text


GRADER = (
    "def reward(model_response, gt_answer, fast=False):\n"
    "    info = {'formatted': bool(model_response), 'answer_reward': float(model_response == gt_answer), 'why': 'x'}\n"
    "    return info, info['answer_reward'] - 0.5\n"
)


def test_a_grader_of_es_at_scale_as_it_is(write: Write) -> None:
    task = make(write(GRADER), correct_from=0.5)
    task.check(EXAMPLE)
    score = task.score("4", EXAMPLE)
    assert (score.reward, score.correct, score.parsed) == (0.5, True, True)
    assert score.figures == {"formatted": 1, "answer_reward": 1}
    assert not task.score("", EXAMPLE).parsed
    other = {"prompt": "p", "gt_answer": "5", "target": "4"}
    task.check(other)
    assert task.score("5", other).reward == 0.5, "its own column comes first"
    with pytest.raises(ValueError, match="reward needs a column 'target'"):
        task.check({"prompt": "p"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def reward(completion, example):\n    return 'text'", "the reward of reward is 'text', not a number"),
        ("def reward(completion, example):\n    return 10**400", "not a number"),
        ("def reward(completion, example):\n    return {'score': 1}", "{'score': 1}, which has no `reward`"),
        ("def reward(completion, example):\n    return {'reward': 1, 'a': None}", "`a` of reward is None"),
        ("def reward(completion, example):\n    return {'reward': 1, 'correct': 'no'}", "`correct` of reward is 'no'"),
        ("def reward(output, target):\n    return 'a', 1, 2", "is ('a', 1, 2), not a number"),
        ("def reward(completions, **kwargs):\n    return 1.0", "must return a list with a reward for each completion"),
        (
            "def reward(completions, **kwargs):\n    return [1, 2]",
            "reward returned 2 rewards for 1 completion: it must return one for each",
        ),
        (
            "def reward(completions, log_extra, **kwargs):\n    log_extra('read', [])\n    return [1]",
            "log_extra: read has 0 values for 1 completion",
        ),
        (
            "def reward(completions, log_metric, **kwargs):\n    log_metric('a', 'b')",
            "the metric a is 'b', not a number",
        ),
        (
            "def reward(completions, trainer_state, **kwargs):\n    return [trainer_state.epoch]",
            "trainer_state has global_step and max_steps in esmpi, and no epoch",
        ),
    ],
)
def test_what_is_no_reward_is_said(write: Write, text: str, expected: str) -> None:
    with pytest.raises((TypeError, ValueError, AttributeError), match=re.escape(expected)):
        make(write(text)).score("x", EXAMPLE)


def test_a_reward_that_does_not_apply_counts_for_nothing(write: Write) -> None:
    text = (
        "def reward(completions, **kwargs):\n    return [None]\n"
        "async def later(completions, **kwargs):\n    return [2.0 if completions[0] else None]\n"
    )
    task = make(write(text), rewards={"reward": 1, "later": 0.5})
    score = task.score("x", EXAMPLE)
    assert (score.reward, score.figures) == (1, {"later": 2})
    score = task.score("", EXAMPLE)
    assert (score.reward, score.correct, score.figures) == (None, False, {})
    assert "task.rewards: later: nan is no weight" in complaint(write(text), rewards={"reward": 1, "later": math.nan})


def test_what_a_reward_does_to_its_example_stays_there(write: Write) -> None:
    task, example = (
        make(write("def reward(completion, example):\n    return example['more'].pop()\n")),
        {"more": [1, 2]},
    )
    example["prompt"] = "p"  # type: ignore[assignment]
    assert [task.score("x", example).reward for _ in range(2)] == [2, 2]


def test_a_file_that_has_changed_is_not_read_by_other_processes(write: Write) -> None:
    name = write("def reward(completion, example):\n    return 1\n")
    task = make(name)
    write("def reward(completion, example):\n    return 2\n")
    assert make(name).score("x", EXAMPLE).reward == 2
    assert make_task(section(name), task.source).score("x", EXAMPLE).reward == 1
    assert make(name).source != task.source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def reward(", "cannot be run: SyntaxError: '(' was never closed (mine.py, line 1)"),
        ("1 / 0", "cannot be run: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('no\\nway')", "cannot be run: SystemExit: no way"),
        ("import no_such_module", "cannot be run: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def rewrad(a, b): ...", "has no function 'reward', did you mean rewrad?"),
        ("reward = 3", "has no function 'reward'"),
        (
            "def reward(): ...",
            "reward() is no reward: it must be (completion, example), (completions, examples), (output",
        ),
        ("def reward(a, b, c): ...", "reward(a, b, c) is no reward"),
        ("def reward(a, *, b): ...", "reward(a, b) is no reward"),
        ("class reward:\n    def __init__(self, a, b): ...", "reward(a, b) is a class, not a function"),
        ("reward = max", "reward does not say what its parameters are"),
        ("def reward(a, b): ...\nprompt = 'text'", "`prompt` or `template` in"),
    ],
)
def test_files_that_cannot_be_used_are_refused(write: Write, text: str, expected: str) -> None:
    assert expected in complaint(write(text))


def test_a_missing_file_is_named_with_its_neighbours(write: Write, tmp_path: Path) -> None:
    write(SHAPES["esmpi"])
    text = complaint(f"{tmp_path}/mime.py:reward")
    assert text == f"task.name: no file {tmp_path}/mime.py, did you mean {tmp_path}/mine.py?"
    with pytest.raises(ConfigError, match=r"task\.name: unknown task 'mine'.*file\.py:function"):
        section("mine")


def test_a_file_imports_what_lies_beside_it(write: Write) -> None:
    write("def same(one, other):\n    return float(one == other)\n", file="beside_the_task.py")
    text = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import beside_the_task\n"
        "@dataclass\n"
        "class Settings:\n    scale: float = 2.0\n"
        "def reward(completion, example):\n"
        "    return Settings().scale * beside_the_task.same(completion, example['target'])\n"
    )
    assert make(write(text)).score("4", EXAMPLE).reward == 2


def test_it_works_in_the_scorers_process(write: Write) -> None:
    """Which is spawned: it makes the task anew, and knows the file's neighbours too."""
    write("import os\ndef process():\n    return os.getpid()\n", file="beside_the_task_too.py")
    text = (
        "import time, beside_the_task_too\n"
        "def reward(completion, example):\n"
        "    if completion == 'raise':\n        raise KeyError('oh')\n"
        "    if completion == 'hang':\n        time.sleep(100)\n"
        "    if completion == 'text':\n        return 'no number'\n"
        "    if completion == 'dict':\n        return {'correct': True}\n"
        "    return {'reward': example['length'], 'process': beside_the_task_too.process()}\n"
    )
    scorer = Scorer(partial(make_task, section(write(text))), ScoringConfig(time_limit_s=2, failure_reward=-1))
    texts = ["a", "raise", "b", "hang", "text", "dict", "c"]
    scored = scorer.submit([Sample(completion=text, example=EXAMPLE) for text in texts]).result(timeout=120)
    scorer.close()
    assert [score.reward for score in scored.scores] == [3, -1, 3, -1, -1, -1, 3]
    assert scored.failures == {"raised": 3, "timed_out": 1, "died": 0}
    processes = [score.figures["process"] for score in scored.scores if score.figures]
    assert os.getpid() not in processes
    assert processes[0] == processes[1] != processes[2]  # another one after the one that hung


def test_a_process_that_ends_between_two_completions_costs_one_at_most(write: Write) -> None:
    text = (
        "import os, threading\n"
        "def reward(completion, example):\n"
        "    if completion == 'later':\n        threading.Timer(0.3, os._exit, [9]).start()\n"
        "    return 1\n"
    )
    scorer = Scorer(partial(make_task, section(write(text))), ScoringConfig(failure_reward=0))

    def score(texts: list[str]) -> list[float | None]:
        scored = scorer.submit([Sample(completion=text, example=EXAMPLE) for text in texts]).result(timeout=60)
        return [s.reward for s in scored.scores]

    assert score(["a", "later"]) == [1, 1]
    time.sleep(1)  # longer than its timer
    assert score(["a", "b", "c"]) in ([0, 1, 1], [1, 1, 1])
    assert score(["a"]) == [1]
    scorer.close()


PACKAGE = """
from dataclasses import dataclass
from esmpi.tasks import Score, Task, TaskConfig

@dataclass(frozen=True, kw_only=True)
class ShortConfig(TaskConfig):
    most: int = 10

class Short(Task):
    name = "short"
    config_type = ShortConfig
    def __init__(self, config):
        self.config = config
    def prompt(self, example):
        return example["prompt"]
    def score(self, completion, example):
        return Score(reward=min(self.config.most, len(completion)), correct=True)
    def check(self, example):
        pass
    def key(self, example):
        return example["prompt"]

class NoTask:
    pass
"""


def test_a_task_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "short_task-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: short-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[esmpi.tasks]\n"
        "short = short_task_package:Short\n"
        "no_task = short_task_package:NoTask\n"
        "gone = short_task_package.gone:Gone\n"
    )
    (tmp_path / "short_task_package.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    task = make("short", most=3)
    assert task.score("four", EXAMPLE).reward == 3
    with pytest.raises(ConfigError, match=r"task\.mots: unknown key, did you mean most\?"):
        section("short", mots=3)
    with pytest.raises(UserError, match=r"the entry point no_task of esmpi\.tasks is not a subclass"):
        section("no_task")
    with pytest.raises(UserError, match=r"the entry point gone of esmpi\.tasks cannot be loaded: Mod"):
        section("gone")


def test_a_config_with_a_file_runs_nothing_of_it_and_loads_nothing_heavy(write: Write) -> None:
    name = write("raise SystemError('the file was run')\n")
    code = (
        "import sys\n"
        "from esmpi.config.reader import parse_config\n"
        "tree = {'run': {'name': 'x'}, 'model': {'path': 'x'}, 'es': {'generations': 1}}\n"
        f"parse_config(tree | {{'task': {{'name': {name!r}, 'rewards': {{'a': 1}}}}}})\n"
        "print([m for m in ('torch', 'numpy', 'h5py', 'datasets', 'mpi4py') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_numbers_of_numpy_and_torch_are_numbers(write: Write) -> None:
    text = (
        "import numpy as np, torch\n"
        "def reward(completion, example):\n"
        "    return {'reward': np.float32(0.5), 'correct': np.bool_(True), 'words': torch.tensor(2)}\n"
    )
    score = make(write(text)).score("x", EXAMPLE)
    assert [type(score.reward), type(score.correct), type(score.parsed)] == [float, bool, bool]
    assert score.reward == np.float32(0.5)
    assert json.loads(json.dumps(dict(score.figures))) == {"words": 2.0}


def test_a_key_without_bounds_takes_any_number_but_nan(write: Write) -> None:
    assert make(write("def reward(completion, example):\n    return 0.0\n"), correct_from=-1e300)
    with pytest.raises(ConfigError, match=r"task\.correct_from: must be a number, got nan"):
        make(write("def reward(completion, example):\n    return 0.0\n"), correct_from=float("nan"))
