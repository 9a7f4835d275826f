"""Start runs as Slurm jobs from Python, or by `esmpi submit`, with submitit. Imports no MPI and no torch.

A job is one process of submitit on its first node, which starts the ranks by srun and looks after them: so there is
one result, an error of any rank is its error, and the ranks are the same program as under sbatch.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmpi.config.overrides import Overrides
from esmpi.config.sections import Config
from esmpi.errors import UserError
from esmpi.launch.combinations import expand
from esmpi.launch.dry_run import check_inputs
from esmpi.masking import secrets_in
from esmpi.mpi.launcher import slurm_job
from esmpi.stop import STOPPED
from esmpi.stop.time_limit import parse_duration

if TYPE_CHECKING:
    from submitit import Job, SlurmExecutor
    from submitit.core.utils import DelayedSubmission

SRUN = ("srun", "--kill-on-bad-exit=1")

_OF_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_TIME_FORMAT")
_LAST_CHARACTERS = 10_000
_MAX_TIMEOUTS = 1000
"""How often a job may run into its time limit. submitit's default of 3 would end a long run that is healthy."""


class Ranks:
    """What submitit runs on the first node of a job: all ranks of one run, until its last generation.

    Parameters
    ----------
    config : Config
    launcher : sequence of str
        What starts the ranks.
    grace_s : float
        Seconds that the ranks get to end their generation before the job is requeued.
    """

    def __init__(self, config: Config, launcher: Sequence[str], grace_s: float):
        self._config, self.directory = config.to_yaml(), config.directory
        self._launcher, self._grace_s = list(launcher), grace_s
        self._ranks: int | None = None  # process id of their launcher

    def __call__(self) -> dict[str, Any]:
        """Run all ranks and return a summary of the run; RuntimeError with their last words if they fail."""
        try:
            return self._run()
        except subprocess.CalledProcessError as error:
            if error.returncode >= 0:
                raise
            # Slurm ends all processes of a job that it requeues, and submitit's own `scontrol requeue` may be one of
            # them. An error would become the job's result, though the job continues.
            sys.exit(128 - error.returncode)

    def _run(self) -> dict[str, Any]:
        from submitit import JobEnvironment

        paths = JobEnvironment().paths
        config = paths.folder / f"{slurm_job()}_config.yaml"
        config.write_text(self._config)  # as it was submitted, even if the user's file has changed since
        command = [*self._launcher, sys.executable, "-m", "esmpi.run", str(config)]
        before = paths.stderr.stat().st_size
        ranks = subprocess.Popen(command)
        self._ranks = ranks.pid
        while not _ended(ranks.pid):
            time.sleep(0.2)
        code = ranks.wait()
        self._ranks = None
        if code == STOPPED and _is_running():
            signal.raise_signal(JobEnvironment._usr_sig())  # submitit's own way to requeue; does not return
        if code != 0:
            words = paths.stderr.read_bytes()[before:].decode(errors="replace")[-_LAST_CHARACTERS:]
            raise RuntimeError(f"{shlex.join(command)} ended with exit code {code}:\n{words}")
        return summary(self.directory)

    def checkpoint(self) -> "DelayedSubmission":
        """Let the ranks end their generation; return what to run next. submitit calls this before it requeues the job.

        It calls it from a signal handler, in the midst of `__call__`.
        """
        from submitit import JobEnvironment
        from submitit.core.utils import DelayedSubmission

        # a second signal, of a preemption beside the time limit, would have submitit requeue the job twice
        signal.signal(JobEnvironment._usr_sig(), signal.SIG_IGN)
        if self._ranks is not None:
            os.kill(self._ranks, signal.SIGUSR1)
            deadline = time.monotonic() + self._grace_s
            while not _ended(self._ranks) and time.monotonic() < deadline:
                time.sleep(0.2)
        return DelayedSubmission(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ranks": None}


def summary(directory: Path) -> dict[str, Any]:
    """Return what came of a run: `directory`, `generations`, `theta` (digest) and the last evaluation of each suite."""
    from esmpi.store.run_file import RunFile, run_file_path

    run = RunFile.open(run_file_path(directory))
    return {
        "directory": str(directory),
        "generations": run.num_generations,
        "theta": f"{run.theta_digest:016x}",
        "evaluations": {
            suite: max(rows, key=lambda row: int(row["generation"])) for suite, rows in run.evaluations.items()
        },
    }


def submit(
    config: str | Path | Mapping[str, Any],
    overrides: Overrides = (),
    *,
    array: Mapping[str, Sequence[Any]] | None = None,
    launcher: Sequence[str] = SRUN,
    time_limit: str = "24:00:00",
    signal_delay_s: int | None = None,
    **resources: Any,
) -> "list[Job[dict[str, Any]]]":
    """Submit a run, or one for each combination of values, and return submitit's jobs.

    `job.result()` waits and returns the run's `summary`, or raises with the last words of the ranks. A job that is
    preempted, or whose time is nearly over, ends its generation and is requeued until the run is finished; one with a
    rank that failed is not.
    Logs and submitit's files are in `<output_dir>/submitit`.

    Parameters
    ----------
    config : path or mapping
        A YAML file, or its contents: sections with their keys.
    overrides : sequence of str or mapping
        Words such as "es.sigma=2e-3", or sections with the keys to change: ``{"es": {"sigma": 2e-3}}``.
    array : mapping of str to sequences, optional
        Keys of the config ("data.batch_size", or "sigma" for "es.sigma") and the values to try: a job array of all
        combinations, each in a run directory of its own.
    launcher : sequence of str
        What starts the ranks inside of the job.
    time_limit : str
        As Slurm writes it: "4:00:00", "2-12:00:00".
    signal_delay_s : int, optional
        How many seconds before the limit the ranks are asked to end their generation; default: 600, or a quarter of
        a short limit.
    **resources
        `nodes` (default 1), `gpus_per_node` (default 0), `tasks_per_node` (ranks of a node; default: its GPUs, or 1),
        `cpus_per_task`, `setup` (shell commands before the start), and any option of sbatch (partition="gpu").

    Raises
    ------
    UserError
        If submitit or Slurm is missing, the config is wrong, or Slurm refuses the job.
    """
    notes: list[str] = []
    configs = expand(config, overrides, array, notes)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    name = config["run"]["name"] if isinstance(config, Mapping) else Path(config).stem
    return submit_all(configs, name, launcher, time_limit, signal_delay_s, **resources)


def submit_all(
    configs: Sequence[Config],
    job_name: str,
    launcher: Sequence[str] = SRUN,
    time_limit: str = "24:00:00",
    signal_delay_s: int | None = None,
    **resources: Any,
) -> "list[Job[dict[str, Any]]]":
    """Submit a run for each config, as one job or a job array of this name; see `submit`."""
    for config in configs:
        check_inputs(config)
        _check_secrets(config)
    minutes, lead_s = _times(time_limit, signal_delay_s)
    executor = _executor(job_name, configs[0].run.output_dir, minutes, lead_s, resources)
    # the last tenth is for the requeueing itself
    runs = [Ranks(config, launcher, 0.9 * lead_s) for config in configs]
    try:
        with _outside_of_jobs(), executor.batch():
            return [executor.submit(run) for run in runs]
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise UserError(f"Slurm did not take the job: {error}") from error


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the variables of the job that this process is in, if it is in one: sbatch would hand them on.

    The new job's srun would then obey the cores, memory and tasks of the old job. What names the cluster stays, and so
    do the user's defaults for sbatch (`SBATCH_ACCOUNT`).
    """
    hidden = {}
    if slurm_job() is not None:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "SLURMD_", "SRUN_")) and name not in _OF_CLUSTER:
                hidden[name] = os.environ.pop(name)
    try:
        yield
    finally:
        os.environ.update(hidden)


def script(
    configs: Sequence[Config],
    job_name: str,
    time_limit: str = "24:00:00",
    signal_delay_s: int | None = None,
    **resources: Any,
) -> str:
    """Return the batch script that `submit_all` with the same arguments gives to sbatch; submits and writes nothing."""
    for config in configs:
        check_inputs(config)
        _check_secrets(config)
    executor = _executor(job_name, configs[0].run.output_dir, *_times(time_limit, signal_delay_s), resources)
    if len(configs) > 1:
        executor.parameters["map_count"] = len(configs)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _check_secrets(config: Config) -> None:
    """Raise UserError if a config, which is about to be written into files of the job, holds secrets."""
    if found := secrets_in(config.to_dict()):
        raise UserError(
            f"{', '.join(found)}: holds a token, key or password, which would be in the files of the job: set it as an "
            "environment variable instead, such as HF_TOKEN"
        )


def _times(time_limit: str, signal_delay_s: int | None) -> tuple[int, int]:
    """Return the time limit in minutes, and how many seconds before it the ranks are asked to end."""
    try:
        limit_s = parse_duration(time_limit)
        if not 60 <= limit_s < 60 * 10**7:
            raise ValueError(f"{time_limit!r} is not a time limit such as 4:00:00 or 2-12:00:00")
    except ValueError as error:
        raise UserError(f"--time: {error}") from error
    lead_s = int(min(600, limit_s / 4)) if signal_delay_s is None else signal_delay_s
    if not 0 < lead_s <= limit_s / 2:  # Slurm may send the signal a minute early, so a run might never get to work
        raise UserError(f"--signal-delay: {lead_s} s, but the time limit is {limit_s:.0f} s: at most half of it")
    return int(limit_s / 60), lead_s


def _executor(name: str, output_dir: str, minutes: int, lead_s: int, resources: Mapping[str, Any]) -> "SlurmExecutor":
    try:
        from submitit import SlurmExecutor
    except ImportError as error:
        raise UserError(f"esmpi submit needs submitit ({error}): pip install 'esmpi[submitit]'") from error
    options = dict(resources)
    nodes, gpus = options.pop("nodes", 1), options.pop("gpus_per_node", 0)
    tasks = options.pop("tasks_per_node", None) or max(1, gpus)
    if nodes < 1 or tasks < 1 or gpus < 0:
        raise UserError(f"--nodes, --tasks-per-node: at least 1, got {nodes} and {tasks}; --gpus-per-node: {gpus}")
    # as slurm/common.sh does: what is set reaches the ranks, and no rank asks a hub that it cannot reach
    offline = [f"export {name}=${{{name}:-1}}" for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")]
    setup = ["export SLURM_EXPORT_ENV=ALL", *offline, *options.pop("setup", ())]
    if options.get("cpus_per_task"):
        setup.append(f"export SRUN_CPUS_PER_TASK={options['cpus_per_task']}")  # srun does not take over sbatch's
    # submitit is told of one task, its own process; Slurm, of the ranks
    options |= {"nodes": nodes, "ntasks-per-node": tasks, "requeue": True}
    # to the batch script, which is submitit's process: it knows what to do if ranks do not end in time
    options["signal"] = f"B:USR2@{lead_s}"
    if gpus:
        options["gpus-per-node"] = gpus
    try:
        executor = SlurmExecutor(
            Path(output_dir).expanduser() / "submitit",
            max_num_timeout=_MAX_TIMEOUTS,
            python=f"exec {shlex.quote(sys.executable)}",  # in place of the script's shell, so that it gets the signal
        )
        executor.update_parameters(
            job_name=name,
            time=minutes,
            use_srun=False,
            setup=setup,
            additional_parameters={key.replace("_", "-"): value for key, value in options.items() if value is not None},
        )
    except RuntimeError as error:
        raise UserError(f"esmpi submit: {error}") from error
    return executor


def _is_running() -> bool:
    """Return whether Slurm lets this job run: not if it is being cancelled, or its time is over."""
    command = ["squeue", "--noheader", "--jobs", str(slurm_job()), "--format=%T"]
    for wait_s in (1, 5, 20):  # Slurm's controller may be busy, or away for a moment
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            return done.stdout.strip() == "RUNNING"
        time.sleep(wait_s)
    return True  # if it is not, Slurm will say so


def _ended(pid: int) -> bool:
    """Return whether a child ended, without taking its exit code: Popen's own methods are not for signal handlers."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
