"""Runs with low-rank noise: any layout, resumed, replayed, forked from a run with full-rank noise."""

from pathlib import Path

import h5py
import numpy as np
from support import TINY_RUN, Run, assert_same_run, read, train

from esmpi.__main__ import main
from esmpi.store.run_file import RunFile, run_file_path

KEYS = ("es.noise=low_rank", "es.rank=2", "eval.every=1")


def test_the_layout_changes_nothing_and_a_replay_is_exact(launch: Run, tmp_path: Path) -> None:
    train(launch, tmp_path / "unbroken", 1, *KEYS, "es.generations=3", "es.antithetic=true", "es.population_size=8")
    keys = (*KEYS, "es.antithetic=true", "es.population_size=8")
    train(launch, tmp_path / "resumed", 3, *keys, "es.generations=1")
    train(launch, tmp_path / "resumed", 2, *keys, "es.generations=3", "es.dispatch=dynamic")
    assert_same_run(tmp_path / "resumed" / "tiny", tmp_path / "unbroken" / "tiny")
    assert len(set(read(tmp_path / "resumed" / "tiny")["generations/theta_digest"].tolist())) > 1
    assert main(["replay", str(tmp_path / "resumed" / "tiny"), "--verify"]) == 0
    with h5py.File(tmp_path / "resumed" / "tiny" / "run.h5") as file:
        assert file.attrs["noise_version"] == 2


def test_a_fork_has_the_noise_of_its_parent_and_then_its_own(launch: Run, tmp_path: Path) -> None:
    full = train(launch, tmp_path, 1, "es.generations=2")["generations/theta_digest"]
    fork = (f"run.fork_from={tmp_path}/tiny@1", "run.name=low", *KEYS)
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", *fork, "es.generations=3"], 2)
    assert done.returncode == 0, done.stderr
    run = RunFile.open(run_file_path(tmp_path / "low"))
    assert [run.noise_rank(generation) for generation in range(3)] == [0, 2, 2]
    digests = read(tmp_path / "low")["generations/theta_digest"]
    assert digests[0] == full[0]
    assert digests[1] != full[1]
    assert main(["replay", str(tmp_path / "low"), "--verify"]) == 0
    back = (f"run.fork_from={tmp_path}/low@2", "run.name=back", "es.generations=3")
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", *back], 0)
    assert done.returncode == 0, done.stderr
    run = RunFile.open(run_file_path(tmp_path / "back"))
    assert [run.noise_rank(generation) for generation in range(3)] == [0, 2, 0]
    assert np.array_equal(read(tmp_path / "back")["generations/theta_digest"][:2], digests[:2])
    assert run.attributes["noise_version"] == 2
    assert main(["replay", str(tmp_path / "back"), "--verify"]) == 0
