"""Two hosts with their own names and networks, and a real link between them that can be cut."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from support import GENERATIONS, ROOT, TINY_RUN, read_digests, require

HOSTS = {"left": "10.97.53.1", "right": "10.97.53.2"}
SWITCH = "esmpi-switch"

# What mpiexec calls instead of ssh: [-x] HOST COMMAND...
REMOTE = """#!/bin/sh
[ "$1" = -x ] && shift
host=$1
shift
exec nsenter --net=/run/netns/esmpi-$host unshare --uts sh -c "hostname $host; exec $*"
"""


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Path]:
    """Two namespaces on a switch; gives the program that runs a command on one of them."""
    clean()
    made = ip("link", "add", SWITCH, "type", "bridge")
    # containers seldom may
    require("namespaces", made.returncode == 0, f"no network namespaces here: {made.stderr.strip()}")
    try:
        ip("link", "set", SWITCH, "up")
        for host, address in HOSTS.items():
            space, port = f"esmpi-{host}", f"esmpi-{host}"
            ip("netns", "add", space)
            ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", port, "master", SWITCH, "up")
            ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                assert ip("-n", space, "link", "set", device, "up").returncode == 0
        program = tmp_path / "remote"
        program.write_text(REMOTE)
        program.chmod(0o755)
        yield program
    finally:
        clean()


def clean() -> None:
    ip("link", "delete", SWITCH)
    for host in HOSTS:
        ip("netns", "delete", f"esmpi-{host}")
        ip("link", "delete", f"esmpi-{host}")


def across(mpiexec: list[str], remote: Path) -> list[str]:
    """Return the start of a command that has ranks on both hosts."""
    # MPICH notices that both hosts are one machine and would talk through its memory
    network = ["-genv", "UCX_TLS", "tcp,self", "-genv", "FI_PROVIDER", "tcp"]
    hosts = ["-localhost", HOSTS["left"], "-hosts", ",".join(HOSTS), "-launcher-exec", str(remote)]
    return [str(remote), "left", *mpiexec, *hosts, *network]


# Rank 2, alone on its host, learns that there is no member left while rank 0 waits for rank 1.
WAITING = """
import time
from esmpi.mpi.comm import Comm
from esmpi.es.dispatch import Dynamic

comm = Comm()
with Dynamic(comm) as dispatch:
    comm.barrier()
    begin = time.perf_counter()
    with dispatch.waves(3, 1) as mine:
        for _ in mine:
            time.sleep((0.3, 3, 1)[comm.rank])
    seconds = time.perf_counter() - begin
    gathered = comm.allgather_object([comm.place().num_local_ranks, seconds])
    print(*(part for said in gathered for part in said)) if comm.is_root else None
"""


def test_rank_0_answers_other_hosts_while_it_waits_for_its_own(
    remote: Path, mpiexec: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    command = [*across(mpiexec, remote), "-n", "3", "-ppn", "2", sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = list(map(float, done.stdout.split()))
    assert figures[::2] == [2, 2, 1], "ranks on each host"
    seconds = figures[1::2]
    assert seconds[0] < 0.9
    assert seconds[1] >= 3
    assert seconds[2] < 2


def test_a_link_that_is_cut_for_five_seconds_is_survived(
    remote: Path, mpiexec: list[str], digests: list[int], tmp_path: Path
) -> None:
    program = [sys.executable, "-m", "esmpi.run", str(TINY_RUN), f"run.output_dir={tmp_path}", "data.num_eval=2"]
    command = [*across(mpiexec, remote), "-n", "2", "-ppn", "1", *program, f"es.generations={GENERATIONS}"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        run = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            deadline = time.monotonic() + 120
            while " 2/" not in log.read_text():
                assert run.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            ip("link", "set", "esmpi-right", "down")
            time.sleep(5)
            assert run.poll() is None, log.read_text()
            ip("link", "set", "esmpi-right", "up")
            assert run.wait(120) == 0, log.read_text()
        finally:
            run.terminate()
            run.wait(30)
    assert "2 ranks" in log.read_text()
    assert read_digests(tmp_path / "tiny") == digests
    with h5py.File(tmp_path / "tiny" / "run.h5") as file:
        # else nothing would have gone over the link
        assert file["generations/seconds_total"][()].max() > 4
