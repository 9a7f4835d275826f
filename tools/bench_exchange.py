"""Measure one exchange between ranks, in three ways. The last line is one JSON object.

    mpiexec -n 8 python tools/bench_exchange.py [--bytes 8,90000]

shared: esmpi's own, `Comm.allgather_array`, where ranks of a node sleep until all have come. looking: all ranks post
MPI_Iallgather, in pieces of 256 KiB, and nap between looks whether it is over. spinning: MPI_Allgather, which most MPI
libraries wait in by looking without a pause. They take turns; seconds are rank 0's means over --rounds exchanges one
after the other, the median of --repeats such series; of the processor, the mean of all ranks.

More ranks than cores share them, which is intended: an engine's threads want the cores as much as another rank does.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from esmpi.mpi.comm import Comm
from esmpi.mpi.nodes import wait

PIECE_BYTES = 2**18


def main() -> None:
    """Collective. Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", default="8,11250", help="that a rank gives (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="exchanges of a series (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="series of each way (default: %(default)s)")
    arguments = parser.parse_args()
    comm = Comm()
    if comm.size == 1:
        parser.error("one rank has nobody to exchange anything with: mpiexec -n 8 python tools/bench_exchange.py")
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def looking(mine: np.ndarray) -> np.ndarray:
        step = max(1, PIECE_BYTES // comm.size)
        pieces = [mine[start : start + step] for start in range(0, mine.size, step)]
        received = [np.empty((comm.size, piece.size), np.uint8) for piece in pieces]
        for request in [world.Iallgather(*pair) for pair in zip(pieces, received, strict=True)]:
            wait(request)
        return np.concatenate(received, axis=1)

    def spinning(mine: np.ndarray) -> np.ndarray:
        received = np.empty((comm.size, mine.size), np.uint8)
        world.Allgather(mine, received)
        return received

    ways: dict[str, Callable[[np.ndarray], np.ndarray]]
    ways = {"shared": comm.allgather_array, "looking": looking, "spinning": spinning}
    rows = []
    for size in map(int, arguments.bytes.split(",")):
        mine = np.full(size, comm.rank, np.uint8)
        series: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(arguments.repeats):
            for name, gather in ways.items():
                assert (gather(mine)[:, -1] == np.arange(comm.size)).all()  # and warm
                series[name].append(measure(comm, gather, mine, arguments.rounds))
        for name, found in series.items():
            seconds, processor = (statistics.median(column) for column in zip(*found, strict=True))
            rows.append({"ranks": comm.size, "bytes": size, "way": name, "seconds": seconds, "processor": processor})
            if comm.is_root:
                print(
                    f"{comm.size:4d} ranks {size:9,d} bytes  {name:8s} {1e3 * seconds:8.3f} ms  "
                    f"of the processor, a rank {1e3 * processor:8.3f} ms",
                    flush=True,
                )
    if comm.is_root:
        cores = len(os.sched_getaffinity(0))
        print(json.dumps({"cores": cores, "date": time.strftime("%Y-%m-%d"), "rows": rows}))


def measure(
    comm: Comm, gather: Callable[[np.ndarray], np.ndarray], mine: np.ndarray, rounds: int
) -> tuple[float, float]:
    """Collective. Return seconds an exchange took, and of a rank's processor."""
    comm.barrier()
    started, worked = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        gather(mine)
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    told = comm.allgather_array(np.array([processor]))
    return seconds / rounds, float(told.mean()) / rounds


if __name__ == "__main__":
    main()
