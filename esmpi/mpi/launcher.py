"""What the launcher (mpiexec, srun) says about this process in its environment. Imports no MPI."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

_LAUNCHERS = (
    # launcher, ranks in the world, rank; the innermost launcher first: mpiexec may itself run under srun
    ("Open MPI's mpiexec", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MVAPICH's mpiexec", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("mpiexec", "PMI_SIZE", "PMI_RANK"),
    ("PALS mpiexec", "PALS_SIZE", "PALS_RANKID"),
    ("Flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    # only inside a step: a batch script has SLURM_NTASKS, too, but is one process
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)

_LOCAL_RANKS = (
    *("OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID"),
    *("FLUX_TASK_LOCAL_ID", "SLURM_LOCALID"),
)
"""Which of the processes on its node a process is; the innermost launcher first, as above."""


@dataclass(frozen=True)
class Launcher:
    """A launcher, as its processes see it."""

    name: str
    size: int
    """Processes that it started."""
    rank: int
    """Which of them this is."""


def launcher(environ: Mapping[str, str] = os.environ) -> Launcher | None:
    """Return the launcher that started this process as one of several ranks, or None."""
    for name, size, rank in _LAUNCHERS:
        if environ.get(size, "").isdigit() and environ.get(rank, "").isdigit():
            # srun speaks PMI, too
            by_srun = (environ.get("SLURM_STEP_NUM_TASKS"), environ.get("SLURM_PROCID")) == (
                environ[size],
                environ[rank],
            )
            return Launcher("srun" if by_srun else name, int(environ[size]), int(environ[rank]))
    return None


def local_rank(environ: Mapping[str, str] = os.environ) -> int:
    """Return which of the ranks on its node this process is, 0 if the launcher does not say."""
    if launcher(environ) is not None:
        for name in _LOCAL_RANKS:
            if environ.get(name, "").isdigit():
                return int(environ[name])
    return 0


def speaks_for_all(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is the one that prints what all ranks would print."""
    started_by = launcher(environ)
    return started_by is None or started_by.rank == 0


def slurm_job(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the Slurm job that this process is in, as Slurm's commands take it; None outside of a job."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    # one task of an array has the number of the whole array as its job id: `scontrol requeue` would take them all
    return f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")
