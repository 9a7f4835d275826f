"""How a run learns that its time is over, and how it is asked to stop."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest

from esmpi.mpi.launcher import Launcher, launcher, slurm_job
from esmpi.stop.signals import StopFlag
from esmpi.stop.time_limit import TimeLimit, job_end, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("4:30", 270),
        ("4:00:00", 14400),
        ("1-0", 86400),
        ("2-12", 216000),
        ("2-12:30", 217800),
        ("1-02:03:04", 93784),
        ("UNLIMITED", math.inf),
    ],
)
def test_durations_of_slurm(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "INVALID", "4h", "-1", "1:2:3:4", "1-"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_the_longest_recent_generation_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("esmpi.stop.time_limit.time.time", lambda: 50_000)
    monkeypatch.setattr("esmpi.stop.time_limit.time.monotonic", lambda: now)
    limit = TimeLimit(end=51_000, reserve_s=100)
    monkeypatch.setattr("esmpi.stop.time_limit.time.time", lambda: 40_000)  # somebody sets the clock
    now = 1300  # a generation of 300 s: 700 left, 400 wanted
    assert not limit.nearly_over()
    now = 1590  # 410 left, 400 wanted
    assert not limit.nearly_over()
    now = 1610  # a short one, but there was one of 300 s: 390 left
    assert limit.nearly_over()


def test_without_a_job_there_is_no_end() -> None:
    assert job_end({}) == math.inf


def test_new_slurms_say_the_end_in_the_environment() -> None:
    assert job_end({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9


def test_a_job_that_squeue_does_not_know_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert job_end({"SLURM_JOB_ID": "7"}) == math.inf


def test_a_task_of_an_array_is_not_the_array() -> None:
    assert slurm_job({}) is None
    assert slurm_job({"SLURM_JOB_ID": "7"}) == "7"
    assert slurm_job({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}) == "7_0"


def test_srun_is_known_though_it_speaks_pmi() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}
    assert launcher(step | {"PMI_SIZE": "4", "PMI_RANK": "1"}) == Launcher("srun", 4, 1)
    # mpiexec inside of an allocation starts one process of its own on each node by srun
    assert launcher(step | {"PMI_SIZE": "32", "PMI_RANK": "9"}) == Launcher("mpiexec", 32, 9)


PROGRAM = """
import signal, sys, time
from esmpi.stop.signals import StopFlag
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
stop = StopFlag()
stop.install()
print("ready", flush=True)
while not stop:
    time.sleep(0.01)
print(stop.signal.name, flush=True)
if sys.argv[1] == "ignore":
    stop.ignore()
time.sleep(float(sys.argv[2]))
print("end", flush=True)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def say(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_one_request_that_comes_twice_is_one(number: signal.Signals) -> None:
    with start("stay", "0.5") as process:
        os.kill(process.pid, number)
        assert say(process) == f"{number.name}\n"
        os.kill(process.pid, signal.SIGTERM)
        assert say(process) == "end\n"
    assert process.returncode == 0


def test_a_process_that_was_started_by_nohup_outlives_the_terminal() -> None:
    with start("nohup", "0") as process:
        os.kill(process.pid, signal.SIGHUP)
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGTERM)
        assert say(process) == "SIGTERM\n"
        assert say(process) == "end\n"
    assert process.returncode == 0


def test_a_second_request_ends_the_process_at_once() -> None:
    with start("stay", "60") as process:
        os.kill(process.pid, signal.SIGUSR1)
        assert say(process) == "SIGUSR1\n"
        time.sleep(2.2)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM


def test_a_late_signal_does_not_change_the_exit_code() -> None:
    with start("ignore", "2.5") as process:
        os.kill(process.pid, signal.SIGUSR1)
        assert say(process) == "SIGUSR1\n"
        time.sleep(2.2)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            os.kill(process.pid, number)
        assert say(process) == "end\n"
    assert process.returncode == 0


def test_the_flag_is_false_at_first() -> None:
    assert not StopFlag()
