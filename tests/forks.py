"""Start programs as forks of a process that has imported all that is slow to import.

A start of Python with torch and transformers takes seconds, most of what a small run takes. Here a server imports once
and forks for each start; the fork is then the program as it is. `python forks.py serve ENGINE ADDRESS` is the server.
`python forks.py start ADDRESS ARGUMENTS` stands in for `python ARGUMENTS`: this is what mpiexec starts in place of a
rank. The fork has its environment, its open files and the processors that it may use; signals reach the fork, and the
one ends when and as the other does.
"""

import fcntl
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
SLOW = {
    "hf": ("esmpi.commands.eval", "esmpi.engines.hf.engine", "esmpi.evaluate", "esmpi.store.replay", "esmpi.train"),
    # not numba, over which vLLM trips at its start
    "vllm": ("vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker", "transformers"),
}
"""What a server imports, by the engine of its programs."""

LARGEST_MESSAGE = 2**20
START_LIMIT_S = 120.0
LOOK_EVERY_S = 2.0
WITHOUT_EFFECT = ("PYTEST_CURRENT_TEST", "TRITON_INTERPRET")
"""Variables that may differ between a server and what it starts: neither engine reads them on a CPU."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Forks:
    """A server, as the tests see it. It starts with the first program that is asked for."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._environment = dict(os.environ)
        self._server: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="esmpi-forks-")
        self._address = str(Path(self._folder.name) / "server")

    def can_start(self, arguments: Sequence[str]) -> bool:
        """Return whether a start may be a fork: of esmpi or of a script, in the environment that the server has."""
        current, known = (
            {key: value for key, value in environment.items() if key not in WITHOUT_EFFECT}
            for environment in (os.environ, self._environment)
        )
        is_known = arguments[0].endswith(".py") or arguments[:2] in (["-m", "esmpi"], ["-m", "esmpi.run"])
        return is_known and current == known

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that starts `python ARGUMENTS` as a fork, for mpiexec."""
        self._serve()
        # without site-packages, which it does not need, Python starts faster
        return [sys.executable, "-I", "-S", __file__, "start", self._address, *arguments]

    def run(self, arguments: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` as a fork, as subprocess.run does."""
        self._serve()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, open(os.devnull) as nothing:
            connection, pid = ask(self._address, arguments, [nothing.fileno(), out.fileno(), err.fileno()], [0, 1, 2])
            with connection:
                connection.settimeout(timeout_s)
                try:
                    code = json.loads(connection.recv(LARGEST_MESSAGE))
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(list(arguments), timeout_s) from None
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([sys.executable, *arguments], code, out.read(), err.read())

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
        self._folder.cleanup()

    def _serve(self) -> None:
        if self._server is not None:
            return
        # no library may make threads before the server forks
        single = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        self._server = subprocess.Popen(
            [sys.executable, __file__, "serve", self._engine, self._address],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ | single | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
        )
        deadline = time.monotonic() + START_LIMIT_S
        while not os.path.exists(self._address):
            assert self._server.poll() is None, "the server did not start"
            assert time.monotonic() < deadline, "the server takes too long to start"
            time.sleep(0.05)


def ask(
    address: str, arguments: Sequence[str], descriptors: Sequence[int], numbers: Sequence[int]
) -> tuple[socket.socket, int]:
    """Ask a server for a fork; return the connection, from which its exit code will come, and its process id.

    The fork gets the open files `descriptors` under these `numbers`.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    asked = {
        "arguments": list(arguments),
        "numbers": list(numbers),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "cores": sorted(os.sched_getaffinity(0)),
    }
    socket.send_fds(connection, [json.dumps(asked).encode()], list(descriptors))
    return connection, json.loads(connection.recv(LARGEST_MESSAGE))


def stand_in(address: str, arguments: Sequence[str]) -> NoReturn:
    """Be there in place of a fork: pass signals on to it, and end as it does."""
    # MPICH's mpiexec talks to a rank through an open file that a variable names
    open_files = [0, 1, 2, *(int(os.environ[name]) for name in ("PMI_FD",) if name in os.environ)]
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    connection, pid = ask(address, arguments, open_files, open_files)
    for number in SIGNALS:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    code = json.loads(connection.recv(LARGEST_MESSAGE))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(engine: str, address: str) -> None:
    """Fork for each start that is asked for, and say how each fork ended."""
    for module in SLOW[engine]:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not be forked"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.rename(f"{address}.new", address)  # whoever finds it can connect
    ended, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    connections: dict[int, socket.socket] = {}
    parent = os.getppid()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while os.getppid() == parent:  # tests that are killed must not leave a server behind
            for key, _ in selector.select(LOOK_EVERY_S):
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    message, descriptors, _, _ = socket.recv_fds(connection, LARGEST_MESSAGE, 16)
                    pid = os.fork()
                    if pid == 0:
                        become(json.loads(message), descriptors)
                    for descriptor in descriptors:
                        os.close(descriptor)
                    connections[pid] = connection
                    connection.send(json.dumps(pid).encode())
                    selector.register(connection, selectors.EVENT_READ, pid)
                elif key.fileobj is ended:
                    ended.recv(4096)
                    tell_ends(connections, selector)
                elif key.data in connections:  # whoever asked for it is gone
                    selector.unregister(connections[key.data])
                    with suppress(ProcessLookupError):
                        os.kill(key.data, signal.SIGKILL)


def tell_ends(connections: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    """Send the exit codes of forks that have ended to those who asked for them."""
    while connections:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        connection = connections.pop(pid)
        with suppress(KeyError):
            selector.unregister(connection)
        with connection, suppress(OSError):
            connection.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())


def become(asked: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Be the program that is asked for."""
    from esmpi.leave import end

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # first out of the way of the numbers that are taken
    moved = [duplicate(descriptor, max(asked["numbers"]) + 1) for descriptor in descriptors]
    for descriptor, number in zip(moved, asked["numbers"], strict=True):
        os.dup2(descriptor, number)
    os.closerange(max(asked["numbers"]) + 1, 1024)
    os.chdir(asked["folder"])
    os.sched_setaffinity(0, asked["cores"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    arguments = asked["arguments"]
    own = asked["environment"].get("PYTHONPATH", "").split(":")
    sys.path[1:1] = [path for path in own if path and path not in sys.path]
    code: Any = 0
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path[0] = str(ROOT)  # as `python -m` has it, in place of this file's folder
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(arguments)
            sys.path[0] = str(Path(arguments[0]).parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # as Python does, wait for threads
    end(code or 0)


def duplicate(descriptor: int, least: int) -> int:
    """Return a duplicate of an open file with a number that is not below `least`."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, least)


if __name__ == "__main__":
    serve(*sys.argv[2:]) if sys.argv[1] == "serve" else stand_in(sys.argv[2], sys.argv[3:])
