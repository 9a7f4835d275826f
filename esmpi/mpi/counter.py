"""A counter that all ranks share, from which they take their next members."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from esmpi.mpi.nodes import ANSWER_EVERY_S, unlink_shared_memory, wait

log = logging.getLogger(__name__)


class Counter:
    """A shared counter that starts at 0. Taking a number raises it by one. It is on rank 0, which need not do anything.

    MPI's one-sided operations promise the latter, but only within a node, or where the network adapter does the
    arithmetic, do they keep it. Elsewhere rank 0's MPI answers when rank 0 is next inside some call of MPI: perhaps
    not for the seconds that an engine takes. So while members are given out, a thread of rank 0 looks in now and
    then; MPI's own threads for that would spin, and have to be asked for before the start. A rank that takes a number
    uses the operation that has a request, as one can wait for that asleep.
    """

    def __init__(self, mpi: Any):
        self._mpi = mpi
        self._taken = np.zeros(1, np.int64)
        self._window: Any = None
        if mpi is None:
            return
        from mpi4py import MPI

        self._may_answer = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        if not self._may_answer and mpi.rank == 0:
            log.warning(
                "es.dispatch: this MPI allows one thread only: where it needs rank 0 for giving out a member, a rank "
                "waits until rank 0 has finished its own"
            )
        # of MPI's own memory, which on one node all ranks share
        self._window = MPI.Win.Allocate(8 if mpi.rank == 0 else 0, 8, comm=mpi)
        if mpi.rank == 0:
            self._window.Lock(0)
            np.frombuffer(self._window.tomemory(), np.int64)[0] = 0
            self._window.Unlock(0)
        wait(mpi.Ibarrier())
        unlink_shared_memory()
        self._window.Lock_all(MPI.MODE_NOCHECK)

    def take(self) -> int:
        """Return the number and raise it."""
        if self._window is None:
            self._taken += 1
            return int(self._taken[0]) - 1
        wait(self._window.Rget_accumulate(np.ones(1, np.int64), self._taken, 0))  # adds, if not told otherwise
        return int(self._taken[0])

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Have rank 0 answer the others during the block, whatever it does itself."""
        if self._window is None or self._mpi.rank != 0 or not self._may_answer:
            yield
            return
        over = threading.Event()

        def answer() -> None:
            while not over.wait(ANSWER_EVERY_S):
                self._mpi.Iprobe()  # lets MPI process the messages that have arrived

        thread = threading.Thread(target=answer, name="esmpi-counter", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def close(self) -> None:
        """Collective. Free the counter."""
        if self._window is not None:
            self._window.Unlock_all()
            self._window.Free()
