"""The job scripts on a real Slurm: they run on several nodes, and go on by themselves whatever ends them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import pytest
from support import GENERATIONS, ROOT, TINY_RUN, Run, read_digests, require, serial_digests

from esmpi.model.find import find_model
from slurm.cluster import Cluster
from slurm.conftest import PATIENCE_S, Job

Submit = Callable[[str, list[str], list[str]], Job]
ALL = f"es.generations={GENERATIONS}"


@pytest.mark.parametrize("nodes", [2, 4])
def test_the_batch_script_gives_the_bits_of_a_serial_run(
    submit: Submit, digests: list[int], tmp_path: Path, nodes: int
) -> None:
    started = time.monotonic()
    # the node's name stands for a disk that only this node has
    job = submit("es_countdown.sh", [f"--nodes={nodes}"], [ALL, f"model.stage_to={tmp_path}/$SLURMD_NODENAME"])
    job.wait_for(r"1/\d+ done")
    print(f"{nodes} nodes: first generation {time.monotonic() - started:.1f} s after sbatch")
    assert job.wait() == 0, job.text()
    assert read_digests(tmp_path / "tiny") == digests
    assert f"{nodes} ranks x 1 thread" in job.text()
    copies = sorted(tmp_path.glob("node*/tiny_countdown-*/model.safetensors"))
    assert len(copies) == nodes
    assert re.search(r"ready in [\d.]+ s \(model [\d.]+ s, engine [\d.]+ s\)", job.text())
    if nodes == 2:
        job = submit("es_eval.sh", ["--nodes=1"], [str(tmp_path / "tiny"), "--generation", "3"])
        assert job.wait() == 0, job.text()
        with h5py.File(tmp_path / "tiny" / "run.h5") as file:
            assert sorted(file["evaluations/held_out/generation"][()]) == [0, 3, GENERATIONS]


def test_an_open_mpi_of_the_site_forms_one_world_by_pmix(cluster: Cluster, digests: list[int], tmp_path: Path) -> None:
    libraries = {name: sorted(Path("/usr/lib").glob(f"*/{name}")) for name in ("libmpi.so.40", "pmix2/lib/libpmix.so")}
    missing = [name for name, found in libraries.items() if not found]
    require("openmpi", not missing, f"no {', '.join(missing)}: apt-get install openmpi-bin libpmix-dev")
    command = ["srun", "--mpi=pmix", "-N4", "-n4", "env", f"MPI4PY_LIBMPI={libraries['libmpi.so.40'][0]}"]
    said = cluster.call(
        *(*command, sys.executable, "-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}"),
        *("es.generations=2", "data.num_eval=2"),
        timeout_s=PATIENCE_S,
    )
    assert "4 ranks x 1 thread" in said
    assert read_digests(tmp_path / "tiny") == digests[:2]
    # several ranks of a node, and what the run file does not say
    said = cluster.call(*command[:2], "-N2", "-n5", *command[4:], sys.executable, "-m", "esmpi", "doctor")
    assert said.count("Open MPI") == 5


def test_a_launcher_that_does_not_fit_is_refused_with_the_cure(cluster: Cluster, tmp_path: Path) -> None:
    command = ["srun", "--mpi=none", "-N2", "-n2", sys.executable, "-m", "esmpi.run", TINY_RUN]
    done = subprocess.run(
        [*command, f"run.output_dir={tmp_path}"], capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.count("esmpi: srun started 2 ranks, but MPI sees a world of 1") == 1
    assert "--mpi=pmi2" in done.stderr
    assert not (tmp_path / "tiny").exists()


def test_ranks_tell_each_other_little_where_they_meet(cluster: Cluster) -> None:
    """What they tell goes through Slurm, which cuts long lines."""
    program = (
        "import os; from esmpi.mpi.comm import Comm; c = Comm(); print(c.size, os.environ['MPIR_CVAR_CH4_NETMOD'])"
    )
    said = cluster.call("srun", "-N2", "-n3", sys.executable, "-c", program)
    assert said.splitlines() == ["3 ofi"] * 3


def test_doctor_has_a_line_for_each_rank(cluster: Cluster, tmp_path: Path) -> None:
    said = cluster.call(
        *("srun", "--nodelist=node[1-2]", "-n3", sys.executable, "-m", "esmpi", "doctor", TINY_RUN),
        f"run.output_dir={tmp_path}",
        timeout_s=PATIENCE_S,
    )
    lines = said.splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [[str(rank), "of", "3"] for rank in range(3)]
    assert "node1" in lines[1]
    assert "node2" in lines[3]
    assert "822,656 weights" in lines[2]
    assert lines[-1] == "all is well"
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_what_differs_between_nodes(cluster: Cluster, tmp_path: Path) -> None:
    # node2 has another h5py, the model was copied to node1 only, and the runs are on a disk of each node
    shutil.copytree(find_model("esmpi:tiny_countdown", None), tmp_path / "node1" / "model")
    other = tmp_path / "other" / "h5py-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: h5py\nVersion: 1.0\n")
    program = (
        f"[ $SLURMD_NODENAME = node1 ] || export PYTHONPATH={other.parent}:$PYTHONPATH; "
        f'exec "$@" run.output_dir={tmp_path}/$SLURMD_NODENAME model.path={tmp_path}/$SLURMD_NODENAME/model'
    )
    doctor = [sys.executable, "-m", "esmpi", "doctor", TINY_RUN]
    done = subprocess.run(
        ["srun", "--nodelist=node[1-2]", "-n2", "bash", "-c", program, "bash", *doctor],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=ROOT,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"- version of h5py differs: [\d.]+ on ranks \[0\]; 1.0 on ranks \[1\]", done.stdout)
    assert f"- ranks [1]: model.path: no folder {tmp_path}/node2/model" in done.stdout
    assert f"- ranks [1]: run.output_dir: {tmp_path}/node2/tiny is not here what it is for rank 0" in done.stdout
    assert done.stdout.count("\n- ") == 4  # and nothing else, but that the weights differ


def end_by_requeue(job: Job) -> None:
    job.cluster.call("scontrol", "requeue", job.number)


def end_by_node_failure(job: Job) -> None:
    job.cluster.call("scontrol", "update", "nodename=node2", "state=DOWN", "reason=test")
    with suppress(RuntimeError):  # the node has come back by itself (ReturnToService)
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


def kill_ranks(job: Job) -> None:
    """Kill both ranks of a job as soon as they are there."""
    deadline = time.monotonic() + PATIENCE_S
    while len(ranks := processes_of(job)) < 2:
        assert time.monotonic() < deadline, job.text()
        time.sleep(0.1)
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)


def end_by_signal_to_steps(job: Job) -> None:
    job.cluster.call("scancel", "--signal=USR1", job.number)


def end_by_signal_to_script(job: Job) -> None:
    job.cluster.call("scancel", "--batch", "--signal=TERM", job.number)


def hiccups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have jobs meet a controller that does not answer the first time that they want to be requeued."""
    program = (
        "#!/bin/bash\n"
        'mark="$0.$SLURM_JOB_ID.$SLURM_RESTART_COUNT"\n'
        '[ "$1" != requeue ] || [ -z "$SLURM_JOB_ID" ] || [ -e "$mark" ] || { touch "$mark" && exit 1; }\n'
        f'exec {shutil.which("scontrol")} "$@"\n'
    )
    (folder / "bin").mkdir()
    (folder / "bin" / "scontrol").write_text(program)
    (folder / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def test_what_ends_a_job_does_not_change_the_run(
    submit: Submit, launch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hiccups(tmp_path, monkeypatch)
    # more generations than it can make before it is cancelled, however late what ends it comes
    job = submit("es_countdown.sh", ["--nodes=2"], ["es.generations=1000"])
    job.wait_for("start 1,")
    end_by_signal_to_script(job)  # while there are no ranks, or none that can take it
    ends = (end_by_requeue, end_by_node_failure, end_by_signal_to_steps, end_by_signal_to_script)
    for start, end in enumerate(ends, 2):
        job.wait_for(rf"start {start},.*\ngeneration.* \d+/\d+ done")
        end(job)
    job.wait_for(rf"start {len(ends) + 2},.*resuming from generation \d+.*\ngeneration.* \d+/\d+ done")
    job.cancel()
    assert "JobState=CANCELLED" in job.cluster.call("scontrol", "show", "job", job.number)
    assert job.text().count("resuming from generation") == len(ends)
    # after the signals, each at the second try; Slurm itself did it after the others
    assert job.text().count("back into the queue") == 2 * 3
    # none was made twice, unless it was in the making as the job was ended; none was lost
    assert job.generations() == sorted(set(job.generations()))
    made = read_digests(tmp_path / "tiny")
    assert len(made) >= max(job.generations())
    assert made == serial_digests(launch, tmp_path / "serial", len(made))


def test_killed_ranks_go_on_if_they_got_on(
    submit: Submit, digests: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUEUE", "always")
    before = unused_shared_memory()
    # on one node: there ranks share memory, which nobody cleans up
    job = submit("es_conciseness.sh", ["--nodes=1", "--ntasks-per-node=2"], ["es.generations=1000"])
    kill_ranks(job)  # before their first generation: requeued, such a job might never end
    assert job.wait() == 128 + signal.SIGKILL, job.text()
    assert "not put back into the queue" in job.text()
    job.cluster.call("scontrol", "requeue", job.number)
    job.wait_for(r"start 2,.*\ngeneration.* 2/\d+ done")
    kill_ranks(job)
    job.wait_for(r"but not before a new generation: back into the queue.*start 3,.*resuming from generation \d+")
    job.wait_for(r"start 3,.*\ngeneration.* \d+/\d+ done")
    job.cancel()
    # mostly, but not always, what is left keeps the next start from starting: so look for it itself
    assert unused_shared_memory() <= before
    made = read_digests(tmp_path / "tiny")[:GENERATIONS]
    assert len(made) > 2
    assert made == digests[: len(made)]


def test_a_run_stops_when_the_time_left_is_too_short(submit: Submit, digests: list[int], tmp_path: Path) -> None:
    # an hour is wanted, half an hour is there
    options = ["--nodes=2", "--time=30", "--partition=debug"]
    job = submit("template.sh", options, [str(TINY_RUN), "es.generations=1000", "run.stop_before_limit=3600"])
    job.wait_for("theta of generation 1 is committed.*back into the queue")
    job.cancel()
    assert re.search(r"with 1[5-7]\d\d s of the job's time left: theta of generation 1 is committed", job.text())
    assert job.generations() == [1]
    assert read_digests(tmp_path / "tiny") == digests[:1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [("es_math.sh", ["--time=1", "--signal=B:USR1@30"]), ("es_countdown.sh", ["--time=2", "--signal=USR1@30"])],
)
def test_a_signal_before_the_limit_requeues(
    submit: Submit, digests: list[int], tmp_path: Path, script: str, options: list[str]
) -> None:
    # Slurm may send it half a minute early, so perhaps before there is a step to get it: then the limit is longer
    overrides = ["es.generations=1000", "run.stop_before_limit=null"]
    job = submit(script, ["--nodes=2", *options], overrides)
    job.wait_for("resuming from generation")
    job.cancel()
    assert "asked to stop by SIGUSR1" in job.text()
    made = read_digests(tmp_path / "tiny")[:GENERATIONS]
    assert made
    assert made == digests[: len(made)]


@pytest.mark.slow
def test_a_generation_that_outlasts_the_time_left_is_given_up(submit: Submit) -> None:
    endless = ["es.generations=2", "es.population_size=100000", "run.stop_before_limit=null"]
    job = submit("es_countdown.sh", ["--nodes=1", "--time=2", "--signal=B:USR1@60"], endless)
    job.wait_for(r"the generation does not end in time: back into the queue.*start \d+,")
    job.cancel()
    assert job.generations() == []


@pytest.mark.parametrize("script", ["es_sudoku.sh", "es_arc.sh", "es_multiplication.sh"])
def test_other_scripts_of_experiments_train(submit: Submit, tmp_path: Path, digests: list[int], script: str) -> None:
    job = submit(script, ["--nodes=1"], ["es.generations=1"])
    assert job.wait() == 0, job.text()
    assert read_digests(tmp_path / "tiny") == digests[:1]


def wait_for_all(job: Job) -> None:
    """Wait until no job is left."""
    deadline = time.monotonic() + PATIENCE_S
    while job.cluster.call("squeue", "--noheader"):
        assert time.monotonic() < deadline, job.text()
        time.sleep(0.5)


def test_a_sweep_is_an_array_of_runs_and_one_table(submit: Submit, tmp_path: Path) -> None:
    words = [str(TINY_RUN), "es.sigma=2e-3,3e-3", "es.alpha=3e-3,6e-3", "es.generations=1"]
    job = submit("sweep.sh", ["--nodes=1", "--array=0-3"], words)
    wait_for_all(job)
    command = [sys.executable, "-m", "esmpi", "sweep", *words, f"run.output_dir={tmp_path}", "data.num_eval=2"]
    done = subprocess.run([*command, "--show"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:3] == ["sigma", "alpha", "finished"]
    assert sorted(line[:3] for line in lines[1:5]) == [
        [sigma, alpha, "1/1"] for sigma in ("0.002", "0.003") for alpha in ("0.003", "0.006")
    ]
    assert (tmp_path / "tiny_sweep" / "sweep.png").exists()
    # one that stands beside them is the same run
    names = [f"tiny_alpha={alpha}_sigma={sigma}_seed=0" for alpha in ("0.003", "0.006") for sigma in ("0.002", "0.003")]
    compared = [sys.executable, "-m", "esmpi", "report", *(tmp_path / "tiny_sweep" / name for name in names), tmp_path]
    done = subprocess.run(compared, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:4] == ["run", "alpha", "sigma", "generations"]
    assert done.stdout.splitlines()[5].startswith("no run file")


def test_a_task_that_the_sweep_does_not_have_is_refused(submit: Submit, tmp_path: Path) -> None:
    job = submit("sweep.sh", ["--nodes=1", "--array=2"], [str(TINY_RUN), "es.sigma=2e-3,3e-3"])
    job.number = f"{job.number}_2"
    assert job.wait() == 2
    assert "--write-config: no run 2: 2 runs in" in job.text()
    assert "sbatch --array=0-1" in job.text()
