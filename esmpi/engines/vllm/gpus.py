"""Which of a node's GPUs a rank uses."""

import os

from esmpi.errors import UserError
from esmpi.mpi.comm import Place
from esmpi.mpi.launcher import launcher, local_rank


def show_own_gpus(num_workers: int) -> None:
    """Let this process see only its own GPUs, if it sees those of other ranks, too.

    Call it before MPI starts: an MPI library for CUDA starts the driver, which reads CUDA_VISIBLE_DEVICES only then.
    Nothing changes where there are too few GPUs: `check_gpus` tells, when all ranks can hear of it.

    Parameters
    ----------
    num_workers : int
        GPUs of each rank.
    """
    started_by = launcher()
    if started_by is None or started_by.size == 1 or "SLURM_GPUS_PER_TASK" in os.environ:
        return  # alone, or Slurm has bound each rank's own
    gpus = visible_gpus()
    first = local_rank() * num_workers
    if num_workers < len(gpus) and first + num_workers <= len(gpus):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + num_workers])


def check_gpus(num_workers: int, place: Place) -> None:
    """Raise UserError if the GPUs that this process sees are neither its own nor enough for all ranks of its node.

    Also if it has several slices of GPUs: CUDA gives a process only one.
    """
    if num_workers > 1 and sees_slices():
        raise UserError(
            "engine: a rank cannot use several slices of a GPU (MIG): set engine.tensor_parallel_size=1 and "
            "engine.pipeline_parallel_size=1, or take whole GPUs"
        )
    if "SLURM_GPUS_PER_TASK" in os.environ:
        return
    num_gpus = len(visible_gpus())
    if place.num_local_ranks > 1 and num_workers < num_gpus < place.num_local_ranks * num_workers:
        raise UserError(
            f"engine: {place.num_local_ranks} ranks on {place.host} with {num_workers} GPUs each, but there are "
            f"only {num_gpus}"
        )


def sees_slices() -> bool:
    """Return whether the GPUs that this process sees are slices (MIG). Of these CUDA finds only the first."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").strip().startswith("MIG-")


def visible_gpus() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them: by number or UUID."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]  # asks NVML, and does not start CUDA
