"""A real Slurm cluster for the tests here, and jobs on it."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT, TINY_RUN, require

from slurm.cluster import Cluster, missing_programs

PATIENCE_S = 400
"""For what takes some ten seconds on two cores that have nothing else to do."""
GONE_S = 20
"""How long a job may seem to be over that is only being requeued."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = missing_programs()
    require("slurm", not missing, f"no {', '.join(missing)}: apt-get install munge slurmctld slurmd slurm-client")
    require("slurm", os.geteuid() == 0, "the tests' own cluster needs root")
    # all nodes are this machine: they find this Python, and threads that do not fight for its cores
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
        "VIRTUAL_ENV": sys.prefix,
        "OMP_NUM_THREADS": "1",
        "CONFIG": str(TINY_RUN),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        cluster = Cluster(tmp_path_factory.mktemp("cluster"))
        started = time.monotonic()
        try:
            cluster.up()
            print(f"cluster of virtual nodes up in {time.monotonic() - started:.1f} s")
            patch.setenv("SLURM_CONF", str(cluster.config))
            yield cluster
        finally:
            cluster.down()


@dataclass
class Job:
    """A batch job and its output."""

    cluster: Cluster
    number: str
    output: Path

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def generations(self) -> list[int]:
        """Return the generations that the output tells of, in its order."""
        return [int(number) for number in re.findall(r"^generation .* (\d+)/\d+ done", self.text(), re.MULTILINE)]

    def wait_for(self, pattern: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the output has a pattern, in which a dot may be the end of a line, too."""
        deadline = time.monotonic() + timeout_s
        seen = time.monotonic()  # when the job was there last: between its end and its requeue it may seem to be over
        while not re.search(pattern, self.text(), re.DOTALL):
            now = time.monotonic()
            seen = now if self.state() else seen
            assert now < deadline, f"no {pattern!r} in {timeout_s} s:\n{self.text()}"
            assert now - seen < GONE_S, f"the job ended without {pattern!r}:\n{self.text()}"
            time.sleep(0.1)

    def state(self) -> str:
        """Return the job's state, empty if it has ended."""
        text = self.cluster.call("squeue", "--noheader", "--format=%T", "--jobs", self.number, "--states=all").strip()
        return "" if text in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL") else text

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the job's end and return its exit code."""
        deadline = time.monotonic() + timeout_s
        while self.state():
            assert time.monotonic() < deadline, f"not ended in {timeout_s} s:\n{self.text()}"
            time.sleep(0.2)
        found = re.search(r"ExitCode=(\d+):(\d+)", self.cluster.call("scontrol", "show", "job", self.number))
        assert found is not None
        return int(found[1]) or int(found[2])

    def cancel(self) -> None:
        """Cancel the job, again if Slurm requeues it all the same, because it was about to do so."""
        deadline = time.monotonic() + PATIENCE_S
        while self.state():
            assert time.monotonic() < deadline, f"not cancelled in {PATIENCE_S} s:\n{self.text()}"
            with suppress(RuntimeError):  # it ended just now
                self.cluster.call("scancel", self.number)
            time.sleep(0.5)


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[[str, list[str], list[str]], Job]]:
    """Submit one of the job scripts with the tiny config: submit("es_countdown.sh", ["--nodes=2"], [arguments])."""

    jobs: list[str] = []

    def call(script: str, options: list[str], arguments: list[str]) -> Job:
        output = tmp_path / f"{script}.out"
        answer = cluster.call(
            *("sbatch", "--parsable", f"--chdir={ROOT}", f"--output={output}", "--ntasks-per-node=1"),
            *("--cpus-per-task=1", *options, ROOT / "slurm" / script),
            *(*arguments, f"run.output_dir={tmp_path}", "data.num_eval=2"),
        )
        jobs.append(answer.strip())
        return Job(cluster, answer.strip(), output)

    yield call
    for number in jobs:  # one that a failed test has left would take the processor from all others
        with suppress(RuntimeError):
            cluster.call("scancel", number)
