"""End a process that is esmpi's own."""

import atexit
import ctypes
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

takes_leave_of_mpi = True
"""Whether MPI is finalized at the end. Where ranks were lost, that would wait for them."""


def open_streams() -> None:
    """Let standard streams that this process was started without lead nowhere, as after `>&-` or in some daemons.

    Otherwise the next files that are opened, such as the run file, would have their numbers, and get what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue  # Python alone has none
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 (for the whole process)


def leave(code: int) -> NoReturn:
    """End a process that runs `python -m esmpi...` and nothing else; leave its memory to the operating system.

    sys.exit destroys torch object by object, which keeps a core busy for one to two seconds. Here the process waits
    for its threads and ends. The buffers of C libraries and of files that a task has left open are not flushed.

    Parameters
    ----------
    code : int
        The exit code.
    """
    whole = sys.modules["__main__"].__spec__
    if whole is None or not whole.name.startswith("esmpi.") or sys.flags.interactive or sys.gettrace() is not None:
        sys.exit(code)  # the process belongs to a notebook, a profiler or a debugger
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    for thread in others:
        thread.join(1.0)  # the threads of a pool that was just closed need a moment
    if any(thread.is_alive() for thread in others):
        sys.exit(code)  # which waits for them
    end(code)


def end(code: int) -> NoReturn:
    """End this process without taking Python's objects apart: run exit handlers, finalize MPI, flush the output."""
    atexit._run_exitfuncs()
    mpi = sys.modules.get("mpi4py.MPI") if takes_leave_of_mpi else None
    uses_mpi = mpi is not None and mpi.Is_initialized()
    if mpi is not None and uses_mpi and not mpi.Is_finalized():
        mpi.Finalize()  # mpi4py itself does this only in sys.exit
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        sys.exit(code)  # which reports the error
    if uses_mpi:
        # MPICH takes leave of mpiexec in an exit handler of C's. A process that ends without it counts as lost, and
        # mpiexec then kills those that are still ending.
        ctypes.PyDLL(None).exit(code)
    os._exit(code)
