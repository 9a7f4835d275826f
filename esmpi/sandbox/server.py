"""The program that forks for each program that a model has written; `esmpi.sandbox` starts it and says how it is asked.

It imports nothing of esmpi. A line of JSON on standard input is a question, a line on standard output its answer.
"""

import contextlib
import ctypes
import errno
import importlib
import json
import os
import random
import resource
import secrets
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

_ALSO = ("_strptime", "encodings.ascii", "encodings.idna", "encodings.latin_1", "linecache", "traceback", "warnings")
"""Modules that others load when a function is first called."""
_TEXT = """
read write close lseek fstat mmap mprotect munmap mremap madvise brk futex rt_sigaction rt_sigprocmask
rt_sigreturn sigaltstack getpid gettid getppid getuid geteuid getgid getegid getrandom clock_gettime
clock_getres gettimeofday clock_nanosleep nanosleep sched_yield sched_getaffinity getrusage times
restart_syscall exit exit_group rseq set_robust_list membarrier
"""
_ALLOWED = tuple(_TEXT.split())
"""System calls for computing. All others fail with EPERM: those that open, connect, start or send a signal."""
_LONGEST = 500
"""Characters of what went wrong."""
_LONGEST_LINE = 10_000
_PARSED = 0x400  # ast.PyCF_ONLY_AST
_KILLED_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def main() -> None:
    """Answer questions until there are no more."""
    questions = (json.loads(line) for line in sys.stdin)
    # what modules print when they are imported is no answer
    answers = open(os.dup(1), "w", encoding="utf-8")  # noqa: SIM115  # for as long as this process lives
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    settings = next(questions)
    say(prepare(settings))
    for question in questions:
        say(run(question["program"], question["tests"], settings))


def prepare(settings: dict[str, Any]) -> dict[str, Any]:
    """Load all modules, and try whether the sandbox holds: what is wrong is the answer's `problem`."""
    for name in (*settings["modules"], *_ALSO):
        try:
            importlib.import_module(name)
        except Exception as error:
            return {"problem": f"the module {name} cannot be imported: {error}"}
    try:
        import pyseccomp  # noqa: F401  # only whether it can be
    except Exception as error:  # without the library libseccomp, a RuntimeError
        return {"problem": f"seccomp is missing: {error}: pip install 'esmpi[code]', and the system's libseccomp"}
    attempt = "import os\ntry:\n    os.open('/', os.O_RDONLY)\nexcept PermissionError:\n    held = True"
    tried = run(attempt, ["assert held"], settings | {"time_limit_s": 60.0})
    return {"problem": "" if tried["passed"] == [True] else f"seccomp does not hold here: {tried['problem']}"}


def run(program: str, tests: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Run a program and its tests in a fork; return which tests passed, and what went wrong first."""
    # what the program writes itself is not taken for a result
    word = secrets.token_hex(16)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        work(program, tests, settings, theirs, word)
    os.close(theirs)
    try:
        results = list(read_results(ours, word, settings["time_limit_s"], len(tests) + 2))
    finally:
        os.close(ours)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    parsed = any(done for kind, done, _ in results if kind == "parsed")
    passed = [done for kind, done, _ in results if kind == "test"][: len(tests)]
    problem = next((text for _, _, text in results if text), "")
    if len(passed) < len(tests) and not problem:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if results and results[-1][0] == "late":
            problem = f"no result after {settings['time_limit_s']:g} s"
        elif number not in (0, signal.SIGKILL):
            problem = f"the program was ended by {signal.Signals(number).name}"
        else:
            problem = "the program ended before its tests did"
    passed += [False] * (len(tests) - len(passed))
    return {"parsed": parsed, "passed": passed, "problem": problem[:_LONGEST]}


def read_results(pipe: int, word: str, limit_s: float, most: int) -> Iterator[tuple[str, bool, str]]:
    """Yield what the fork says of the program and of each test; and ("late", ...) when its time is over."""
    end, rest, count = time.monotonic() + limit_s, b"", 0
    while count < most:
        left = end - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            yield "late", False, ""
            return
        block = os.read(pipe, 1 << 16)
        if not block:
            return
        *lines, rest = (rest + block).split(b"\n")
        rest = rest[-_LONGEST_LINE:]
        for line in lines:
            # a program may write anything there
            with contextlib.suppress(Exception):
                said, kind, done, text = json.loads(line[-_LONGEST_LINE:])
                if said == word:
                    count += 1
                    yield str(kind), bool(done), str(text)


def work(program: str, tests: list[str], settings: dict[str, Any], pipe: int, word: str) -> None:
    """Give up everything but computing, run the program and its tests, and end. Runs in the fork."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        results = os.dup2(pipe, 3)
        os.closerange(4, 1 << 16)
        ctypes.CDLL(None).prctl(_KILLED_WITH_PARENT, signal.SIGKILL)
        random.seed(0)  # the same for each program; a fork draws its own otherwise
        limit(settings)
        forbid()

        def tell(kind: str, done: bool, text: str) -> None:
            os.write(results, (json.dumps([word, kind, done, text[:_LONGEST]]) + "\n").encode())

        # here, not where rewards are computed: some texts take long to parse, or much memory
        failed = attempt(lambda: compile(program, "<program>", "exec", _PARSED, dont_inherit=True))
        tell("parsed", not failed, failed)
        namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
        failed = failed or attempt(partial(execute, program, namespace))
        tell("program", not failed, failed)
        for test in tests if not failed else ():
            failed = attempt(partial(execute, test, namespace))
            tell("test", not failed, failed)
    finally:
        os._exit(0)


def execute(source: str, namespace: dict[str, Any]) -> None:
    """Execute source in a namespace."""
    exec(compile(source, "<program>", "exec", dont_inherit=True), namespace)


def attempt(function: Callable[[], object]) -> str:
    """Call a function; return what it raised in one line, empty if nothing."""
    try:
        function()
    except BaseException as error:  # SystemExit as well
        return " ".join(traceback.format_exception_only(error)[-1].split()) or type(error).__name__
    return ""


def limit(settings: dict[str, Any]) -> None:
    """Set limits that the system keeps."""
    seconds = int(settings["time_limit_s"]) + 1
    lower(resource.RLIMIT_CPU, seconds)
    lower(resource.RLIMIT_CORE, 0)
    # of what the modules take already, and what the program may have besides
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    lower(resource.RLIMIT_AS, taken + settings["memory"])


def lower(kind: int, value: int) -> None:
    """Set a limit for good, unless the one that holds already is lower."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def forbid() -> None:
    """Give up all system calls but those for computing."""
    import pyseccomp

    only = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in _ALLOWED:
        with contextlib.suppress(OSError):  # not every architecture has each of them
            only.add_rule(pyseccomp.ALLOW, name)
    only.load()


if __name__ == "__main__":
    main()
