"""Run esmpi with a fault in a phase: python at_phase.py VICTIM FAULT PHASE STAMP PAUSE_S CONFIG [overrides].

The fault comes in the second generation, or at the start where the phase is there. When it comes, the time is written
to the file STAMP, which must not exist: so it comes once. The rest is the program as it is.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esmpi import run
from esmpi.mpi.launcher import launcher


def main() -> int:
    victim, fault, phase, stamp, pause_s, *arguments = sys.argv[1:]
    started_by = launcher()
    rank = started_by.rank if started_by else 0
    if rank == (1 if victim == "another rank" else 0):
        directory = next(word.partition("=")[2] for word in arguments if word.startswith("run.output_dir="))
        Hook(
            phase, lambda: strike(victim, fault, Path(directory) / "tiny", float(pause_s)), Path(stamp), rank
        ).install()
    return run.main(arguments)


class Hook:
    """Lets a function of a phase begin with a fault."""

    def __init__(self, phase: str, strike: Callable[[], None], stamp: Path, rank: int):
        self._phase, self._strike, self._stamp, self._rank = phase, strike, stamp, rank
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
        if "vllm" in " ".join(sys.argv) and self._phase == "generate":
            from esmpi.engines.vllm.engine import VllmEngine

            where = VllmEngine
        original = getattr(where, name)

        def struck(*positional: Any, **named: Any) -> Any:
            if (not in_second or self._is_time()) and not self._stamp.exists():
                if self._phase in ("generate", "score"):
                    time.sleep(0.3)  # rank 0 has written the generation before
                self._stamp.write_text(str(time.time()))
                self._strike()
            return original(*positional, **named)

        setattr(where, name, struck)

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


def strike(victim: str, fault: str, directory: Path, pause_s: float) -> None:
    """Let the fault happen."""
    if victim in ("scoring process", "vLLM worker"):
        for child in children(os.getpid(), b"VLLM::Worker" if victim == "vLLM worker" else b"multiprocessing.spawn"):
            send(fault, child, pause_s)
    elif fault in ("kill", "TERM", "STOP"):
        send(fault, os.getpid(), pause_s)
    elif fault == "exception":
        raise RuntimeError("the fault of the test")
    elif fault == "memory":
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (2**40, hard))
        bytearray(2**41)
    elif fault == "disk":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # the next file that grows is refused
    elif fault == "directory":
        directory.rename(directory.with_name("moved"))
    elif fault == "clock":
        now = time.time
        time.time = lambda: now() - 3600


def send(fault: str, process: int, pause_s: float) -> None:
    """Send a signal; a process that is stopped continues later."""
    if fault == "STOP":
        subprocess.Popen(["sh", "-c", f"sleep {pause_s}; kill -CONT {process}"])
    os.kill(process, {"kill": signal.SIGKILL, "TERM": signal.SIGTERM, "STOP": signal.SIGSTOP}[fault])


def children(parent: int, what: bytes) -> list[int]:
    """Return the processes below this one that are of a kind, by what is in their names."""
    below, found = {parent}, []
    numbers = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    for number in numbers:
        try:
            status = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()
            command = Path(f"/proc/{number}/cmdline").read_bytes() + Path(f"/proc/{number}/comm").read_bytes()
        except OSError:  # it ended
            continue
        if int(status[1]) in below:
            below.add(number)
            if what in command:
                found.append(number)
    assert found, f"no process {what!r} below {parent}"
    return found


if __name__ == "__main__":
    sys.exit(main())
