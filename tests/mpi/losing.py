"""Run esmpi and lose ranks: python losing.py LOSS[,LOSS...] CONFIG [overrides].

A loss is RANK:PLACE:GENERATION: the rank, by its number at the start, is killed when it first comes to a place with
theta of that generation or a later one. The rest is the program as it is.
"""

import ctypes
import os
import signal
import sys
import time
from typing import Any

from esmpi import run
from esmpi.mpi.launcher import launcher


def main() -> int:
    losses, *arguments = sys.argv[1:]
    # where this is a fork, mpiexec's LD_LIBRARY_PATH comes too late
    ctypes.CDLL(os.environ["MPI4PY_LIBMPI"], ctypes.RTLD_GLOBAL)
    started_by = launcher()
    for loss in losses.split(","):
        rank, place, generation = loss.split(":")
        if started_by is not None and started_by.rank == int(rank):
            install(place, int(generation))
    return run.main(arguments)


def install(place: str, generation: int) -> None:
    """Let this rank be killed at a place."""
    from esmpi import recovery, session, setup, train
    from esmpi.mpi.comm import Comm

    where, name = {
        "load": (setup, "load_problems"),
        "generate": (train, "evaluate_wave"),
        "update": (train, "shrink_theta"),
        "evaluate": (train, "evaluate"),
        "rejoin": (recovery, "catch_up"),
        "export": (session, "export"),
        "meet": (Comm, "meet"),
    }[place]
    original = getattr(where, name)

    def struck(*positional: Any, **named: Any) -> Any:
        if getattr(positional[0] if positional else None, "generation", generation) >= generation:
            time.sleep(0.5)  # rank 0 has written the generation before
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*positional, **named)

    setattr(where, name, struck)


if __name__ == "__main__":
    sys.exit(main())
