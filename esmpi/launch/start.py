"""Start the runs of a sweep: on this machine, one after another, or as a job array of Slurm."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from esmpi.errors import UserError
from esmpi.launch.jobs import submit_all
from esmpi.launch.sweep import SweepRun
from esmpi.stop import STOPPED
from esmpi.stop.signals import StopFlag

_LOOK_EVERY_S = 0.1


def run_serially(runs: Sequence[SweepRun], num_ranks: int | None) -> int:
    """Start each run that is neither finished nor running elsewhere, wait for its end, and print how far it came.

    A run that fails does not keep the next one from starting. A signal stops the run that is going, after its
    generation, and no other one is started.

    Parameters
    ----------
    runs : sequence of SweepRun
    num_ranks : int or None
        Ranks of each, by mpiexec; None: one process without MPI.

    Returns
    -------
    int
        0; `STOPPED` if a run was asked to stop before its last generation; 1 if a run failed.

    Raises
    ------
    UserError
        If there is no mpiexec.
    """
    launcher = [] if num_ranks is None else [_mpiexec(), "-n", str(num_ranks)]
    failed = False
    stop = StopFlag()
    with stop.installed():
        for number, run in enumerate(runs, 1):
            place = f"run {number} of {len(runs)}, {run.name}"
            file = run.read()
            if not run.wants_start(file, ()):
                print(f"{place}: {run.state(file, ())}", flush=True)
                continue
            print(f"{place}: log {run.log_file}", flush=True)
            started = time.monotonic()
            code = _run([*launcher, sys.executable, "-m", "esmpi.run", str(run.write_config())], run, stop)
            seconds = time.monotonic() - started
            print(f"  exit code {code} after {seconds:.1f} s: {run.state(run.read(), ())}", flush=True)
            if stop or code == STOPPED:
                print("stopped; rerun the same command to resume", flush=True)
                return STOPPED
            failed |= code != 0
    return int(failed)


def submit_runs(runs: Sequence[SweepRun], job_name: str, **resources: Any) -> dict[str, str]:
    """Submit runs as a job array, and link their logs; return the jobs by the names of the runs.

    `resources` are those of `esmpi.launch.jobs.submit_all`.
    """
    jobs = submit_all([run.config for run in runs], job_name, **resources)
    for run, job in zip(runs, jobs, strict=True):
        run.log_file.parent.mkdir(parents=True, exist_ok=True)
        for link, output in ((run.log_file, job.paths.stdout), (run.error_file, job.paths.stderr)):
            link.unlink(missing_ok=True)
            link.symlink_to(output.resolve())
    return {run.name: job.job_id for run, job in zip(runs, jobs, strict=True)}


def jobs_in_queue() -> set[str]:
    """Return the jobs that Slurm has, waiting or running, each task of an array by itself; none without Slurm."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["squeue", "--array", "--noheader", "--format=%i"]
        return set(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())
    return set()


def _run(command: Sequence[str], run: SweepRun, stop: StopFlag) -> int:
    """Run a command, with its output in the run's log, and return its exit code; pass on a request to stop."""
    run.log_file.parent.mkdir(parents=True, exist_ok=True)
    for link in (run.log_file, run.error_file):  # to the output of an earlier job
        link.unlink(missing_ok=True)
    with run.log_file.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    asked = False
    while process.poll() is None:
        if stop and not asked:
            # Launchers pass this signal on to the ranks. If a terminal has sent these one of their own at the same
            # time, the two count as one.
            process.send_signal(signal.SIGUSR1)
            asked = True
        time.sleep(_LOOK_EVERY_S)
    return process.returncode


def _mpiexec() -> str:
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        raise UserError(
            "--ranks: no mpiexec is found: pip install 'esmpi[mpich]', or load the module of your site's MPI"
        )
    return found
