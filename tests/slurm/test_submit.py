"""Jobs from Python: results, errors and requeueing by submitit on a real Slurm."""

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import GENERATIONS, ROOT, TINY_RUN, read_digests, require

from esmpi import submit
from esmpi.launch.jobs import SRUN
from slurm.cluster import Cluster
from slurm.conftest import PATIENCE_S

FAULTY = ROOT / "tests" / "mpi" / "faulty.py"
AROUND = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_MEM_PER_CPU": "100000", "SRUN_CPUS_PER_TASK": "1000"}
"""What Slurm says in a job that submits another one. With the last of it, no step of that one could start."""


@pytest.fixture(autouse=True)
def here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    require("slurm", find_spec("submitit") is not None, "pip install 'esmpi[submitit]'")
    monkeypatch.chdir(ROOT)


def test_a_preempted_job_of_an_array_is_requeued_and_returns_its_result(
    digests: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in AROUND.items():
        monkeypatch.setenv(name, value)
    overrides = [f"run.output_dir={tmp_path}", f"es.generations={GENERATIONS}", "data.num_eval=2"]
    job, other = submit(TINY_RUN, overrides, array={"sigma": ["3e-3", "2e-3"]}, nodes=2, time_limit="30:00")
    deadline = time.monotonic() + PATIENCE_S
    while " 1/" not in (job.stdout() or ""):
        assert time.monotonic() < deadline, f"{job.stdout()}{job.stderr()}"
        time.sleep(0.05)
    for _ in range(2):  # as `--signal` has Slurm do before the limit, and a preemption while submitit requeues
        subprocess.run(["scancel", "--batch", "--signal=USR2", job.job_id], check=True)
        time.sleep(0.2)
    result = job.result()
    assert job.stdout().count("Caught signal SIGUSR2") == 1
    assert job.stdout().count("resuming from generation") == 1
    assert result["theta"] == f"{digests[-1]:016x}"
    assert result["generations"] == GENERATIONS
    assert result["evaluations"]["held_out"]["generation"] == GENERATIONS
    assert read_digests(Path(result["directory"])) == digests
    assert Path(other.result()["directory"]).name == "tiny_sigma=2e-3"
    assert "resuming from generation" not in other.stdout()


def test_an_error_of_any_rank_reaches_the_caller(tmp_path: Path) -> None:
    # what the launcher is given is: python -m esmpi.run CONFIG
    inside = f'exec "$0" {FAULTY} raise 1 {tmp_path}/stamp "$3"'
    (job,) = submit(
        TINY_RUN, [f"run.output_dir={tmp_path}"], nodes=2, time_limit="30:00", launcher=[*SRUN, "bash", "-c", inside]
    )
    with pytest.raises(Exception, match="the engine of this rank broke") as caught:
        job.result()
    assert "[rank 1 of 2" in str(caught.value)


def test_the_dry_run_shows_the_script_and_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from esmpi.__main__ import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'vllm', 'mpi4py', 'numba'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    options = ["--nodes", "4", "--gpus-per-node", "8", "--time", "4:00:00", "--array", "sigma=1e-3,2e-3", "--dry-run"]
    command = [sys.executable, "-c", program, "submit", str(TINY_RUN), f"run.output_dir={tmp_path}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for line in ("nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "time=240", "array=0-1%2", "signal=B:USR2@600"):
        assert f"#SBATCH --{line}\n" in done.stdout
    assert list(tmp_path.iterdir()) == []
