"""A job that is submitted from inside another one does not get the other's variables."""

import os
import signal

import pytest

from esmpi.launch import jobs


def test_variables_of_the_job_around_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    around = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_MEM_PER_CPU": "100", "SRUN_CPUS_PER_TASK": "2"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "me", "HOME_OF_SLURM_": "x"}
    for name, value in (around | kept).items():
        monkeypatch.setenv(name, value)
    with jobs._outside_of_jobs():
        assert not around.keys() & os.environ.keys()
        assert {name: os.environ[name] for name in kept} == kept
    assert {name: os.environ[name] for name in around} == around
    monkeypatch.delenv("SLURM_JOB_ID")
    with jobs._outside_of_jobs():  # what the user set on a login node
        assert os.environ["SLURM_NTASKS"] == "8"


def test_a_second_signal_does_not_requeue_a_job_twice() -> None:
    pytest.importorskip("submitit")
    calls = []
    ranks = jobs.Ranks.__new__(jobs.Ranks)
    ranks._ranks = None
    before = signal.signal(signal.SIGUSR2, lambda *_: calls.append(ranks.checkpoint()))
    try:
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert len(calls) == 1
