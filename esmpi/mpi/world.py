"""Run a program's work with the world of ranks, and end all of them if it fails on one."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from esmpi.errors import SharedError, UserError
from esmpi.mpi.launcher import speaks_for_all

if TYPE_CHECKING:
    from esmpi.mpi.comm import Comm


def on_all_ranks(work: Callable[["Comm"], int]) -> int:
    """Collective. Do the work with the world of ranks, and end all of them if it fails on one; return the exit code.

    `work` returns it if all goes well.
    """
    # Threads that wait for work must not spin: ranks and other jobs on the same cores would crawl. Read by the
    # OpenMP library as it is loaded, so it has to be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from esmpi.mpi.comm import Comm

    try:
        comm = Comm()
    except UserError as error:
        if speaks_for_all():
            print(f"esmpi: {error}", file=sys.stderr)
        return 2
    try:
        try:
            code = work(comm)
        except SharedError as error:
            if comm.is_root:
                print(f"esmpi: {error}", file=sys.stderr)
            code = 2
        # srun may end all ranks when the first has an exit code: so nobody leaves before all have finished their files
        comm.barrier()
        return code
    except UserError as error:
        print(f"esmpi: {error}" if comm.size == 1 else f"esmpi: rank {comm.rank}: {error}", file=sys.stderr)
        comm.abort(2)
        return 2
    except BaseException:
        # The other ranks wait for this one and would wait for ever: first its traceback, then the end of all.
        comm.report_failure()
        comm.abort(1)
        return 1
