"""Python programs that must pass tests, as HumanEval and MBPP have them. They run in `esmpi.sandbox`."""

from __future__ import annotations

import ast
import re
import reprlib
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from esmpi.config.keys import key
from esmpi.data.problem import Example, Prompt
from esmpi.sandbox import MODULES, Sandbox
from esmpi.tasks.base import Score, Task
from esmpi.tasks.chat import ChatTaskConfig, chat

INSTRUCTION = "Solve this in Python. Reply with the whole program between ```python and ```.\n\n{problem}"

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
MAX_LENGTH = 20_000
"""Characters of a program; a longer one is wrong."""


@dataclass(frozen=True, kw_only=True)
class CodeConfig(ChatTaskConfig):
    """Keys of the task `code`."""

    name: str = "code"
    modules: tuple[str, ...] = MODULES
    """What programs may import. All of it is loaded before any program runs, and must be installed."""
    time_limit_s: float = key(3.0, above=0, maximum=3600, unit="s")
    """Time that a program has with its tests, on a machine as busy as yours. It must be below scoring.time_limit_s."""
    memory_gib: float = key(1.0, above=0, maximum=1024, unit="GiB")
    """Memory that a program may have."""
    partial_credit: bool = False
    """Whether the reward is the share of the tests that pass. Accuracy counts programs that pass all of them."""
    show_tests: bool = True
    """Whether the prompt shows the tests of a `test_list`, which often say what the function is called."""


class Code(Task):
    """Examples have a problem and its tests, in the columns of HumanEval or MBPP.

    HumanEval: `prompt`, the beginning of a function, `test`, which defines `check`, and `entry_point`. MBPP: `text` or
    `prompt`, `test_list`, and perhaps `test_setup_code` or `test_imports`.
    """

    name: ClassVar[str] = "code"
    config_type: ClassVar[type[CodeConfig]] = CodeConfig
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 512, "temperature": 0.0}

    def __init__(self, config: CodeConfig):
        self.config = config
        self._has_sandbox = False

    @cached_property
    def _sandbox(self) -> Sandbox:
        return Sandbox(self.config.modules, self.config.time_limit_s, self.config.memory_gib)

    def prompt(self, example: Example) -> Prompt:
        problem = _problem(example)
        if "test_list" in example and self.config.show_tests:
            problem += "\n\nIt must pass these tests:\n\n" + "\n".join(example["test_list"])
        if self.config.chat_format != "none":
            return chat(self.config.chat_format, INSTRUCTION.format(problem=problem))
        return problem if "entry_point" in example else f'"""\n{problem}\n"""\n'

    def score(self, completion: str, example: Example) -> Score:
        program = program_of(completion, example, goes_on=self.config.chat_format == "none")
        if not program.strip() or len(program) > MAX_LENGTH:
            wrong = f"has more than {MAX_LENGTH:,} characters" if program.strip() else "is empty"
            return self._score(0.0, parsed=False, problem=f"the program {wrong}")
        setup, tests = tests_of(example)
        outcome = self._sandbox.run(_future_first(f"{setup}\n{program}" if setup else program), tests)
        return self._score(sum(outcome.passed) / len(tests), parsed=outcome.parsed, problem=outcome.problem)

    def _score(self, share: float, *, parsed: bool, problem: str) -> Score:
        reward = share if self.config.partial_credit else float(share == 1)
        notes = {"problem": problem} if problem else {}
        return Score(reward=reward, correct=share == 1, parsed=parsed, figures={"tests_passed": share}, notes=notes)

    def check(self, example: Example) -> None:
        if not self._has_sandbox:  # before a run begins, and not when it first has a program
            Sandbox(self.config.modules, self.config.time_limit_s, self.config.memory_gib).close()
            self._has_sandbox = True
        if not isinstance(_problem(example), str):
            raise ValueError("`prompt` or `text` must be the problem, a text")
        if "test_list" in example:
            tests = example["test_list"]
            if not (isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests)):
                raise ValueError(f"`test_list` must be a list of texts, got {reprlib.repr(tests)}")
        elif not all(isinstance(example.get(name), str) for name in ("test", "entry_point")):
            raise ValueError(
                "`test` and `entry_point` must be texts, as in HumanEval; or give a `test_list`, as MBPP does"
            )

    def key(self, example: Example) -> Hashable:
        return _problem(example)


def program_of(completion: str, example: Example, *, goes_on: bool) -> str:
    """Return the program that a completion gives for an example.

    Parameters
    ----------
    completion : str
    example : dict
    goes_on : bool
        Whether the completion goes on where the prompt, a text, ends.
    """
    start = example["prompt"] if "entry_point" in example else ""
    if blocks := _BLOCK.findall(completion):
        return _before(start) + str(blocks[-1])
    completion = completion[: MAX_LENGTH + 1]  # one more than a program may have
    if goes_on and start:
        return start + _body(completion)
    return _before(start) + completion


def tests_of(example: Example) -> tuple[str, list[str]]:
    """Return what is executed before a program, and its tests."""
    if "test_list" not in example:
        return "", [f"{example['test']}\ncheck({example['entry_point']})\n"]
    before = example.get("test_setup_code") or example.get("test_imports") or ""
    return before if isinstance(before, str) else "\n".join(before), list(example["test_list"])


def _problem(example: Example) -> Any:
    return example.get("prompt", example.get("text"))


def _before(start: str) -> str:
    """Return what stands before a whole program: the beginning that the prompt has, with its imports and helpers.

    The function that it begins is defined again by the program. A beginning that is no program by itself gives its
    imports.
    """
    try:
        ast.parse(start)
    except SyntaxError:
        lines = (line for line in start.splitlines() if line.startswith(("import ", "from ")))
        return "".join(f"{line}\n" for line in lines)
    return start if not start or start.endswith("\n") else f"{start}\n"


def _future_first(program: str) -> str:
    """Return a program with its imports from __future__ in front, where Python wants them."""
    lines = program.splitlines(keepends=True)
    future = [line for line in lines if line.startswith("from __future__ ")]
    return (
        "".join([*future, *(line for line in lines if not line.startswith("from __future__ "))]) if future else program
    )


def _body(completion: str) -> str:
    """Return the rest of a function: all up to a line that is not indented."""
    lines = completion.splitlines(keepends=True)
    for number, line in enumerate(lines[1:], 1):
        if line.strip() and not line[0].isspace():
            return "".join(lines[:number])
    return completion
