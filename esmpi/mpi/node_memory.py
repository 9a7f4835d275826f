"""Memory that all ranks of a node have, and how they meet before and after they write there."""

import mmap
import os
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from esmpi.mpi.nodes import wait


class NodeMemory:
    """Memory of the ranks of a node, of which each takes the same pieces in the same order.

    It has no name in any file system, so nothing is left when ranks are killed.

    Parameters
    ----------
    node
        A communicator of mpi4py, of the ranks of a node.
    memory : mmap
    """

    def __init__(self, node: Any, memory: mmap.mmap):
        self._node = node
        self._memory = torch.frombuffer(memory, dtype=torch.float32)
        self.num_taken = 0
        """Elements that this rank has taken."""

    @property
    def rank(self) -> int:
        """Which of the ranks of its node this is."""
        return int(self._node.rank)

    @property
    def size(self) -> int:
        """How many ranks the node has."""
        return int(self._node.size)

    def take(self, num_elements: int) -> torch.Tensor:
        """Return the next piece, (num_elements,) float32: the same memory that the others take.

        Pieces take no memory until they are written.
        """
        piece = self._memory[self.num_taken : self.num_taken + num_elements]
        assert len(piece) == num_elements
        self.num_taken += num_elements
        return piece

    def meet(self, token: int) -> None:
        """Collective over the node. Return when all its ranks are here with the same token, 0 to 2^64 - 1.

        Raises
        ------
        RuntimeError
            If one is here for something else: what they would write does not fit together.
        """
        tokens = np.empty(self._node.size, np.uint64)
        wait(self._node.Iallgather(np.array([token], np.uint64), tokens))
        if len(set(tokens.tolist())) > 1:
            raise RuntimeError(
                "engine.share_theta: the ranks of this node are about to write different updates into one theta"
            )


def share_memory(node: Any, num_bytes: int) -> NodeMemory | None:
    """Collective over a node. Return memory of so many bytes that its ranks share, None if they cannot."""
    memory, handle = None, None
    with suppress(OSError):
        if node.rank == 0:
            handle = os.memfd_create("esmpi-theta")
            os.ftruncate(handle, num_bytes)
            memory = mmap.mmap(handle, num_bytes)
    where = node.bcast(None if memory is None else (os.getpid(), handle))
    with suppress(OSError):  # ranks in containers of their own
        if node.rank > 0 and where is not None:
            with open("/proc/{}/fd/{}".format(*where), "r+b") as file:
                memory = mmap.mmap(file.fileno(), num_bytes)
    all_have_it = all(node.allgather(memory is not None))
    if handle is not None:
        os.close(handle)
    return NodeMemory(node, memory) if all_have_it and memory is not None else None
