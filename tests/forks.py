"""Start the program as a fork of a process that has imported all that is slow to import.

A start of Python with torch takes seconds, most of what a small run takes. Here a server imports once and forks for
each start; the fork is the program as it is, from `python -m esmpi...` on. `python forks.py ENGINE` is the server: it
reads a line of JSON a start, and answers with two: the process id, and the exit code.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
PROGRAMS = ("esmpi", "esmpi.run")
SLOW = {
    "hf": ("esmpi.commands.eval", "esmpi.engines.hf.engine", "esmpi.evaluate", "esmpi.store.replay", "esmpi.train"),
    # not numba, over which vLLM trips at its start
    "vllm": ("vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker", "transformers"),
}
"""What a server imports, by the engine of its programs."""


OF_NO_ACCOUNT = ("PYTEST_CURRENT_TEST", "TRITON_INTERPRET")
"""Variables that may differ between a server and what it starts: neither engine looks at them on a CPU."""


class Forks:
    """A server, as the tests see it. It starts with the first program that is asked for."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._environment = dict(os.environ)
        self._server: subprocess.Popen[str] | None = None

    def can_start(self, arguments: Sequence[str]) -> bool:
        """Return whether a start may be a fork: of a module of esmpi's, in the environment that the server has."""
        current, known = (
            {key: value for key, value in environment.items() if key not in OF_NO_ACCOUNT}
            for environment in (os.environ, self._environment)
        )
        return arguments[0] == "-m" and arguments[1] in PROGRAMS and current == known

    def run(self, arguments: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run `python` with these arguments, as subprocess.run does."""
        if self._server is None:
            # no library may make threads before the server forks
            single = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
            self._server = subprocess.Popen(
                [sys.executable, __file__, self._engine],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=os.environ | single | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
            )
        with tempfile.TemporaryDirectory() as folder:
            out, err = (str(Path(folder) / name) for name in ("out", "err"))
            asked = {"module": arguments[1], "arguments": list(arguments[2:]), "out": out, "err": err}
            assert self._server.stdin is not None
            self._server.stdin.write(json.dumps(asked | {"environment": dict(os.environ)}) + "\n")
            self._server.stdin.flush()
            pid = self._answer()["pid"]
            timer = threading.Timer(timeout_s, os.kill, (pid, 9))
            timer.start()
            try:
                code = self._answer()["code"]
            finally:
                timer.cancel()
            texts = [Path(path).read_text() for path in (out, err)]
            return subprocess.CompletedProcess([sys.executable, *arguments], code, *texts)

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._server is not None
        assert self._server.stdout is not None
        return dict(json.loads(self._server.stdout.readline()))


def serve() -> None:
    """Fork for each start that is asked for."""
    for module in SLOW[sys.argv[1]]:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not be forked"
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(asked)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def become(asked: dict[str, Any]) -> NoReturn:
    """Be the program that is asked for."""
    for number, path in enumerate((os.devnull, asked["out"], asked["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), number)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = [asked["module"], *asked["arguments"]]
    sys.path[0] = str(ROOT)  # as `python -m` has it, in place of this file's folder
    code: Any = 0
    try:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    serve()
