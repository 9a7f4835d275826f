"""Run Python programs that a model has written, without files, network or other processes, and with limits.

A server process without esmpi in it (`esmpi.sandbox.server`) loads the modules that programs may import, and forks for
each program. The fork gives up, by seccomp, all system calls but those for computing; so a program cannot open a file,
make a socket or start a process, whatever it does. Linux has this for all users, also in containers.

A program and its tests share an interpreter. One that searches the interpreter for the word that marks results could
claim to have passed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esmpi.errors import UserError

_TEXT = """
abc array bisect builtins calendar cmath collections copy dataclasses datetime decimal enum fractions
functools hashlib heapq itertools json math numbers operator random re statistics string sys textwrap time
typing unicodedata
"""
MODULES = tuple(_TEXT.split())
"""Modules of Python that programs may import."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a program."""

    passed: tuple[bool, ...]
    """For each test, whether it ran without an exception."""
    parsed: bool = True
    """Whether it is a program of Python at all."""
    problem: str = ""
    """What went wrong first: an exception in one line, or the limit that ended the program; empty if nothing did."""


def _environment() -> dict[str, str]:
    """Return the server's environment: none of the user's secrets, and the same order of sets in each process."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # programs cannot start any
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH") if name in os.environ}
    return {"PYTHONHASHSEED": "0", **dict.fromkeys(threads, "1"), **libraries}


class Sandbox:
    """A place where programs run.

    Parameters
    ----------
    modules : sequence of str
        What programs may import. All of them are loaded before any program runs.
    time_limit_s : float
        Seconds that a program has, with its tests.
    memory_gib : float
        Memory that a program may have.

    Raises
    ------
    UserError
        If this system has no sandbox, or a module cannot be imported.
    """

    def __init__(self, modules: Sequence[str] = MODULES, time_limit_s: float = 3.0, memory_gib: float = 1.0):
        self._settings = {"modules": list(modules), "time_limit_s": time_limit_s, "memory": int(memory_gib * 2**30)}
        self._server: subprocess.Popen[str] | None = None
        self._start()

    def run(self, program: str, tests: Sequence[str]) -> Outcome:
        """Run a program and then, in its namespace, each test; all of them fail if the program does."""
        if self._server is None or self._server.poll() is not None:
            self._start()
        said = self._ask({"program": program, "tests": list(tests)})
        return Outcome(passed=tuple(said["passed"]), parsed=said["parsed"], problem=said["problem"])

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
            self._server = None

    def _start(self) -> None:
        if sys.platform != "linux":
            raise UserError(f"task.name: code that a model writes runs on Linux only, not on {sys.platform}")
        # neither the working directory nor the user's own packages decide what is imported
        command = [sys.executable, "-s", "-P", str(Path(__file__).with_name("server.py"))]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )
        said = self._ask(self._settings)
        if said["problem"]:
            self.close()
            raise UserError(f"task.name: code that a model writes cannot run here: {said['problem']}")

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._server is not None
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of the sandbox ended with {self._server.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer
