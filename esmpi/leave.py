"""End a process that is esmpi's own."""

import atexit
import os
import sys
import threading
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End a process that is nothing but `python -m esmpi...`, and leave its memory to the operating system.

    To take torch apart object by object, as sys.exit does, keeps a core busy for one to two seconds. Threads are
    waited for, exit handlers run, and output is written; what C libraries or a task's own files hold back is not.
    """
    whole = sys.modules["__main__"].__spec__
    if whole is None or not whole.name.startswith("esmpi.") or sys.flags.interactive or sys.gettrace() is not None:
        sys.exit(code)  # the process is a notebook's, a profiler's, a debugger's
    others = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    for thread in others:
        thread.join(1.0)  # those of a pool that was just given up need a moment
    if any(thread.is_alive() for thread in others):
        sys.exit(code)  # which waits for them
    atexit._run_exitfuncs()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()  # mpi4py does it where sys.exit comes to
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        sys.exit(code)  # which says so
    os._exit(code)
