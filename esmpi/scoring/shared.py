"""One pool for all ranks of a node: the first of them hosts it, and the others ask it over a Unix socket."""

import os
import queue
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener

from esmpi.errors import UserError
from esmpi.mpi.comm import Comm, Place
from esmpi.scoring.pool import Scorer
from esmpi.scoring.scored import Scored
from esmpi.tasks import Progress, Sample, Task

_LONGEST_ADDRESS = 100
"""Bytes of a Unix socket's path; Linux allows 107."""


def open_scorer(
    start: Callable[[Callable[[], Task], int], Scorer],
    make_task: Callable[[], Task],
    per_node: bool,
    comm: Comm,
    place: Place,
    stack: ExitStack,
) -> "Scorer | RemoteScorer":
    """Collective. Return what this rank submits completions to.

    Parameters
    ----------
    start : callable
        Starts a pool. It takes what makes the task, and the number of pools of the run.
    make_task : callable
        Makes the task in each process. It is pickled.
    per_node : bool
        Whether the ranks of a node share a pool. If not, each has one of its own.
    comm : Comm
    place : Place
        Where this rank runs.
    stack : ExitStack
        Takes what has to be closed at the end.
    """
    if not per_node:
        scorer = start(make_task, comm.size)
        stack.callback(scorer.close)
        return scorer
    everyone = comm.allgather_object([place.host, place.local_rank, sorted(os.sched_getaffinity(0))])
    num_nodes = sum(local_rank == 0 for _, local_rank, _ in everyone)
    cores = {core for host, _, its in everyone if host == place.host for core in its}
    hosted, invitation = None, None
    with comm.together():
        if place.local_rank == 0:
            # what scores for all ranks of a node may use the cores of all of them
            hosted = start(partial(_make_on, cores, make_task), num_nodes)
            stack.callback(hosted.close)
            if place.num_local_ranks > 1:
                invitation = stack.enter_context(Invitation(hosted, place.num_local_ranks - 1))
    offers = comm.allgather_object(None if invitation is None else [invitation.address, invitation.key.hex()])
    remote = None
    with comm.together():
        if hosted is None:
            [offer] = [one for one, (host, *_) in zip(offers, everyone, strict=True) if host == place.host and one]
            remote = RemoteScorer(offer[0], bytes.fromhex(offer[1]))
            stack.callback(remote.close)
    if invitation is not None:  # all have come
        invitation.withdraw()
    scorer_here = hosted or remote
    assert scorer_here is not None
    return scorer_here


def _make_on(cores: set[int], make_task: Callable[[], Task]) -> Task:
    with suppress(OSError):  # the system may keep each rank to its own
        os.sched_setaffinity(0, cores)
    return make_task()


class Invitation:
    """Lets other processes of this user, which know the key, submit completions to a pool, until that is closed.

    Parameters
    ----------
    scorer : Scorer
        The pool.
    num_guests : int
        How many may come.

    Raises
    ------
    UserError
        If there can be no socket.
    """

    def __init__(self, scorer: Scorer, num_guests: int):
        self._scorer, self._num_guests = scorer, num_guests
        self.key = os.urandom(32)
        try:
            self._folder = tempfile.mkdtemp(prefix="esmpi-")  # which nobody else may enter
            if len(os.fsencode(self._folder)) > _LONGEST_ADDRESS - 2:
                os.rmdir(self._folder)
                self._folder = tempfile.mkdtemp(prefix="esmpi-", dir="/tmp")
            self.address = os.path.join(self._folder, "s")
            # all of them may come at once
            self._listener = Listener(self.address, "AF_UNIX", backlog=num_guests, authkey=self.key)
        except OSError as error:
            raise UserError(f"scoring.per_node: there can be no socket in {tempfile.gettempdir()}: {error}") from error
        threading.Thread(target=self._accept, daemon=True, name="esmpi-scorer-door").start()

    def __enter__(self) -> "Invitation":
        return self

    def __exit__(self, *_: object) -> None:
        self.withdraw()

    def withdraw(self) -> None:
        """Leave no file behind; nobody else can come then."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        with suppress(FileNotFoundError), self._listener:  # closing removes its file, which may be gone
            for _ in range(self._num_guests):
                with suppress(AuthenticationError, EOFError, ConnectionError):
                    arguments = (self._listener.accept(),)
                    threading.Thread(target=self._serve, args=arguments, daemon=True, name="esmpi-scorer-guest").start()

    def _serve(self, guest: Connection) -> None:
        """Take what a guest submits; its results go back in the same order, in a thread of their own."""
        submitted: queue.SimpleQueue[Future[Scored] | None] = queue.SimpleQueue()
        back = threading.Thread(target=_send_results, args=(guest, submitted), daemon=True, name="esmpi-scorer-back")
        back.start()
        with suppress(EOFError, OSError):
            while (arguments := guest.recv()) is not None:
                submitted.put(self._scorer.submit(*arguments))
        submitted.put(None)
        back.join()
        guest.close()


def _send_results(guest: Connection, submitted: "queue.SimpleQueue[Future[Scored] | None]") -> None:
    while (future := submitted.get()) is not None:
        error = future.exception()
        with suppress(OSError):  # it is gone
            guest.send(future.result() if error is None else error if isinstance(error, UserError) else str(error))


class RemoteScorer:
    """Submits completions to the pool of another process, as `Scorer` does to its own.

    Parameters
    ----------
    address : str
        The path of its socket.
    key : bytes
        What lets this process in.

    Raises
    ------
    UserError
        If it cannot be reached.
    """

    def __init__(self, address: str, key: bytes):
        try:
            self._host = Client(address, "AF_UNIX", authkey=key)
        except (OSError, EOFError, AuthenticationError) as error:
            raise UserError(
                f"scoring.per_node: this rank cannot reach the processes for rewards of its node's first rank, at "
                f"{address}: {error}. Ranks in containers with files of their own need scoring.per_node=false"
            ) from error
        self._lock = threading.Lock()
        self._waiting: deque[Future[Scored]] = deque()
        self._lost = False
        self._thread = threading.Thread(target=self._receive, daemon=True, name="esmpi-scorer-remote")
        self._thread.start()

    def submit(
        self, samples: Sequence[Sample], group_size: int = 1, progress: Progress | None = None
    ) -> "Future[Scored]":
        """Start scoring completions: see `Scorer.submit`."""
        future: Future[Scored] = Future()
        with self._lock:
            self._waiting.append(future)
            with suppress(OSError):  # the thread that receives finds it closed, too
                self._host.send((samples, group_size, progress))
            if self._lost:
                self._fail()
        return future

    def close(self) -> None:
        """Take leave of the pool, which goes on for others."""
        with self._lock, suppress(OSError):
            self._host.send(None)
        self._thread.join()
        self._host.close()

    def _receive(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                result = self._host.recv()
                future = self._waiting.popleft()
                if isinstance(result, Scored):
                    future.set_result(result)
                else:
                    future.set_exception(result if isinstance(result, UserError) else RuntimeError(result))
        with self._lock:
            self._lost = True
            self._fail()

    def _fail(self) -> None:
        while self._waiting:
            lost = "the first rank of this node, which has the processes for rewards, has ended (scoring.per_node)"
            self._waiting.popleft().set_exception(RuntimeError(lost))
