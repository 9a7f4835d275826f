"""Asking a run to stop: the first signal sets a flag, the loop acts on it at the end of the generation."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# submitit has Slurm send SIGUSR2, a closed ssh session sends SIGHUP: either kills a rank that does not handle it
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Requests to stop. Processes that work for a rank ignore them: the rank ends them by itself, in its own time."""

_SAME_REQUEST_S = 2.0
"""Slurm, srun and a batch script may each pass on the same request: signals this close together count as one."""


@contextmanager
def signals_restored() -> Iterator[None]:
    """Give back, after a block, the signals that a run takes over; outside the main thread, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Let processes that are started in the block begin with the run's signals blocked.

    A terminal and Slurm signal all processes, also those that are only starting, which the signal would end. Such a
    process unblocks `SIGNALS` once it handles them.
    """
    start_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_tracker() -> None:
    """Start multiprocessing's process for shared memory, which it has when it needs it, with the signals blocked."""
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # it unblocks some of them, here as well
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopFlag:
    """Becomes true at the first SIGTERM, SIGINT, SIGHUP, SIGUSR1 or SIGUSR2; a second one ends the process at once.

    Nothing committed is lost by that: the run file is never half-written. SIGHUP stays ignored if it was, as by nohup.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._first = 0.0

    def install(self) -> None:
        """Take over the signals; only possible in the main thread."""
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take over the signals for a block, and give them back; outside the main thread, do nothing."""
        with signals_restored():
            if threading.current_thread() is threading.main_thread():
                self.install()
            yield

    def ignore(self) -> None:
        """Ignore signals from now on: the run is over, and a late signal would change its exit code."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._first = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._first > _SAME_REQUEST_S:
            os._exit(128 + number)
