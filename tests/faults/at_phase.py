"""Run esmpi with a fault in a phase: python at_phase.py VICTIM FAULT PHASE STAMP PAUSE_S CONFIG [overrides].

The fault comes in the second generation, or at the start where the phase is there. When it comes, the time is written
to the file STAMP, which must not exist: so it comes once. The rest is the program as it is.
"""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esmpi import run
from esmpi.mpi.launcher import launcher

ASKED = "ESMPI_FAULTS_ASKED"
"""Environment variable with the path of a file that says what is to happen to a vLLM worker (struck_worker.py)."""


def main() -> int:
    victim, fault, phase, stamp, pause_s, *arguments = sys.argv[1:]
    started_by = launcher()
    rank = started_by.rank if started_by else 0
    if rank == (1 if victim == "another rank" else 0):
        if fault == "read-only":
            see_own_mounts()  # before there are other threads
        directory = next(word.partition("=")[2] for word in arguments if word.startswith("run.output_dir="))
        Hook(
            *(victim, phase, Path(stamp), rank),
            lambda: strike(victim, fault, phase, Path(directory) / "tiny", float(pause_s)),
        ).install()
    return run.main(arguments)


def see_own_mounts() -> None:
    """Let what this process mounts be seen by itself alone, and vanish with it."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(0x20000) or library.mount(b"none", b"/", None, 0x44000, None):  # CLONE_NEWNS; REC, PRIVATE
        raise OSError(ctypes.get_errno(), "no mounts of its own")


class Hook:
    """Lets a function of a phase begin with a fault."""

    def __init__(self, victim: str, phase: str, stamp: Path, rank: int, strike: Callable[[], None]):
        self._victim, self._phase, self._stamp, self._rank, self._strike = victim, phase, stamp, rank, strike
        self._generation = 0
        self._in_members = False

    def install(self) -> None:
        from esmpi import session, setup, train
        from esmpi.engines.hf import engine
        from esmpi.record.recorder import Recorder
        from esmpi.store.run_file import RunFile

        self._follow(train, session)
        first = self._rank == 0
        where, name, in_second = {
            "load": (setup, "load_problems", False),
            "self-test": (engine, "open_weights", False),
            "generate": (engine.HfEngine, "generate", True),
            "score": (session.Session, "begin_scoring", True),
            "exchange": (train, "exchange", True),
            "update": (train, "shrink_theta", True),
            "commit": (RunFile, "_write_files", True) if first else (Recorder, "commit", True),
            "snapshot": (train, "snapshot_if_due", True),
            "evaluate": (train, "evaluate", True),
            "export": (session, "export", True) if first else (session.Session, "finish", True),
        }[self._phase]
        if self._victim == "vLLM worker":
            self._put_into_workers()
        if self._victim == "vLLM worker" and self._phase in ("load", "self-test", "generate"):
            from esmpi.engines.vllm import engine as vllm

            where, name = {
                "load": (vllm.VllmEngine, "_rpc"),  # the first call: the workers have loaded the model
                "self-test": (vllm.SelfTest, "weights"),
                "generate": (vllm.VllmEngine, "generate"),
            }[self._phase]
        original = getattr(where, name)

        def struck(*positional: Any, **named: Any) -> Any:
            if (not in_second or self._is_time()) and not self._stamp.exists():
                if self._phase in ("generate", "score"):
                    time.sleep(0.3)  # rank 0 has written the generation before
                numbers = "\n".join(str(number) for number, _ in below(os.getpid()))
                self._stamp.with_name("processes").write_text(numbers)
                self._stamp.write_text(str(time.time()))
                self._strike()
            return original(*positional, **named)

        setattr(where, name, struck)

    def _put_into_workers(self) -> None:
        """Let workers be those of struck_worker.py."""
        from esmpi.engines.vllm import engine as vllm

        sys.path.insert(0, str(Path(__file__).parent))  # a process that is spawned has this path, too
        os.environ[ASKED] = str(self._stamp.with_name("asked"))
        vllm._EXTENSION = "struck_worker.StruckExtension"

    def _is_time(self) -> bool:
        return self._generation >= 1 and (self._phase != "generate" or self._in_members)

    def _follow(self, train: Any, session: Any) -> None:
        """Follow the run's generations."""
        begin, members = train.begin_control, train.evaluate_members

        def beginning(its: Any, *rest: Any) -> Any:
            self._generation = its.generation
            return begin(its, *rest)

        def in_members(*rest: Any) -> Any:
            self._in_members = True
            try:
                return members(*rest)
            finally:
                self._in_members = False

        train.begin_control, train.evaluate_members = beginning, in_members


def strike(victim: str, fault: str, phase: str, directory: Path, pause_s: float) -> None:
    """Let the fault happen."""
    if victim == "vLLM worker":
        strike_worker(fault, phase, pause_s)
    elif victim == "scoring process":
        for child in children(b"multiprocessing.spawn"):
            send(fault, child, pause_s)
    elif fault in ("kill", "TERM", "STOP"):
        send(fault, os.getpid(), pause_s)
    elif fault == "exception":
        raise RuntimeError("the fault of the test")
    elif fault == "memory":
        refuse_memory()
    elif fault == "disk":
        # the next file that grows is refused; Python ignores the signal for that
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    elif fault == "deleted":
        while directory.exists():  # files may still be written meanwhile
            shutil.rmtree(directory, ignore_errors=True)
    elif fault == "read-only":
        subprocess.run(["mount", "--bind", directory, directory], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
    elif fault == "renamed":
        directory.rename(directory.with_name("moved"))
    elif fault == "clock":
        now = time.time
        time.time = lambda: now() - 3600


def strike_worker(fault: str, phase: str, pause_s: float) -> None:
    """Let the fault happen to one of two workers: the other one waits for it."""
    if fault in ("exception", "memory"):
        Path(os.environ[ASKED]).write_text(fault)
    else:  # in the midst of a generation, for which it is asked only afterwards
        send(fault, children(b"VLLM::Worker")[-1], pause_s, delay_s=0.3 if phase == "generate" else 0)


def refuse_memory() -> None:
    """Ask for more memory than there is for this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, hard))
    bytearray(2**41)


def send(fault: str, process: int, pause_s: float, delay_s: float = 0) -> None:
    """Send a signal; a process that is stopped continues later."""
    if fault == "STOP":
        subprocess.Popen(["sh", "-c", f"sleep {delay_s + pause_s}; kill -CONT {process}"])
    number = {"kill": signal.SIGKILL, "TERM": signal.SIGTERM, "STOP": signal.SIGSTOP}[fault]
    if delay_s:
        subprocess.Popen(["sh", "-c", f"sleep {delay_s}; kill -{number.value} {process}"])
    else:
        os.kill(process, number)


def children(what: bytes) -> list[int]:
    """Return the processes below this one that are of a kind, by what is in their names."""
    found = [number for number, name in below(os.getpid()) if what in name]
    assert found, f"no process {what!r} below {os.getpid()}"
    return found


def below(parent: int) -> list[tuple[int, bytes]]:
    """Return the processes below one: their numbers, and their command lines and names."""
    family, found = {parent}, []
    for number in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            status = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()
            command = Path(f"/proc/{number}/cmdline").read_bytes() + Path(f"/proc/{number}/comm").read_bytes()
        except OSError:  # it ended
            continue
        if int(status[1]) in family:
            family.add(number)
            found.append((number, command))
    return found


if __name__ == "__main__":
    sys.exit(main())
