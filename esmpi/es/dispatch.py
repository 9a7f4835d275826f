"""Which rank evaluates which member: a fixed share, or the next member for whichever rank is free.

Dispatch changes no result: every rank knows all members, and the update goes over them in order.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

import numpy as np

from esmpi.es.population import Results, share
from esmpi.mpi.comm import Comm


class Dispatch(ABC):
    """Shares out the members of a generation over the ranks. A context manager, which ends what it holds of MPI."""

    def __init__(self, comm: Comm):
        self._comm = comm

    @abstractmethod
    def waves(self, population_size: int, wave_size: int) -> AbstractContextManager[Iterator[Sequence[int]]]:
        """Provide an iterator over the members that this rank evaluates, in waves. The rank must exhaust it.

        `wave_size` is the most members of a wave on this rank, which may be another one on others.
        """

    @abstractmethod
    def most_members(self, population_size: int, mine: int) -> int:
        """Collective. Return the most members that a rank had; `mine` are this one's."""

    def learn(self, results: Results) -> None:  # noqa: B027  # not every way of sharing out has a use for it
        """Take note of how long each member of this generation took."""

    def __enter__(self) -> "Dispatch":
        return self

    def __exit__(  # noqa: B027  # not every way holds something that has to be closed
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Collective, unless an error ends the run."""


class Static(Dispatch):
    """A fixed share of consecutive members for each rank. Shares differ by at most one member."""

    @contextmanager
    def waves(self, population_size: int, wave_size: int) -> Iterator[Iterator[Sequence[int]]]:
        """Give the members of this rank's share, in waves whose sizes differ by at most one."""
        mine = share(population_size, self._comm.rank, self._comm.size)
        count = -(-len(mine) // wave_size)
        parts = (share(len(mine), number, count) for number in range(count))
        yield (mine[part.start : part.stop] for part in parts)

    def most_members(self, population_size: int, mine: int) -> int:
        """Return the largest share, which all ranks know without communication."""
        return -(-population_size // self._comm.size)


class Dynamic(Dispatch):
    """Whoever is free takes the next number from a counter on rank 0; the number is the member's place in the order.

    The members that took longest in the generation before come first, so that no long one starts when the others are
    done. If times depend on the noise alone, which is new in each generation, this order is as good as any other.
    """

    def __init__(self, comm: Comm):
        super().__init__(comm)
        self._counter = comm.counter()
        self._first = (
            0  # number of this generation's first member; the counter is never reset, so no rank waits for that
        )
        self._order: np.ndarray | None = None  # a resumed run begins without: only rank 0 has the times

    @contextmanager
    def waves(self, population_size: int, wave_size: int) -> Iterator[Iterator[Sequence[int]]]:
        """Give members for as long as there are any, however busy rank 0 is."""
        with self._counter.answered():
            yield self._draw(population_size, wave_size)

    def _draw(self, population_size: int, wave_size: int) -> Iterator[Sequence[int]]:
        order = range(population_size) if self._order is None else self._order
        place = self._counter.take() - self._first
        while place < population_size:
            # no more than an equal part of what is left, so that the last waves end at about the same time
            wanted = min(wave_size, -(-(population_size - place) // self._comm.size))
            wave = [int(order[place])]
            while len(wave) < wanted and (place := self._counter.take() - self._first) < population_size:
                wave.append(int(order[place]))
            yield wave
            if place < population_size:
                place = self._counter.take() - self._first
        self._first += population_size + self._comm.size  # every rank took one number too many, and so learned the end

    def most_members(self, population_size: int, mine: int) -> int:
        """Collective. Ask all ranks."""
        return int(self._comm.allgather_array(np.array([mine])).max())

    def learn(self, results: Results) -> None:
        """Put the longest first."""
        self._order = np.argsort(-results["seconds"], kind="stable")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Collective, unless an error ends the run: then the others are not here to give the counter up."""
        if kind is None:
            self._counter.close()


DISPATCHES: dict[str, type[Static] | type[Dynamic]] = {"static": Static, "dynamic": Dynamic}
"""By the value of `es.dispatch`."""
