"""Whether the GPUs of a node are enough for its ranks, and each is used by one of them only."""

from collections.abc import Sequence


def too_few(num_visible: int, per_rank: int, num_local_ranks: int) -> str | None:
    """Return what is wrong with the number of GPUs that a rank sees, None if nothing is.

    Parameters
    ----------
    num_visible : int
        GPUs that the rank sees: its own, or those of all ranks of the node.
    per_rank : int
        GPUs that the engine of a rank uses.
    num_local_ranks : int
        Ranks on the node.
    """
    if num_visible < per_rank:
        return (
            f"the engine of a rank uses {per_rank} GPUs, but sees {num_visible}: give the job more GPUs per task, or "
            f"set engine.tensor_parallel_size"
        )
    if per_rank < num_visible < per_rank * num_local_ranks:
        return (
            f"{num_local_ranks} ranks on this node with {per_rank} GPUs each share {num_visible} GPUs: start fewer "
            f"ranks per node (--ntasks-per-node)"
        )
    return None


def shared_gpus(hosts: Sequence[str], gpus: Sequence[Sequence[str]]) -> list[str]:
    """Return for each GPU that several ranks use, by UUID, which ranks they are.

    Parameters
    ----------
    hosts : sequence of str
        The node of each rank.
    gpus : sequence of sequence of str
        The UUIDs of the GPUs that each rank uses.
    """
    users: dict[tuple[str, str], list[int]] = {}
    for rank, (host, own) in enumerate(zip(hosts, gpus, strict=True)):
        for gpu in own:
            users.setdefault((host, gpu), []).append(rank)
    return [
        f"ranks {ranks} use the same GPU of {host}, {gpu}" for (host, gpu), ranks in users.items() if len(ranks) > 1
    ]
