"""`esmpi sweep --slurm` on a real Slurm: an array of the runs that are neither finished nor in the queue."""

import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from support import ROOT, TINY_RUN, read_digests, require

from slurm.cluster import Cluster
from slurm.conftest import PATIENCE_S

WORDS = ("es.sigma=2e-3,3e-3", "es.generations=2", "data.num_eval=2")


def sweep(folder: Path, *words: str) -> str:
    """Run `esmpi sweep` and return what it prints."""
    command = [sys.executable, "-m", "esmpi", "sweep", str(TINY_RUN), *WORDS, f"run.output_dir={folder}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_are_an_array_of_jobs(cluster: Cluster, digests: list[int], tmp_path: Path) -> None:
    require("slurm", find_spec("submitit") is not None, "pip install 'esmpi[submitit]'")
    (tmp_path / "bad.jsonl").write_text('{"question": "?"}\n' * 8)
    broken = ("data.num_train=8", f"data.train={tmp_path}/bad.jsonl", "run.name=broken")
    said = sweep(tmp_path, "--slurm", "--time", "30:00")
    assert len(re.findall(r"^  tiny_sigma=0\.00[23]_seed=0: job \d+_[01]$", said, re.MULTILINE)) == 2
    again = sweep(tmp_path, "--slurm", "--time", "30:00")
    assert len(re.findall(r": (?:job \d+_[01] in the queue|running), \d of 2 generations$", again, re.MULTILINE)) == 2
    sweep(tmp_path, "--slurm", "--time", "30:00", *broken)
    deadline = time.monotonic() + PATIENCE_S
    while cluster.call("squeue", "--noheader"):
        assert time.monotonic() < deadline, said
        time.sleep(0.5)
    assert read_digests(tmp_path / "tiny_sweep" / "tiny_sigma=0.003_seed=0") == digests[:2]
    finished = sweep(tmp_path, "--slurm", "--time", "30:00")
    assert finished.count(": finished\n") == 2
    assert len(list((tmp_path / "tiny_sweep" / "submitit").glob("*_config.yaml"))) == 2, "nothing was submitted twice"
    assert "esmpi: data.train: " in sweep(tmp_path, "--show", "--no-plot", *broken)


def test_the_dry_run_shows_the_script(cluster: Cluster, tmp_path: Path) -> None:
    require("slurm", find_spec("submitit") is not None, "pip install 'esmpi[submitit]'")
    said = sweep(tmp_path, "--slurm", "--dry-run", "--gpus-per-node", "8", "--sbatch", "partition=gpu")
    for line in ("array=0-1%2", "gpus-per-node=8", "ntasks-per-node=8", "partition=gpu", "job-name=tiny"):
        assert f"#SBATCH --{line}\n" in said
    assert list(tmp_path.iterdir()) == []
