"""How much of a Slurm job's time is left, and whether it is enough for another generation."""

import logging
import os
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Collection, Mapping

from esmpi.mpi.launcher import slurm_job

log = logging.getLogger(__name__)

_NUM_RECENT = 10


class TimeLimit:
    """Says when a job's time is nearly over. For rank 0 only: clocks of nodes differ, and one has to decide.

    Parameters
    ----------
    end : float
        When the job ends, in seconds of `time.time()`; infinity if it has no limit.
    reserve_s : float
        Seconds that have to be left for what comes after the last generation.
    """

    def __init__(self, end: float, reserve_s: float):
        self._last_call = time.monotonic()
        # the clock may be set later
        self._end, self._reserve_s = self._last_call + end - time.time(), reserve_s
        self._intervals: deque[float] = deque(maxlen=_NUM_RECENT)

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()

    def nearly_over(self) -> bool:
        """Return whether less than the reserve is left beside the longest recent generation.

        Call it once per generation: the time between two calls is that of a generation with its evaluation and
        snapshot.
        """
        now = time.monotonic()
        self._intervals.append(now - self._last_call)
        self._last_call = now
        return self.left_s() < self._reserve_s + max(self._intervals)


def job_end(environ: Mapping[str, str] = os.environ) -> float:
    """Return when this Slurm job ends, in seconds of `time.time()`; infinity without a job or without a limit."""
    job = slurm_job(environ)
    if job is None:
        return float("inf")
    if environ.get("SLURM_JOB_END_TIME", "").isdigit():  # Slurm 23.02 and later
        return float(environ["SLURM_JOB_END_TIME"])
    command = ["squeue", "--noheader", "--jobs", job, "--format=%L"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        left = parse_duration(done.stdout.split()[0])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        log.warning("run.stop_before_limit: Slurm does not say how much time is left (%s): not watched", error)
        return float("inf")
    return time.time() + left


def job_ends(jobs: Collection[str]) -> dict[str, float]:
    """Return when running Slurm jobs end, in seconds of `time.time()`, as far as Slurm knows them on this machine.

    For who looks on from outside. Without Slurm, or if it does not answer within seconds, the result is empty.

    Parameters
    ----------
    jobs : collection of str
        Their numbers.
    """
    if not jobs or shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", f"--jobs={','.join(sorted(jobs))}", "--states=RUNNING", "--format=%A %L"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        lines = [line.split() for line in done.stdout.splitlines()]
        left = {job: parse_duration(text) for job, text in lines if text != "INVALID"}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    now = time.time()
    return {job: now + seconds for job, seconds in left.items() if seconds < float("inf")}


def parse_duration(text: str) -> float:
    """Return the seconds of a duration as Slurm writes and takes it: 30 (minutes), 4:00:00, 2-12:00, UNLIMITED.

    Raises
    ------
    ValueError
        If the text is not a duration.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "NOT_SET"):
        return float("inf")
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise ValueError(f"{text!r} is not a duration such as 4:00:00 or 2-12:00:00")
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return 86400.0 * int(days) + 3600 * hours + 60 * minutes + seconds
    if len(numbers) == 1:
        return 60.0 * numbers[0]
    hours, minutes, seconds = (0, *numbers) if len(numbers) == 2 else numbers
    return 3600.0 * hours + 60 * minutes + seconds
