"""Communication between ranks: few, small, collective messages, for which ranks wait asleep."""

import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from esmpi import leave
from esmpi.errors import SharedError, UserError
from esmpi.masking import masked_text
from esmpi.mpi.counter import Counter
from esmpi.mpi.launcher import launcher
from esmpi.mpi.library import library_name, start_mpi
from esmpi.mpi.nodes import Nodes, host_name, unlink_shared_memory, wait
from esmpi.wording import visible

if TYPE_CHECKING:
    from esmpi.mpi.node_memory import NodeMemory

_LAST_WORDS_S = 0.5
_ULFM_ENABLED = "OMPI_MCA_mpi_ft_enable"
"""Environment variable that Open MPI's mpiexec sets with the option `--with-ft ulfm`."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs."""

    host: str
    local_rank: int
    """Which of the ranks on this host this is."""
    num_local_ranks: int
    """How many ranks this host has."""
    cores: tuple[int, ...]
    """CPU cores for this rank: its share of those that it and others may use."""
    memory: "NodeMemory | None" = None
    """Memory for theta that all ranks of this host have (`engine.share_theta`); None if each has its own."""


class RankLostError(Exception):
    """Another rank has ended, and this run is to continue without it: see `Comm.shrink`."""


class UnsurvivedError(SharedError):
    """Ranks have ended without which the others cannot continue."""

    exit_code = 1


ROOT_LOST = (
    "rank 0, which writes the run's files, was lost, and run.on_rank_loss=shrink cannot replace it: rerun the same "
    "command to resume from the last committed generation"
)


class Comm:
    """The world of ranks. Without a launcher it is this process alone, and MPI is not even loaded.

    Raises
    ------
    UserError
        If the MPI library and the launcher do not fit: then every rank would be a world of its own.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._mpi: Any = None  # the communicator of mpi4py
        self._survives = False
        started_by = launcher()
        if started_by is None or started_by.size == 1:
            return
        try:
            self._mpi = start_mpi(started_by)
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"{started_by.name} started {started_by.size} ranks, but MPI cannot be loaded: {error}\n"
                f"Load your site's MPI module, or install one: pip install 'esmpi[mpich]'"
            ) from error
        self.rank, self.size = self._mpi.Get_rank(), self._mpi.Get_size()
        if self.size != started_by.size:
            alone = ", so that each would be a run of its own" if self.size == 1 else ""
            raise UserError(
                f"{started_by.name} started {started_by.size} ranks, but MPI sees a world of {self.size}{alone}: the "
                f"launcher does not fit the MPI library ({library_name()}).\n"
                f"Under srun try --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI); else use the mpiexec of that library."
            )
        wait(self._mpi.Ibarrier())
        unlink_shared_memory()
        try:
            self._nodes = Nodes(self._mpi)
        except BaseException:
            self.report_failure()  # the others wait for this rank
            self.abort(1)
            raise

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, the one that writes files."""
        return self.rank == 0

    def allgather_array(self, array: np.ndarray) -> np.ndarray:
        """Collective. Return the arrays of all ranks, (size, *array.shape); shape and dtype are the same on all."""
        if self._mpi is None:
            return array[np.newaxis].copy()
        send = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        with self._losses_told():
            return self._nodes.allgather(send).view(array.dtype).reshape(self.size, *array.shape)

    def allgather_object(self, value: Any) -> list[Any]:
        """Collective. Return the values of all ranks; a value is what JSON can hold."""
        if self._mpi is None:
            return [value]
        send = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = self.allgather_array(np.array([send.size], np.int64))[:, 0]
        received = self.allgather_array(np.pad(send, (0, int(lengths.max()) - send.size)))
        return [json.loads(text[:length].tobytes()) for text, length in zip(received, lengths, strict=True)]

    def broadcast_array(self, array: np.ndarray) -> np.ndarray:
        """Collective. Return rank 0's array; on other ranks `array` gives the dtype and the number of dimensions."""
        if self._mpi is None:
            return array
        shape = self.allgather_array(np.array(array.shape, np.int64))[0]
        sent = np.ascontiguousarray(array) if self.is_root else np.empty(tuple(shape), array.dtype)
        with self._losses_told():
            wait(self._mpi.Ibcast(sent.reshape(-1).view(np.uint8), root=0))
        return sent

    def survive(self) -> None:
        """Collective. From now on, the loss of another rank raises RankLostError instead of ending all ranks.

        Raises
        ------
        UserError
            If this MPI cannot do that. It needs ULFM (User Level Failure Mitigation), which Open MPI has from version 5
            on, under `mpiexec --with-ft ulfm`.
        """
        if self._mpi is None:
            return
        found = re.match(r"Open MPI v(\d+)", library_name())
        is_known = found is not None and int(found[1]) >= 5
        if not is_known or os.environ.get(_ULFM_ENABLED, "0") in ("0", "false"):
            raise UserError(
                f"run.on_rank_loss: shrink needs Open MPI 5 or later, started by its mpiexec with `--with-ft ulfm`, "
                f"but this is {library_name()}{' without that' if is_known else ''}: set run.on_rank_loss=stop"
            )
        from mpi4py import MPI

        self._survives = True
        self._mpi.Set_errhandler(MPI.ERRORS_RETURN)  # mpi4py raises them
        self._nodes = Nodes(self._mpi, shared=False)

    def shrink(self) -> list[int]:
        """Collective over the ranks that are left, after RankLostError. Continue with them; return the lost ranks.

        The ranks that are left keep their order, and have new numbers.

        Raises
        ------
        UnsurvivedError
            If rank 0 is one of those that are lost.
        """
        from mpi4py import MPI

        leave.takes_leave_of_mpi = False  # finalizing would wait for those that are lost
        self._mpi.Revoke()  # wakes those that still wait for the lost ones
        while True:
            try:
                self._mpi.Ack_failed()
                # asleep, until all that are left are here: they may be generating
                wait(self._mpi.Iagree(np.ones(1, np.int32)))
                break
            except MPI.Exception as error:
                if error.Get_error_class() != MPI.ERR_PROC_FAILED:  # another one has just been lost
                    raise
        smaller = self._mpi.Shrink()
        left = set(MPI.Group.Translate_ranks(smaller.group, list(range(smaller.size)), self._mpi.group))
        lost = [rank for rank in range(self.size) if rank not in left]
        self._mpi, self.rank, self.size = smaller, smaller.rank, smaller.size
        self._mpi.Set_errhandler(MPI.ERRORS_RETURN)
        self._nodes = Nodes(self._mpi, shared=False)
        if 0 in lost:
            raise UnsurvivedError(ROOT_LOST)
        return lost

    @contextmanager
    def complete(self) -> Iterator[None]:
        """Collective. Run the block, for which all ranks are needed.

        Raises
        ------
        UnsurvivedError
            On all ranks that are left, if any are lost meanwhile.
        """
        try:
            yield
            if self._survives:  # without this, one rank may go on while another knows of a loss
                with self._losses_told():
                    wait(self._mpi.Iagree(np.ones(1, np.int32)))
        except RankLostError:
            size = self.size
            lost = self.shrink()
            raise UnsurvivedError(
                f"lost ranks {lost} of {size} before the run was ready, so there was nothing to continue: rerun the "
                f"same command"
            ) from None

    def meet(self) -> list[int]:
        """Collective. Return when all ranks are here that are left; return those that are lost, as far as is known."""
        try:
            self.barrier()
        except RankLostError:
            from mpi4py import MPI

            # no call that needs the others: they may have left
            found = self._mpi.group.Translate_ranks(None, self._mpi.Get_failed())
            return [rank for rank, place in enumerate(found) if place != MPI.UNDEFINED]
        with suppress(RankLostError):
            self.barrier()  # a rank that leaves before the others have passed the first one would seem lost to them
        return []

    @contextmanager
    def _losses_told(self) -> Iterator[None]:
        """Raise RankLostError for what MPI raises when a rank is lost."""
        if not self._survives:
            yield
            return
        from mpi4py import MPI

        try:
            yield
        except MPI.Exception as error:
            if error.Get_error_class() in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED):
                raise RankLostError(str(error)) from error
            raise

    def counter(self) -> Counter:
        """Collective. Return a counter that all ranks share."""
        return Counter(self._mpi)

    def library(self) -> str | None:
        """Return the name and version of the MPI library, None if none is loaded."""
        return None if self._mpi is None else library_name()

    def barrier(self) -> None:
        """Collective. Return when all ranks are here."""
        self.allgather_array(np.zeros(1, np.uint8))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Collective. Run the block on all ranks; if it raises UserError on any, raise SharedError on all.

        The block itself must make no collective call.
        """
        error = None
        try:
            yield
        except UserError as caught:
            error = caught
        self._raise_together(error)

    def _raise_together(self, error: UserError | None) -> None:
        texts = self.allgather_object(None if error is None else str(error))
        ranks: dict[str, list[int]] = {}
        for rank, text in enumerate(texts):
            if text is not None:
                ranks.setdefault(text, []).append(rank)
        if ranks:
            raise SharedError(
                "\n".join(
                    text if where == [0] or len(where) == self.size else f"ranks {where}: {text}"
                    for text, where in ranks.items()
                )
            )

    def place(self) -> Place:
        """Collective. Return where this rank runs beside the others."""
        cores = sorted(os.sched_getaffinity(0))
        host = host_name()
        everyone = self.allgather_object([host, cores])
        local = [rank for rank, other in enumerate(everyone) if other[0] == host]
        sharing = [rank for rank, other in enumerate(everyone) if other == [host, cores]]
        each, position = max(1, len(cores) // len(sharing)), sharing.index(self.rank)
        mine = tuple(cores[(position * each + i) % len(cores)] for i in range(each))
        return Place(host, local.index(self.rank), len(local), mine)

    def share_memory(self, place: Place, num_bytes: int) -> Place:
        """Collective. Return the place of this rank with memory that the ranks of its node share, if it has others.

        Raises
        ------
        SharedError
            If ranks of a node cannot share any.
        """
        from esmpi.mpi.node_memory import share_memory

        alone = self._mpi is None or place.num_local_ranks == 1
        memory = None if alone else share_memory(self._nodes.node, num_bytes)
        with self.together():
            if not alone and (memory is None or memory.size != place.num_local_ranks):
                raise UserError(
                    f"engine.share_theta: the ranks on {place.host} cannot share memory, perhaps because each is in a "
                    f"container of its own: set it to false"
                )
        return replace(place, memory=memory)

    def abort(self, exit_code: int) -> None:
        """End all ranks now; to be called where this rank failed alone."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self._mpi is not None:
            # The launcher reads our output from a pipe, and drops what it has not read when it ends the job.
            time.sleep(_LAST_WORDS_S)
            self._mpi.Abort(exit_code)

    def report_failure(self) -> None:
        """Print the exception being handled, with this rank's number, where all will see it.

        It may quote what a stranger wrote: nothing in it acts on a terminal, and no secret is in it.
        """
        where = f"[rank {self.rank} of {self.size} on {socket.gethostname()}] " if self.size > 1 else ""
        print(
            "".join(where + line for line in visible(masked_text(traceback.format_exc())).splitlines(keepends=True)),
            file=sys.stderr,
        )
