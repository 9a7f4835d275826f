"""Gathering in two levels: within a node through memory that its ranks share, between nodes by MPI.

An MPI library waits by looking again and again, which is fast if each rank has a core for that. Here the cores are for
engines and rewards, so a rank that waits for others of its node sleeps until it is woken, and only the first rank of
each node, its leader, takes part in MPI's Allgather.
"""

import ctypes
import errno
import mmap
import os
import socket
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

ANSWER_EVERY_S = 5e-3
"""How often a leader that waits, and rank 0 while members are dealt, lets MPI get on with what has come in."""
_LOOK_EVERY_S = 0.1
"""How often other ranks that wait do so, only for messages that MPI may not have sent yet."""
_PIECE_BYTES = 2**18
"""What is gathered between nodes at a time. MPI libraries pass larger amounts around a ring, in as many steps as there
are nodes, and in each a leader that sleeps while it waits loses a nap; smaller ones take a step for each doubling."""
_SHARED_BYTES = 2**20
"""What is gathered at a time if there is one node only; it has room for a piece in any case."""
_SEMAPHORE_BYTES = 64
"""At least a sem_t (32 on Linux), and a line of the processor's cache for each."""
_LONGEST_NAP_S = 2e-3

_libc = ctypes.CDLL(None, use_errno=True)
_MONOTONIC_WAIT = getattr(_libc, "sem_clockwait", None)
"""Waits by a clock that nobody sets."""


class Nodes:
    """The world of ranks, node by node. Collective, as its method is.

    Parameters
    ----------
    world
        A communicator of mpi4py, of two ranks or more.
    shared : bool
        Whether ranks of a node gather in shared memory. There nobody notices that a rank is lost, so a run that is to
        survive this uses MPI alone, and no communicator but `world`.
    """

    def __init__(self, world: Any, shared: bool = True):
        from mpi4py import MPI

        self._mpi: Any = MPI
        self._size = world.size
        self._turn = 0
        self._semaphores: list[ctypes.c_void_p] = []
        """One for each rank of the node. Ranks that arrive raise the leader's; then the leader raises the others."""
        if not shared:
            self._memory, self._node, self._leads, self._leaders = None, MPI.COMM_SELF, True, world
            self._ranks, self._position = np.arange(world.size), world.rank
            self._ranks_by_node, self._piece = np.ones(world.size, np.int64), _PIECE_BYTES
            self._buffers = np.empty((2, self._piece), np.uint8)
            return
        # Ranks that can share memory and have the same host by name: Slurm's virtual nodes are one machine.
        sharing = world.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank)
        self._node = sharing.Split(zlib.crc32(host_name().encode()) >> 1, key=world.rank)
        self._memory = _share_memory(self._node, _SEMAPHORE_BYTES * self._node.size + 2 * _SHARED_BYTES)
        if self._memory is None:
            self._node = MPI.COMM_SELF
        self._leads = self._node.rank == 0
        self._leaders = world.Split(0 if self._leads else MPI.UNDEFINED, key=world.rank)
        leader_of = np.empty(world.size, np.int64)
        wait(world.Iallgather(np.array([self._node.bcast(world.rank)]), leader_of))
        # node by node, in the order of their leaders
        self._ranks = np.argsort(leader_of, kind="stable")
        self._position = int(np.flatnonzero(self._ranks == world.rank)[0])
        self._ranks_by_node = np.unique(leader_of, return_counts=True)[1]
        self._piece = _PIECE_BYTES if len(self._ranks_by_node) > 1 else _SHARED_BYTES
        self._buffers = self._shared_buffers() if self._memory is not None else np.empty((2, self._piece), np.uint8)

    def _shared_buffers(self) -> np.ndarray:
        """Return two buffers, (2, bytes), that all ranks of the node have, with their semaphores in front."""
        assert self._memory is not None
        memory: np.ndarray = np.frombuffer(self._memory, np.uint8)
        head = _SEMAPHORE_BYTES * self._node.size
        self._semaphores = [ctypes.c_void_p(memory.ctypes.data + at) for at in range(0, head, _SEMAPHORE_BYTES)]
        if self._leads:
            for semaphore in self._semaphores:
                _check(_libc.sem_init(semaphore, 1, 0))
        wait(self._node.Ibarrier())
        return memory[head:].reshape(2, -1)

    @property
    def node(self) -> Any:
        """The communicator of mpi4py of those ranks of this node that share memory."""
        return self._node

    def allgather(self, mine: np.ndarray) -> np.ndarray:
        """Return what all ranks gave, (ranks, bytes) uint8; `mine` is (bytes,) uint8, as many on all: not checked."""
        received = np.empty((self._size, mine.size), np.uint8)
        step = self._piece // self._size
        for start in range(0, max(1, mine.size), step):
            self._gather(mine[start : start + step], received[:, start : start + step])
        return received

    def _gather(self, mine: np.ndarray, received: np.ndarray) -> None:
        # Two buffers in turn: a rank that writes into one again has left the other, at which all had arrived, and so
        # had read this one.
        buffer = self._buffers[self._turn][: received.size].reshape(received.shape)
        self._turn = 1 - self._turn
        buffer[self._position] = mine
        if self._leads:
            for _ in self._semaphores[1:]:
                self._sleep(self._semaphores[0], ANSWER_EVERY_S)
            if len(self._ranks_by_node) > 1:
                wait(self._leaders.Iallgatherv(self._mpi.IN_PLACE, [buffer, self._ranks_by_node * mine.size]))
            for semaphore in self._semaphores[1:]:
                _check(_libc.sem_post(semaphore))
        else:
            _check(_libc.sem_post(self._semaphores[0]))
            self._sleep(self._semaphores[self._node.rank], _LOOK_EVERY_S)
        received[self._ranks] = buffer

    def _sleep(self, semaphore: ctypes.c_void_p, nap_s: float) -> None:
        """Wait for a semaphore; between naps let MPI get on with what others need this rank for."""
        while wait_for(semaphore, nap_s):
            if ctypes.get_errno() not in (errno.ETIMEDOUT, errno.EINTR):  # or a signal, which Python has handled
                _check(-1)
            self._node.Iprobe()


def wait_for(semaphore: ctypes.c_void_p, nap_s: float) -> int:
    """Lower a semaphore and return 0, or return -1 if it is not raised within `nap_s` seconds or the wait fails."""
    if _MONOTONIC_WAIT is not None:
        until = _Timespec.at(time.clock_gettime(time.CLOCK_MONOTONIC) + nap_s)
        return int(_MONOTONIC_WAIT(semaphore, time.CLOCK_MONOTONIC, ctypes.byref(until)))
    # C libraries before glibc 2.30 know the wall clock only: a nap in which it is set back lasts until then, or until
    # the semaphore is raised
    return int(_libc.sem_timedwait(semaphore, ctypes.byref(_Timespec.at(time.time() + nap_s))))


def _share_memory(node: Any, size: int) -> mmap.mmap | None:
    """Collective over a node. Return zeroed memory that its ranks share, None if there is none, or only one rank."""
    if node.size == 1:
        return None
    path, memory = None, None
    with suppress(OSError):  # none of that kind, or it is full
        if node.rank == 0:
            handle, path = tempfile.mkstemp(prefix="esmpi-", dir="/dev/shm")
            with open(handle, "r+b") as file:
                os.posix_fallocate(
                    handle, 0, size
                )  # reserved now, because a process that writes to a full /dev/shm is killed
                memory = mmap.mmap(handle, size)
    name = node.bcast(path if memory is not None else None)
    with suppress(OSError):  # ranks in containers of their own
        if node.rank > 0 and name is not None:
            with open(name, "r+b") as file:
                memory = mmap.mmap(file.fileno(), size)
    all_have_it = all(node.allgather(memory is not None))
    if path is not None:
        os.unlink(path)
    return memory if all_have_it else None


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))

    @classmethod
    def at(cls, clock: float) -> "_Timespec":
        return cls(int(clock), int(clock % 1 * 1e9))


def _check(result: int) -> None:
    """Raise OSError if a C library function failed."""
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def wait(request: Any) -> None:
    """Wait for a request of MPI asleep, with a look now and then."""
    started = time.perf_counter()
    while not request.Test():
        # naps grow with the time waited: after a second a delay of milliseconds does not matter
        time.sleep(min(20e-6 + (time.perf_counter() - started) / 16, _LONGEST_NAP_S))


def host_name() -> str:
    """Return the name of the node that this process runs on; Slurm's virtual nodes share that of the machine."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def unlink_shared_memory() -> None:
    """Take the names away from the shared memory of MPICH, which all ranks of the node have open by now.

    MPICH removes it at the end only, and names it by the job and step. If ranks are killed it stays, and the requeued
    job, which has the same numbers, finds it and cannot start.
    """
    with open("/proc/self/maps") as maps:
        names = {line.split(maxsplit=5)[5].strip() for line in maps if "/dev/shm/mpich_shm_" in line}
    for name in names:
        Path(name).unlink(missing_ok=True)
