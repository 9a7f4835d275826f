"""Programs that a model writes: which program a completion gives, what it is worth, and what it cannot do."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esmpi.errors import UserError
from esmpi.sandbox import Outcome, Sandbox
from esmpi.tasks import Score, make_task
from esmpi.tasks.code import Code, CodeConfig, program_of

HUMAN_EVAL = {
    "prompt": 'from typing import List\n\n\ndef largest(values: List[int]) -> int:\n    """Return the largest."""\n',
    "test": "def check(candidate):\n    assert candidate([1, 3, 2]) == 3\n    assert candidate([-1]) == -1\n",
    "entry_point": "largest",
}
MBPP = {
    "text": "Write a function that adds two numbers.",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert isclose(add(.1, .2), .3)"],
    "test_setup_code": "from math import isclose",
}


def made(**keys: Any) -> Code:
    task = make_task(CodeConfig(**keys))
    assert isinstance(task, Code)
    return task


def worth(reward: float, share: float, parsed: bool = True, **notes: str) -> Score:
    return Score(reward=reward, correct=share == 1, parsed=parsed, figures={"tests_passed": share}, notes=notes)


def test_a_function_goes_on() -> None:
    task = made()
    task.check(HUMAN_EVAL)
    assert task.prompt(HUMAN_EVAL) == HUMAN_EVAL["prompt"]
    assert task.score("    return max(values)\n\n\nprint(largest([]))\n", HUMAN_EVAL) == worth(1, 1)
    assert task.score("    return min(values)\n", HUMAN_EVAL) == worth(0, 0, problem="AssertionError")
    assert task.score("    return max(values\n", HUMAN_EVAL).parsed is False
    named = "    best: List[int] = sorted(values)\n    return best[-1]\n"
    block = f"Sure!\n```python\ndef largest(values):\n{named}```\nIt sorts."
    assert task.score(block, HUMAN_EVAL) == worth(1, 1), "the imports of the prompt are there"


def test_blocks_are_found_whatever_their_fence_says() -> None:
    for fence in ("python3", "python title=x.py", "Python", ""):
        block = f"So:\n```{fence}\ndef add(a, b):\n    return a + b\n```\nDone."
        assert program_of(block, MBPP, goes_on=False) == "def add(a, b):\n    return a + b\n"
    helper = HUMAN_EVAL | {"prompt": "def less(a, b):\n    return a < b\n\n\n" + HUMAN_EVAL["prompt"]}
    block = "```python\nfrom __future__ import annotations\ndef largest(values):\n    best = values[0]\n"
    block += "    for value in values:\n        best = value if less(best, value) else best\n    return best\n```"
    assert made().score(block, helper) == worth(1, 1)


def test_a_program_passes_tests_of_a_list() -> None:
    task = made(partial_credit=True)
    task.check(MBPP)
    prompt = task.prompt(MBPP)
    assert isinstance(prompt, str)
    assert prompt.startswith('"""\nWrite a function')
    assert "assert add(1, 2) == 3" in prompt
    assert task.score("def add(a, b):\n    return a + b\n", MBPP) == worth(1, 1)
    assert task.score("def add(a, b):\n    return abs(a) - b\n", MBPP) == worth(1 / 3, 1 / 3, problem="AssertionError")
    assert made().score("def add(a, b):\n    return a - b\n", MBPP).reward == 0
    assert (
        task.score("def plus(a, b):\n    return a + b\n", MBPP).notes["problem"]
        == "NameError: name 'add' is not defined"
    )
    assert task.score("", MBPP).parsed is False


def test_a_chat_model_is_asked_for_a_block() -> None:
    task = made(chat_format="model", show_tests=False)
    [turn] = task.prompt(MBPP)
    assert isinstance(turn, dict)
    assert turn["content"].startswith("Solve this in Python.")
    assert "assert" not in turn["content"]
    two = "```\nx = 1\n```\nor\n```py\ndef add(a, b):\n    return a + b\n```"
    assert program_of(two, MBPP, goes_on=False) == "def add(a, b):\n    return a + b\n"
    assert program_of("```python\nx = 1\n", MBPP, goes_on=False) == "x = 1\n", "cut off"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"prompt": "x"}, "`test` and `entry_point` must be texts"),
        ({"test_list": ["assert f()"]}, "`prompt` or `text` must be the problem"),
        ({"text": "x", "test_list": "assert f()"}, "`test_list` must be a list of texts"),
        ({"text": "x", "test_list": []}, "`test_list` must be a list of texts"),
        (HUMAN_EVAL | {"entry_point": None}, "`test` and `entry_point` must be texts"),
    ],
)
def test_other_examples_are_refused(example: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made().check(example)


FORGED = """
import os
os.write(3, b'[1, "test", true, ""]\\n["test", true]\\n\\xff\\n')
os._exit(0)
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(time_limit_s=1.5, memory_gib=0.25)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("open('/etc/passwd')", "PermissionError"),
        ("open('{folder}/made', 'w')", "PermissionError"),
        ("import os\nos.mkdir('{folder}/made')", "PermissionError"),
        ("import os\nos.rename('{folder}/there', '{folder}/made')", "PermissionError"),
        ("import os\nos.listdir('/')", "PermissionError"),
        ("import os\nos.fork()", "PermissionError"),
        ("import os\nos.execv('/bin/touch', ['touch', '{folder}/made'])", "PermissionError"),
        ("import os\nassert os.system('touch {folder}/made') == 0", "AssertionError"),
        ("import os\nos.posix_spawn('/bin/true', ['true'], {{}})", "PermissionError"),
        ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
        ("import _socket\n_socket.socket()", "ModuleNotFoundError|PermissionError"),
        ("import ctypes\nassert ctypes.CDLL(None).socket(2, 1, 0) >= 0", "AssertionError|ModuleNotFoundError"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "ValueError|PermissionError"),
        ("import threading\nthreading.Thread(target=print).start()", "RuntimeError|ModuleNotFoundError"),
        ("while True: pass", r"no result after 1\.5 s"),
        ("import time\ntime.sleep(60)", r"no result after 1\.5 s"),
        ("while True: print('x' * 10**6)", r"no result after 1\.5 s"),
        ("import os\nwhile True: os.write(3, b'x' * 10**6)", r"no result after 1\.5 s"),
        (FORGED, "the program ended before its tests did"),
        ("x = bytearray(10**10)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "MemoryError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "the program ended before its tests did"),
        ("import os\nos.abort()", "the program was ended by SIG"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise BaseException", "BaseException"),
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_a_program_can_only_compute(sandbox: Sandbox, tmp_path: Path, program: str, problem: str) -> None:
    (tmp_path / "there").touch()
    began = time.monotonic()
    outcome = sandbox.run(program.format(folder=tmp_path), ["pass"])
    assert outcome.passed == (False,)
    assert re.match(problem, outcome.problem), outcome.problem
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert time.monotonic() - began < 30
    assert sandbox.run("x = 1", ["assert x == 1", "assert x == 2"]).passed == (True, False)


@pytest.mark.parametrize(
    "program",
    [
        "import os, time\nos.write(3, b'[' * 60000 + b'\\n')\ntime.sleep(60)",
        "import sys\nf = sys._getframe(2).f_locals\nfor _ in range(50): f['tell']('test', True, '')",
        "import os\nraise Exception(os.environ['SECRET_TOKEN'])",
    ],
)
def test_what_a_program_writes_itself_is_bounded(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    own = Sandbox(time_limit_s=0.5)
    server = own._server
    outcome = own.run(program, ["assert False"])
    assert len(outcome.passed) == 1
    assert "hunter2" not in outcome.problem
    assert own.run("x = 1", ["assert x"]).passed == (True,)
    assert own._server is server, "the server is still the same"
    own.close()


def test_programs_are_deterministic_in_each_process() -> None:
    said = []
    for _ in range(2):
        own = Sandbox()
        program = "import random\nraise Exception(hash('abc'), random.random(), {'a', 'b', 'c'})"
        said.append(own.run(program, []).problem)
        own.close()
    assert said[0] == said[1] != ""


def test_a_module_that_prints_is_no_answer() -> None:
    own = Sandbox(modules=["this"])
    assert own.run("x = 1", ["assert x"]).passed == (True,)
    own.close()


def test_programs_do_not_meet(sandbox: Sandbox) -> None:
    program = "import math, builtins\nmath.pi = 3\nbuiltins.len = lambda x: 7"
    assert sandbox.run(program, ["assert len([]) == 7", "assert math.pi == 3"]).passed == (True, True)
    assert sandbox.run("import math", ["assert math.pi > 3.1", "assert len([]) == 0"]).passed == (True, True)
    assert sandbox.run("from datetime import datetime", ["datetime.strptime('2020', '%Y')"]).passed == (True,)


def test_a_lost_server_is_replaced(sandbox: Sandbox) -> None:
    server = sandbox._server
    assert server is not None
    server.kill()
    server.wait()
    assert sandbox.run("x = 1", ["assert x"]).passed == (True,)


def test_modules_are_those_of_the_config() -> None:
    named = Sandbox(modules=["numpy", "numpy.random"], memory_gib=2, time_limit_s=10)
    program = "import numpy as np\na = np.random.default_rng(0).normal(size=(400, 400))\nproduct = a @ a"
    assert named.run(program, ["assert product.shape == (400, 400)"]) == Outcome(passed=(True,))
    named.close()
    with pytest.raises(UserError, match=r"cannot run here: the module no_such_module cannot be imported"):
        Sandbox(modules=["no_such_module"])
