"""The job scripts on a real Slurm: they run on several nodes, and go on by themselves whatever ends them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support import ROOT, TINY_RUN

from slurm.cluster import Cluster
from slurm.conftest import GENERATIONS, Job, read_digests

Submit = Callable[[str, list[str], list[str]], Job]
ALL = f"es.generations={GENERATIONS}"


@pytest.mark.parametrize("nodes", [2, 4])
def test_the_batch_script_gives_the_bits_of_a_serial_run(
    submit: Submit, digests: list[int], tmp_path: Path, nodes: int
) -> None:
    started = time.monotonic()
    # the node's name stands for a disk that only this node has
    job = submit("es_countdown.sh", [f"--nodes={nodes}"], [ALL, f"model.stage_to={tmp_path}/$SLURMD_NODENAME"])
    job.wait_for("generation 1/")
    print(f"{nodes} nodes: first generation {time.monotonic() - started:.1f} s after sbatch")
    assert job.wait() == 0, job.text()
    assert read_digests(tmp_path / "tiny") == digests
    assert f"{nodes} ranks x 1 threads" in job.text()
    copies = sorted(tmp_path.glob("node*/tiny_countdown-*/model.safetensors"))
    assert len(copies) == nodes
    assert re.search(r"ready in [\d.]+ s \(model [\d.]+ s, engine [\d.]+ s\)", job.text())


def test_a_launcher_that_does_not_fit_is_refused_with_the_cure(cluster: Cluster, tmp_path: Path) -> None:
    command = ["srun", "--mpi=none", "-N2", "-n2", sys.executable, "-m", "esmpi.run", TINY_RUN]
    done = subprocess.run(
        [*command, f"run.output_dir={tmp_path}"], capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.count("esmpi: srun started 2 ranks, but MPI sees a world of 1") == 1
    assert "--mpi=pmi2" in done.stderr
    assert not (tmp_path / "tiny").exists()


def test_ranks_tell_each_other_little_where_they_meet(cluster: Cluster) -> None:
    """What they tell goes through Slurm, which cuts long lines."""
    program = "import os; from esmpi.comm import Comm; c = Comm(); print(c.size, os.environ['MPIR_CVAR_CH4_NETMOD'])"
    said = cluster.call("srun", "-N2", "-n3", sys.executable, "-c", program)
    assert said.splitlines() == ["3 ofi"] * 3


def test_doctor_has_a_line_for_each_rank_and_names_what_differs(cluster: Cluster, tmp_path: Path) -> None:
    command = ["srun", "-N2", "-n3", sys.executable, "-m", "esmpi", "doctor", TINY_RUN, f"run.output_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [[str(rank), "of", "3"] for rank in range(3)]
    assert "node1" in lines[1]
    assert "node2" in lines[3]
    assert "822,656 weights" in lines[2]
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run(
        [*command, "model.path=$NO_SUCH_FOLDER/x/y"], capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert done.returncode == 2
    assert "- model.path: no folder" in done.stdout


def end_by_requeue(job: Job) -> None:
    job.cluster.call("scontrol", "requeue", job.number)


def end_by_node_failure(job: Job) -> None:
    job.cluster.call("scontrol", "update", "nodename=node2", "state=DOWN", "reason=test")
    job.cluster.call("scontrol", "update", "nodename=node2", "state=RESUME")


def processes_of(job: Job) -> list[int]:
    """Return the processes that are ranks of a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process ended
            environment = (folder / "environ").read_bytes().split(b"\0")
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            mine = {f"SLURM_JOB_ID={job.number}".encode(), b"PMI_SIZE=2"} <= set(environment)
            if mine and b"esmpi.run" in arguments and b"-m" in arguments:
                found.append(int(folder.name))
    return found


def unused_shared_memory() -> set[str]:
    """Return the shared memory of MPICH on this machine that no process has open."""
    names = {str(path) for path in Path("/dev/shm").glob("mpich_shm_*")}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # the process ended
            text = maps.read_text()
            names -= {name for name in names if name in text}
    return names


def end_by_killed_ranks(job: Job) -> None:
    before = unused_shared_memory()
    ranks = processes_of(job)
    assert len(ranks) == 2
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    assert job.wait() != 0
    # mostly, but not always, what is left keeps the next start from starting: so look for it itself
    assert unused_shared_memory() <= before
    job.cluster.call("scontrol", "requeue", job.number)


def end_by_signal_to_steps(job: Job) -> None:
    job.cluster.call("scancel", "--signal=USR1", job.number)


def end_by_signal_to_script(job: Job) -> None:
    job.cluster.call("scancel", "--batch", "--signal=TERM", job.number)


ENDS = (end_by_requeue, end_by_node_failure, end_by_killed_ranks, end_by_signal_to_steps, end_by_signal_to_script)


@pytest.mark.parametrize("end", ENDS)
def test_what_ends_a_job_does_not_change_the_run(
    submit: Submit, digests: list[int], tmp_path: Path, end: Callable[[Job], None]
) -> None:
    # killed on one node: there ranks share memory, which nobody cleans up
    where = ["--nodes=1", "--ntasks-per-node=2"] if end is end_by_killed_ranks else ["--nodes=2"]
    job = submit("es_countdown.sh", where, [ALL])
    job.wait_for("generation 2/")
    end(job)
    assert job.wait() == 0, job.text()
    went_on = re.findall(r"going on from generation (\d+)", job.text())
    assert len(went_on) == 1
    assert int(went_on[0]) >= 2
    made = re.findall(r"^generation (\d+)/", job.text(), re.MULTILINE)
    # none was made twice, unless it was in the making as the job was ended
    assert made == [str(i) for i in range(1, GENERATIONS + 1)]
    assert read_digests(tmp_path / "tiny") == digests


def test_a_cancelled_job_stays_cancelled(submit: Submit, digests: list[int], tmp_path: Path) -> None:
    job = submit("es_countdown.sh", ["--nodes=2"], [ALL])
    job.wait_for("generation 1/")
    job.cluster.call("scancel", job.number)
    job.wait()
    assert "back into the queue" not in job.text()
    assert "JobState=CANCELLED" in job.cluster.call("scontrol", "show", "job", job.number)
    made = read_digests(tmp_path / "tiny")
    assert made == digests[: len(made)]


def test_a_run_stops_when_the_time_left_is_too_short(submit: Submit, digests: list[int], tmp_path: Path) -> None:
    # an hour is wanted, half an hour is there: each start makes one generation, and a third one the evaluation
    options = ["--nodes=2", "--time=30"]
    job = submit("es_countdown.sh", options, ["es.generations=2", "run.stop_before_limit=3600"])
    assert job.wait() == 0, job.text()
    assert re.search(r"with 1[67]\d\d s of the job's time left: generation 1 is committed", job.text())
    assert "generation 2 is committed" in job.text()
    assert job.text().count("back into the queue") == 2
    assert "held-out at generation 2" in job.text()
    assert read_digests(tmp_path / "tiny") == digests[:2]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--time=1", "--signal=B:USR1@30"], ["--time=2", "--signal=USR1@30"]])
def test_a_signal_before_the_limit_requeues(
    submit: Submit, digests: list[int], tmp_path: Path, options: list[str]
) -> None:
    # Slurm may send it half a minute early, so perhaps before there is a step to get it: then the limit is longer
    overrides = ["es.generations=1000", "run.stop_before_limit=null"]
    job = submit("es_countdown.sh", ["--nodes=2", *options], overrides)
    job.wait_for("going on from generation", 240)
    job.cluster.call("scancel", job.number)
    job.wait()
    assert "asked to stop by SIGUSR1" in job.text()
    made = read_digests(tmp_path / "tiny")[:GENERATIONS]
    assert made
    assert made == digests[: len(made)]


def test_a_sweep_is_an_array_of_runs_and_one_table(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGMAS", "2e-3 3e-3")
    monkeypatch.setenv("ALPHAS", "3e-3 6e-3")
    submit_env = ["--nodes=1", "--array=0-3"]
    job = submit("sweep.sh", submit_env, ["es.generations=2", "data.num_eval=20"])
    deadline = time.monotonic() + 200
    while job.cluster.call("squeue", "--noheader"):
        assert time.monotonic() < deadline, job.text()
        time.sleep(0.5)
    names = [f"sweep_sigma={sigma}_alpha={alpha}" for sigma in ("2e-3", "3e-3") for alpha in ("3e-3", "6e-3")]
    assert sorted(path.name for path in tmp_path.glob("sweep_*")) == sorted(names)
    command = [sys.executable, "-m", "esmpi", "report", *(tmp_path / name for name in names), tmp_path / "sweep_none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["run", "alpha", "sigma", "generations"]
    table = {Path(line.split()[0]).name: line.split()[1:4] for line in lines[1:5]}
    assert table == {
        f"sweep_sigma={float(sigma) * 1e3:g}e-3_alpha={float(alpha) * 1e3:g}e-3": [alpha, sigma, "2/2"]
        for sigma in ("0.002", "0.003")
        for alpha in ("0.003", "0.006")
    }
    assert lines[5].startswith("no run file")


def test_an_array_that_is_not_the_sweep_is_refused(submit: Submit, tmp_path: Path) -> None:
    job = submit("sweep.sh", ["--nodes=1", "--array=0-3"], [])
    job.number = f"{job.number}_3"
    assert job.wait() == 2
    assert "3 sigmas and 3 alphas are 9 runs: sbatch --array=0-8" in job.text()
