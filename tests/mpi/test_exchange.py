"""What ranks give each other on real MPI: all get it, and who waits sleeps and heeds signals."""

import json
from pathlib import Path

import pytest
from support import Run

# Ranks go round the nodes, of which the last has only one rank; they come and go as they like.
GATHERS = """
import os, random, sys, time
from collections import Counter
import numpy as np
import esmpi.mpi.nodes
from esmpi.mpi.launcher import launcher

rank, nodes = launcher().rank, int(sys.argv[1])
os.environ["SLURMD_NODENAME"] = "last" if nodes > 1 and rank == launcher().size - 1 else f"node{rank % nodes}"
from esmpi.mpi.comm import Comm
from esmpi.mpi.nodes import _PIECE_BYTES, _SHARED_BYTES
if sys.argv[2] == "no room":
    esmpi.mpi.nodes._SHARED_BYTES = 2**60

def values(rank, turn, shape):
    return np.random.default_rng([rank, turn]).integers(2**62, size=shape)

comm, late = Comm(), random.Random(rank)
piece = (_PIECE_BYTES if nodes > 1 else _SHARED_BYTES) // comm.size
for turn in range(200):
    shape = (2, piece // 5 + 1) if turn % 20 == 0 else (turn % 7,)
    assert turn or 16 * shape[1] > 3 * piece, "several pieces, and a rest"
    if late.random() < 0.3:
        time.sleep(0.003 * late.random())
    gathered = comm.allgather_array(values(rank, turn, shape))
    np.testing.assert_array_equal(gathered, [values(other, turn, shape) for other in range(comm.size)])
np.testing.assert_array_equal(comm.allgather_array(values(rank, 0, 9)[::2])[-1], values(comm.size - 1, 0, 9)[::2])
said = comm.allgather_object(["x" * 1000 * rank, rank])
assert said == [["x" * 1000 * other, other] for other in range(comm.size)]
hosts = Counter(comm.allgather_object(comm.place().host))
places = comm.allgather_object([comm.place().host, comm.place().cores])
taken = Counter((host, core) for host, cores in places for core in cores)
spare = len(os.sched_getaffinity(0))
assert all(count <= -(-hosts[host] // spare) for (host, _), count in taken.items()), "ranks share cores needlessly"
shared = any(comm.allgather_object(comm._nodes._memory is not None))
print(*sorted(hosts.values(), reverse=True), "shared" if shared else "not shared") if comm.is_root else None
"""


@pytest.mark.parametrize(
    ("nodes", "room", "said"),
    [
        (1, "room", "5 shared"),
        (2, "room", "2 2 1 shared"),
        (4, "room", "1 1 1 1 1 not shared"),
        (2, "no room", "2 2 1 not shared"),
    ],
)
def test_all_get_what_all_gave(launch: Run, tmp_path: Path, nodes: int, room: str, said: str) -> None:
    script = tmp_path / "gathers.py"
    script.write_text(GATHERS)
    before = set(Path("/dev/shm").glob("esmpi-*"))  # of a run that was killed as it began
    done = launch([script, nodes, room], 5)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said
    assert set(Path("/dev/shm").glob("esmpi-*")) <= before


@pytest.mark.parametrize("waits", [0, 1])
def test_who_waits_sleeps_and_heeds_signals(launch: Run, tmp_path: Path, waits: int) -> None:
    script = tmp_path / "wait.py"
    script.write_text(
        "import os, signal, sys, threading, time, numpy as np\n"
        "from esmpi.mpi.comm import Comm\n"
        "comm = Comm()\n"
        "comm.barrier()\n"
        "heard = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: heard.append(time.perf_counter()))\n"
        "waits = comm.rank == int(sys.argv[1])\n"
        "if waits:\n"
        "    threading.Timer(1, os.kill, (os.getpid(), signal.SIGUSR1)).start()\n"
        "time.sleep(0 if waits else 3)\n"
        "used, begun = time.process_time(), time.perf_counter()\n"
        "comm.allgather_array(np.zeros(4))\n"
        "if waits:\n"
        "    print(time.process_time() - used, time.perf_counter() - begun, *(at - begun for at in heard))\n"
    )
    done = launch([script, waits], 2)
    assert done.returncode == 0, done.stderr
    used, wall, heard = map(float, done.stdout.split())
    assert wall > 2
    assert heard < 2, "not only when the others were there"
    assert used < 0.2 * wall


@pytest.mark.parametrize("nodes", ["one", "many"])
def test_a_busy_rank_0_keeps_nobody_waiting_for_a_member(
    launch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: str
) -> None:
    if nodes == "many":
        monkeypatch.setenv("MPIR_CVAR_NOLOCAL", "1")
    script = tmp_path / "busy.py"
    script.write_text(
        "import time\n"
        "from esmpi.mpi.comm import Comm\n"
        "from esmpi.es.dispatch import Dynamic\n"
        "comm = Comm()\n"
        "with Dynamic(comm) as dispatch:\n"
        "    for generation in range(2):\n"
        "        with dispatch.waves(30, 1) as mine:\n"
        "            begin, used, count = time.perf_counter(), time.process_time(), 0\n"
        "            for wave in mine:\n"
        "                count += 1\n"
        "                time.sleep(0.01 if comm.rank else 1.5)\n"
        "        said = [count, time.perf_counter() - begin, time.process_time() - used]\n"
        "        said = comm.allgather_object(said)\n"
        "        print(said) if comm.is_root else None\n"
    )
    done = launch([script], 3, timeout_s=60)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        counts, seconds, used = zip(*json.loads(line), strict=True)
        assert sum(counts) == 30
        assert counts[0] == 1
        assert max(seconds[1:]) < 1.2
        assert max(used) < 0.3
