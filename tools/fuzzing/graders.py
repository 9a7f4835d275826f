"""The graders that `tools/fuzz.py` fuzzes: those of tasks, of environments, and what reads calls of tools.

What counts is the CPU time of the thread that scores: with a limit of CPU time, as children have, the clock of the
process is read at ticks alone. Of `code` it is what the grader does itself: programs run in the sandbox, which has
limits of its own.
"""

import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.tasks import Example, Task, find_task, math
from esmpi.tasks.code import Code
from esmpi.tasks.env import EnvTask
from esmpi.tasks.environments.base import Environment
from fuzzing.inputs import GRADER_S, LONGEST_TEXT, Make, Target, json_text, odd_json, of_texts
from fuzzing.samples import section_of

MATH_S = 1.0
"""What is slow for `math`: sympy, by which math-verify compares, takes tens of milliseconds for ordinary answers. What
bounds it is `scoring.time_limit_s`."""
_ARC: dict[str, Any] = {
    "train": [{"input": [[1, 2]], "output": [[2, 1]]}],
    "test": {"input": [[3]], "output": [[3, 4], [5, 6]]},
}
_CODE = {"prompt": "Add.", "test_list": ["assert f(1, 2) == 3"]}
_HUMAN_EVAL = {"prompt": "import math\ndef f(a, b):\n", "test": "def check(g): assert g(1, 2) == 3", "entry_point": "f"}
_PROGRAM = "```python\ndef f(a, b):\n    return a + b\n```"
_LATEX = (
    *(
        r"\frac{1}{2}",
        "0.5",
        "8",
        "x^2+1",
        r"\sqrt{2}",
        r"\left(\frac{1}{2}, 3\right)",
        "1,2",
        r"\{1,2\}",
        r"(-\infty, 5)",
    ),
    *(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "10!", r"\binom{10}{2}", "2^{10}", r"\pi", r"50\%", r"\text{east}"),
    *("2516_8", "x<5", "1 1/4", "4.5e33", r"|x|", r"\int_0^1 x dx", r"\sum_{i=1}^{10} i", r"\log_2 8", "y=2x"),
    *(
        r"9^{9^{9}}",
        r"\lim_{x\to 0}",
        r"x \in [1,2]",
        r"\cup",
        "^",
        "_",
        "{",
        "}",
        "(",
        ")",
        "|",
        "!",
        r"\sin",
        "x",
        "y",
    ),
    *(
        r"\cdot",
        r"\times",
        "=",
        "<",
        r"\le",
        r"\pm",
        "a",
        "+",
        "-",
        "/",
        r"\mathbb{R}",
        r"1\frac{1}{2}",
        r"\overline{3}",
    ),
)

_GRADERS: Mapping[str, tuple[str, dict[str, Any], Example | None, Sequence[str], str]] = {
    "countdown": (
        "countdown",
        {},
        {"numbers": [44, 19, 35], "target": 98},
        ("44+19+35", "(44 + 19) + 35"),
        "<answer>{}</answer>",
    ),
    "gsm8k": ("gsm8k", {}, {"question": "How many?", "answer": "#### 7"}, ("7", "$1,234.50"), "so\n#### {}"),
    "gsm8k last_number": (
        "gsm8k",
        {"answer": "last_number"},
        {"question": "?", "answer": 7},
        ("7", "1,234.50"),
        "so {}",
    ),
    "math": (
        "math",
        {},
        {"problem": "How many?", "answer": [r"$\frac{1}{2}$", "8", r"\sqrt{x}", "1,2", "(1, 2)"]},
        _LATEX,
        r"\boxed{{{}}}",
    ),
    "arc": ("arc", {}, _ARC, ("3 4\n5 6", "[[3,4],[5,6]]"), "<answer>{}</answer>"),
    "multiplication": ("multiplication", {"partial_credit": True}, None, ("56088", "1,234"), "so {}"),
    "sudoku": (
        "sudoku",
        {"partial_credit": True},
        None,
        ("1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1",),
        "<answer>{}</answer>",
    ),
    "conciseness": ("conciseness", {}, {"question": "Which?", "answer": "Paris"}, ("Paris", "paris."), "{}"),
    "code": ("code", {}, _CODE, (_PROGRAM, "f = lambda a, b: a + b", "x[" * 20, "{1:" * 20, "f'{" * 5), "```\n{}\n```"),
    "code of a prompt": (
        "code",
        {},
        _HUMAN_EVAL,
        ("    return a + b\n", _PROGRAM, "from __future__ import annotations\n"),
        "{}",
    ),
}
"""By name: the task, its keys, an example (None: of the task's generator), good answers, what stands around one."""

_ENVIRONMENTS: Mapping[str, tuple[Example | None, Sequence[str], str]] = {
    "wordle": (None, ("crane", "about"), "<answer>{}</answer>"),
    "sudoku_moves": (None, ("r1c2=3", "r1c1=1 r2c2=2"), "<answer>{}</answer>"),
    "countdown_calculator": ({"numbers": [44, 19, 35], "target": 98}, ("44 + 19", "1/7/9", "(", "98765432"), "{}="),
}


def _grader(name: str) -> Make:
    def make_target(folder: Path) -> Target:
        kind, keys, example, answers, wrap = _GRADERS[name]
        task = _task(kind, **keys)
        chosen = task.generator(np.random.default_rng(0))() if example is None else example
        task.check(chosen)
        return Target(
            make=of_texts(*answers, wrap=wrap),
            check=lambda data: _graded(task, _text(data), chosen),
            slow_s=MATH_S if kind == "math" else GRADER_S,
            allowed=(),
        )

    return make_target


def _gym(folder: Path) -> Target:
    """All data sets of reasoning-gym that the task accepts; the first line of an input names one."""
    import reasoning_gym  # type: ignore[import-untyped]

    tasks: dict[str, tuple[Task, Example]] = {}
    makers = {}
    for name in sorted(reasoning_gym.factory.DATASETS):
        try:
            task = _task(f"gym:{name}")
        except Exception as error:
            print(f"gym:{name} is left out: {error}", file=sys.stderr)
            continue
        example = task.generator(np.random.default_rng(0))()
        tasks[name] = task, example
        makers[name] = of_texts(str(example["answer"]), wrap="<answer>{}</answer>")

    def make(rng: random.Random) -> bytes:
        name = rng.choice(list(tasks))
        return name.encode() + b"\n" + makers[name](rng)

    def check(data: bytes) -> float:
        name, _, text = _text(data).partition("\n")
        return _graded(tasks[name][0], text, tasks[name][1])

    return Target(make=make, check=check, slow_s=GRADER_S, allowed=())


def _environment(name: str) -> Make:
    """Episodes of up to four turns; the slowest turn counts."""

    def make_target(folder: Path) -> Target:
        example, answers, wrap = _ENVIRONMENTS[name]
        task = _task(f"env:{name}")
        assert isinstance(task, EnvTask)
        chosen = task.generator(np.random.default_rng(0))() if example is None else example
        make_text = of_texts(*answers, wrap=wrap)

        def make(rng: random.Random) -> bytes:
            turns = [make_text(rng) for _ in range(rng.choice((1, 2, 4)))]
            return b"\x1e".join(turn for turn in turns if len(turn) <= LONGEST_TEXT // len(turns))

        def check(data: bytes) -> float:
            words = _text(data).split("\x1e")
            task._kept.clear()
            slowest = 0.0
            for turn in range(1, len(words) + 1):
                began = time.thread_time()
                after = task.play(chosen, 0, words[:turn], is_over=turn == 4)
                slowest = max(slowest, time.thread_time() - began)
                if not isinstance(after, str | list):
                    assert after.reward is not None
                    assert np.isfinite(after.reward)
                    break
            return slowest

        return Target(make=make, check=check, slow_s=GRADER_S, allowed=())

    return make_target


def _add(a: int, b: float = 1.0, *words: str, **more: Any) -> float:
    """Add numbers."""
    return a + b


def _echo(text: str) -> Any:
    return text


class _WithTools(Environment):
    tools = (_add, _echo)

    def reset(self, example: Example, seed: int) -> str:
        return "x"

    def step(self, completion: str) -> str:
        return completion


def _tool_calls(folder: Path) -> Target:
    from esmpi.tasks import tools

    call = {"name": "_add", "arguments": {"a": 1, "b": 2.5}}
    texts = of_texts(
        json.dumps(call), '{"name": "_echo", "parameters": {"text": "x"}}', "<tool_call>", "</tool_call>", "[" * 50,
        wrap="<tool_call>{}</tool_call>",
    )  # fmt: skip
    environment = _WithTools()

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return texts(rng)
        calls = [json_text(odd_json(call, rng)) for _ in range(rng.choice((1, 2, 50)))]
        return "".join(f"<tool_call>{one}</tool_call>" for one in calls).encode()

    def check(data: bytes) -> float:
        text = _text(data)
        began = time.thread_time()
        for found in tools.calls_in(text):
            tools.result_of(environment, found).encode()
        return time.thread_time() - began

    return Target(make=make, check=check, slow_s=GRADER_S, allowed=())


def _examples(folder: Path) -> Target:
    """Rows of data files with odd values: what passes a task's check has a prompt, a key and a score."""
    tasks = {}
    for name, (kind, keys, example, _, _) in _GRADERS.items():
        task = _task(kind, **keys)
        tasks[name] = task, example or task.generator(np.random.default_rng(0))()
    for name, (example, _, _) in _ENVIRONMENTS.items():
        task = _task(f"env:{name}")
        tasks[name] = task, example or task.generator(np.random.default_rng(0))()
    task = _task("gym:chain_sum")
    tasks["gym:chain_sum"] = task, task.generator(np.random.default_rng(0))()

    def make(rng: random.Random) -> bytes:
        name = rng.choice(list(tasks))
        return f"{name}\n{json_text(odd_json(tasks[name][1], rng))}".encode()

    def check(data: bytes) -> None:
        name, _, text = data.decode().partition("\n")
        try:
            example = json.loads(text)
            if not isinstance(example, dict):
                return
            json.dumps(example, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            return  # the reader of data files refuses it
        task = tasks[name][0]
        try:
            task.check(example)
        except ValueError:
            return
        prompt = task.prompt(example)
        assert isinstance(prompt, str | list)
        hash(task.key(example))
        if not isinstance(task, EnvTask):
            for answer in ("", "<answer>1</answer>", r"\boxed{1}", "#### 1"):
                _graded(task, answer, example)

    return Target(make=make, check=check, allowed=())


def _task(name: str, **keys: Any) -> Task:
    kind = find_task(name)
    assert kind is not None
    return kind.make(section_of(name, **keys), b"")


def _graded(task: Task, text: str, example: Example) -> float:
    """Score a completion, and read its answer; return the CPU time of the slower one."""
    math._read.cache_clear()
    if isinstance(task, Code):
        task._sandbox  # noqa: B018  # it starts here, and not while a clock is running
    began = time.thread_time()
    score = task.score(text, example)
    took = time.thread_time() - began
    if score.reward is not None and not np.isfinite(score.reward):
        raise RuntimeError(f"reward {score.reward}")
    if task.has_answers:
        math._read.cache_clear()
        began = time.thread_time()
        answer = task.answer(text, example)
        took = max(took, time.thread_time() - began)
        assert answer is None or isinstance(answer, str)
    return took


def _text(data: bytes) -> str:
    return data.decode(errors="replace")[:LONGEST_TEXT]


TARGETS: dict[str, Make] = {
    **{f"grader {name}": _grader(name) for name in _GRADERS},
    "grader gym": _gym,
    **{f"grader {name}": _environment(name) for name in _ENVIRONMENTS},
    "tool calls": _tool_calls,
    "examples": _examples,
}
