"""A profile of one generation: when each rank did what."""

import numpy as np

from esmpi.mpi.comm import Comm
from esmpi.stopwatch import Stopwatch
from esmpi.store.run_file import PROFILE_DTYPE


def gather_profile(comm: Comm, generation: int, watch: Stopwatch) -> np.ndarray:
    """Collective. Return the intervals of all ranks, (n,) of PROFILE_DTYPE, by rank and begin.

    Each rank's clock begins with its stopwatch; those of different hosts need not agree.
    """
    mine = [(name, started - watch.started, ended - watch.started) for name, started, ended in watch.intervals or ()]
    rows = [
        (generation, rank, name.encode(), started, ended)
        for rank, intervals in enumerate(comm.allgather_object(mine))
        for name, started, ended in sorted(intervals, key=lambda interval: interval[1])
    ]
    return np.array(rows, PROFILE_DTYPE)
