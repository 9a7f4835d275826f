"""What becomes of a run if the batch shell or Slurm's daemon on a node is killed or stopped while it generates.

ESMPI_FAULTS in the environment, with any value, also tries a daemon that is away for so long that Slurm gives up its
node.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import TINY_RUN, Run, read_digests, serial_digests

from slurm.cluster import Cluster, ended
from slurm.conftest import PATIENCE_S, Job

Submit = Callable[[str, list[str], list[str]], Job]

END_S = 30
"""How long a job may take to end, on a machine that has other things to do, too."""
AWAY_S = 3
"""How long a daemon does not answer. Slurm gives up its node after 10 s here (cluster.py), after minutes elsewhere."""


def processes_of(job: Job) -> dict[int, str]:
    """Return the processes of a job, with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_JOB_ID={job.number}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended
            continue
    return found


def shell_of(job: Job) -> int:
    """Return the process that runs the batch script."""
    [shell] = [number for number, command in processes_of(job).items() if "/slurm_script " in command]
    return shell


def daemon_of(cluster: Cluster, node: str) -> int:
    """Return the process of Slurm's daemon on a node."""
    return int((cluster.folder / f"slurmd.{node}.pid").read_text())


def batch_node(job: Job) -> str:
    """Return the node on which a job's batch shell and rank 0 are."""
    found = re.search(r"BatchHost=(\S+)", job.cluster.call("scontrol", "show", "job", job.number))
    assert found is not None
    return found[1]


def let_go_on(job: Job) -> None:
    """Wait for a generation that begins after this call."""
    last = max(job.generations(), default=0)
    job.wait_for(rf"\ngeneration.* {last + 2}/\d+ done")


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """Stop a process for a block."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def start_again(cluster: Cluster, node: str) -> None:
    """Start a node's daemon, which was ended, and wait until Slurm knows it."""
    cluster.call("slurmd", "-N", node)
    deadline = time.monotonic() + PATIENCE_S
    while "*" in cluster.call("sinfo", "--noheader", f"--nodes={node}", "--format=%T"):  # it does not answer
        assert time.monotonic() < deadline
        time.sleep(0.1)


def kill(process: int, number: signal.Signals = signal.SIGKILL) -> None:
    """End a process, and wait until it has ended."""
    os.kill(process, number)
    while not ended(process):
        time.sleep(0.02)


def test_a_run_outlives_its_batch_shell_and_daemon(
    cluster: Cluster, submit: Submit, launch: Run, tmp_path: Path
) -> None:
    job = submit("es_countdown.sh", ["--nodes=2"], ["es.generations=1000"])
    job.wait_for(r"\ngeneration.* 1/\d+ done")
    shell, node = shell_of(job), batch_node(job)
    with stopped(shell):
        let_go_on(job)
    with stopped(daemon_of(cluster, node)):
        time.sleep(AWAY_S)
    for number in (signal.SIGKILL, signal.SIGTERM):  # a crash; and an update of the node's packages
        kill(daemon_of(cluster, node), number)
        start_again(cluster, node)
    let_go_on(job)
    assert (job.state(), job.text().count(", start ")) == ("RUNNING", 1)

    began, left = time.monotonic(), processes_of(job)
    kill(shell)
    assert job.wait(END_S) == signal.SIGKILL
    while not all(map(ended, left)):
        assert time.monotonic() - began < END_S, processes_of(job)
        time.sleep(0.1)
    print(f"batch shell killed: the job was over after {time.monotonic() - began:.1f} s")
    found = re.search(r"asked to stop by SIGTERM: theta of generation (\d+) is committed; rerun the same", job.text())
    assert found, job.text()
    assert "JobState=FAILED" in cluster.call("scontrol", "show", "job", job.number)
    made = read_digests(tmp_path / "tiny")
    assert len(made) == int(found[1]) == max(job.generations())

    more = len(made) + 1
    words = [TINY_RUN, f"run.output_dir={tmp_path}", "data.num_eval=2", f"es.generations={more}"]
    done = launch(["-m", "esmpi.run", *words], 0)
    assert done.returncode == 0, done.stderr
    assert read_digests(tmp_path / "tiny") == serial_digests(launch, tmp_path / "serial", more)


@pytest.mark.skipif("ESMPI_FAULTS" not in os.environ, reason="ESMPI_FAULTS is not set")
def test_a_daemon_that_stays_away_costs_a_start(cluster: Cluster, submit: Submit, launch: Run, tmp_path: Path) -> None:
    job = submit("es_countdown.sh", ["--nodes=2"], ["es.generations=1000"])
    for start, pauses in enumerate((True, False), 1):
        job.wait_for(rf"start {start},.*\ngeneration.* \d+/\d+ done")
        node, before, began = batch_node(job), processes_of(job), time.monotonic()
        daemon = daemon_of(cluster, node)
        os.kill(daemon, signal.SIGSTOP if pauses else signal.SIGKILL)
        job.wait_for(rf"start {start + 1},")
        print(f"daemon {'stopped' if pauses else 'killed'}: started anew after {time.monotonic() - began:.1f} s")
        assert f"srun: error: Node failure on {node}" in job.text()
        assert all(map(ended, before)), "the older start still runs"
        assert batch_node(job) != node
        job.wait_for(rf"start {start + 1},.*resuming from generation \d+.*\ngeneration.* \d+/\d+ done")
        if pauses:
            os.kill(daemon, signal.SIGCONT)
        else:
            start_again(cluster, node)
    job.cancel()
    # none was made twice, unless it was in the making
    assert job.generations() == sorted(set(job.generations()))
    made = read_digests(tmp_path / "tiny")
    assert len(made) >= max(job.generations())
    assert made == serial_digests(launch, tmp_path / "serial", len(made))
