"""The MPI library: how it is started, and what it is called."""

import os
import re
from typing import Any

from esmpi.mpi.launcher import Launcher


def start_mpi(started_by: Launcher) -> Any:
    """Load MPI, start it, and return the world."""
    import mpi4py

    mpi4py.rc(initialize=False, finalize=True)
    from mpi4py import MPI

    # Slurm's pmi2 cuts a line at 1,024 bytes, though it promises values of that size beside their keys. An MPICH that
    # has both UCX and libfabric takes UCX, whose addresses it sends as 4 KiB of memory, in lines as long as what
    # happens to lie there: some starts fail, or hang. Its addresses over libfabric are a few bytes.
    if started_by.name == "srun" and re.search(r"ch4:ucx.*\bofi\b", MPI.Get_library_version()):
        os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")
    if not MPI.Is_initialized():
        MPI.Init_thread()
    return MPI.COMM_WORLD


def library_name() -> str:
    """Return the name and version of the MPI library."""
    from mpi4py import MPI

    text = MPI.Get_library_version().strip("\0 ")
    if text.startswith("MPICH"):
        return " ".join(text.split()[:3]).replace("Version: ", "")
    return text.split("\n")[0].split(",")[0]
