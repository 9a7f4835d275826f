"""A vLLM engine and its worker processes, as a rank sees them: how they are started, asked, and missed."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from esmpi.stop.signals import SIGNALS, held_back, start_tracker

_LAUNCHER_VARIABLES = ("PMI", "PMIX", "OMPI_", "PRTE_", "HYDRA", "MPI_", "MV2_", "SLURM", "PALS_", "FLUX_")
RANK_PROCESS = "ESMPI_RANK_PROCESS"
"""Environment variable with the number of the process that has started vLLM."""
_DEATH_SEEN_S = 1.0
"""How long after an error a worker may be found to have ended: its connections close a moment before it is gone."""


class Workers:
    """A vLLM engine, and the processes that it has started.

    Parameters
    ----------
    start : callable
        Returns a `vllm.LLM`.
    """

    def __init__(self, start: Callable[[], Any]):
        os.environ[RANK_PROCESS] = str(os.getpid())
        before = multiprocessing.active_children()
        with _without_launcher(), _starting_without_signals():
            self.llm = start()
        self._processes = [process for process in multiprocessing.active_children() if process not in before]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of each worker; return what they return.

        Raises
        ------
        RuntimeError
            If a worker has ended, or the method raises.
        """
        with self.missed():
            return list(self.llm.collective_rpc(method, args=arguments))

    def call_shards(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of the shard in each worker; see `esmpi.weights.model_weights.Call`."""
        # arrays do not travel to worker processes
        plain = [value.tolist() if isinstance(value, np.ndarray) else value for value in arguments]
        return self.call("esmpi_call", method, *plain)

    @contextmanager
    def missed(self) -> Iterator[None]:
        """Say that a worker has ended if that is why the block raises: vLLM itself says `cancelled`, or anything."""
        try:
            yield
        except Exception as error:
            connection.wait([process.sentinel for process in self._processes], _DEATH_SEEN_S if self._processes else 0)
            codes = sorted({process.exitcode for process in self._processes if process.exitcode})
            if not codes:
                raise
            how = ", ".join(f"killed by signal {-code}" if code < 0 else f"exit code {code}" for code in codes)
            why = "What vLLM printed before says why."
            if -signal.SIGKILL in codes:
                why = "The kernel kills processes when memory runs out."
            raise RuntimeError(
                f"engine: a worker process of vLLM has ended ({how}). {why} Nothing that is committed is lost: rerun "
                f"the same command to resume"
            ) from error


@contextmanager
def _without_launcher() -> Iterator[None]:
    """Hide what mpiexec and srun put into the environment from processes that vLLM starts.

    A worker with a rank's PMI variables would take itself for that rank, and abort or hang the job.
    """
    hidden = {key: value for key, value in os.environ.items() if key.startswith(_LAUNCHER_VARIABLES)}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _starting_without_signals() -> Iterator[None]:
    """Let processes begin with the run's signals blocked, until they ignore them (`ignore_signals`).

    The rank stops after its generation, and until then needs its workers.
    """
    start = SpawnProcess.start

    def start_held_back(self: BaseProcess) -> None:
        with held_back():
            start(self)

    start_tracker()
    SpawnProcess.start = start_held_back  # type: ignore[method-assign]  # vLLM has no hook for this
    try:
        yield
    finally:
        SpawnProcess.start = start  # type: ignore[method-assign]  # as above


def ignore_signals() -> None:
    """Have this process, a worker of vLLM, ignore what asks its rank to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
