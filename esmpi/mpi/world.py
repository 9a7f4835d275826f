"""The world of ranks that a program works with: it starts together, and a failure on one rank ends all."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from esmpi.errors import SharedError, UserError
from esmpi.mpi.launcher import speaks_for_all

if TYPE_CHECKING:
    from esmpi.mpi.comm import Comm


def on_all_ranks(work: Callable[["Comm"], int]) -> int:
    """Collective. Run a program's work with the world of ranks; if it fails on one rank, end all ranks.

    Parameters
    ----------
    work : callable
        Takes the world of ranks and returns the exit code.

    Returns
    -------
    int
        The exit code: that of `work`, 2 after an error that is the user's to mend, or 1 after any other error.
    """
    let_waiting_threads_sleep()
    from esmpi.mpi.comm import Comm

    try:
        comm = Comm()
    except UserError as error:
        if speaks_for_all():
            print(f"esmpi: {error}", file=sys.stderr)
        return 2
    try:
        return _work_and_meet(work, comm)
    except UserError as error:
        print(f"esmpi: {error}" if comm.size == 1 else f"esmpi: rank {comm.rank}: {error}", file=sys.stderr)
        comm.abort(2)
        return 2
    except BaseException:
        # The other ranks would wait for this one forever: print its traceback, then end them all.
        comm.report_failure()
        comm.abort(1)
        return 1


def let_waiting_threads_sleep() -> None:
    """Keep OpenMP's threads from spinning while they wait: ranks and other jobs on the same cores would crawl.

    The OpenMP library reads this when it is loaded, so torch must not have been imported yet.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def ends_all_if_it_fails(comm: "Comm") -> Iterator[None]:
    """End all ranks if the block raises on this one alone; with one rank, or what all raise together, just raise."""
    try:
        yield
    except SharedError:
        raise
    except BaseException as error:
        if comm.size > 1:
            comm.report_failure()
            comm.abort(2 if isinstance(error, UserError) else 1)
        raise


def _work_and_meet(work: Callable[["Comm"], int], comm: "Comm") -> int:
    """Collective. Return the exit code of the work, or of the SharedError that all ranks raised together."""
    from esmpi.mpi.comm import ROOT_LOST, UnsurvivedError

    try:
        code = work(comm)
    except SharedError as error:
        if comm.is_root:
            print(f"esmpi: {error}", file=sys.stderr)
        code = error.exit_code
    # srun may end all ranks as soon as one has exited, so no rank exits before all have finished their files.
    lost = comm.meet()  # after this there is nothing left that a rank could be missed for, except for rank 0
    if 0 in lost:
        if comm.rank == min(set(range(comm.size)).difference(lost)):
            print(f"esmpi: {ROOT_LOST}", file=sys.stderr)
        code = UnsurvivedError.exit_code
    return code
