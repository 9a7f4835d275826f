"""Runs with low-rank noise: any layout, resumed, replayed, forked from a run with full-rank noise."""

import json
from pathlib import Path

import h5py
import numpy as np
from support import TINY_RUN, Run, assert_same_run, read, train

from esmpi.__main__ import main
from esmpi.store.run_file import RunFile, run_file_path

FAULTY = Path(__file__).parent / "faulty.py"
KEYS = ("es.noise=low_rank", "es.rank=2", "eval.every=1")


def test_the_layout_changes_nothing_and_a_replay_is_exact(launch: Run, tmp_path: Path) -> None:
    keys = (*KEYS, "es.antithetic=true", "es.population_size=8", "es.generations=3")
    train(launch, tmp_path / "unbroken", 1, *keys)
    # killed in the second generation, when the first prompts of a wave of members are completed
    mine = (f"run.output_dir={tmp_path}/resumed", *keys, "engine.wave_size=3", "data.mini_batch_size=3")
    done = launch([FAULTY, "kill", "1", tmp_path / "stamp", TINY_RUN, *mine], 2)
    assert done.returncode != 0
    assert (tmp_path / "stamp").exists()
    assert len(read(tmp_path / "resumed" / "tiny")["generations/theta_digest"]) == 1
    train(launch, tmp_path / "resumed", 3, *keys, "es.generations=2", "engine.wave_size=1")
    train(launch, tmp_path / "resumed", 2, *keys, "es.dispatch=dynamic", "engine.wave_size=3")
    assert_same_run(tmp_path / "resumed" / "tiny", tmp_path / "unbroken" / "tiny")
    assert len(set(read(tmp_path / "resumed" / "tiny")["generations/theta_digest"].tolist())) > 1
    assert main(["replay", str(tmp_path / "resumed" / "tiny"), "--verify"]) == 0
    with h5py.File(tmp_path / "resumed" / "tiny" / "run.h5") as file:
        assert file.attrs["noise_version"] == 2
        starts = json.loads(file.attrs["provenance"])
    assert [start["noise"] for start in starts] == [
        "rank 2, on 29 of 50 tensors with 820,480 weights, 99.7% of all"
    ] * 3


def test_what_a_generation_records_of_members_that_share_a_wave(launch: Run, tmp_path: Path) -> None:
    keys = ("es.noise=low_rank", "es.population_size=7", "data.mini_batch_size=3", "data.batch_size=7")
    found = {
        size: train(launch, tmp_path / str(size), 1, *keys, "run.profile=true", f"engine.wave_size={size}")
        for size in (1, 4)
    }
    for column in ("members/seed", "members/fitness", "members/tokens", "members/coefficient"):
        assert np.array_equal(found[1][column], found[4][column])
    assert (found[1]["members/fitness"] != found[1]["members/fitness"][:, :1]).any()
    for size, sizes in ((1, [1] * 7), (4, [4, 3])):
        seconds, total = found[size]["members/seconds"], found[size]["generations/seconds_generate"]
        assert (seconds > 0).all()
        assert np.allclose(seconds.sum(1), total + found[size]["generations/seconds_perturb"], rtol=1e-3)
        # each wave's time is shared out evenly
        starts = np.cumsum([0, *sizes[:-1]])
        assert all(
            len(set(row[start : start + count])) == 1
            for row in seconds
            for start, count in zip(starts, sizes, strict=True)
        )


WAVES = """
import time
from esmpi.mpi.comm import Comm
from esmpi.es.dispatch import Dynamic

comm = Comm()
with Dynamic(comm) as dispatch:
    for wave_size in (8, 1 + 3 * comm.rank):
        with dispatch.waves(30, wave_size) as dealt:
            mine = []
            for wave in dealt:
                assert len(wave) <= wave_size
                mine.append(wave)
                time.sleep(0.01 * len(wave))
        everyone = comm.allgather_object(mine)
        print(*(len(wave) for rank in everyone for wave in rank)) if comm.is_root else None
        assert sorted(member for rank in everyone for wave in rank for member in wave) == list(range(30))
"""


def test_dynamic_waves_become_smaller_towards_the_end(launch: Run, tmp_path: Path) -> None:
    script = tmp_path / "waves.py"
    script.write_text(WAVES)
    done = launch([script], 3, timeout_s=60)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        sizes = list(map(int, line.split()))
        assert max(sizes) > 1
        assert min(sizes) == 1
    assert len(done.stdout.splitlines()) == 2


def test_a_fork_has_the_noise_of_its_parent_and_then_its_own(launch: Run, tmp_path: Path) -> None:
    full = train(launch, tmp_path, 1, "es.generations=2")["generations/theta_digest"]
    fork = (f"run.fork_from={tmp_path}/tiny@1", "run.name=low", *KEYS)
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", *fork, "es.generations=3"], 2)
    assert done.returncode == 0, done.stderr
    run = RunFile.open(run_file_path(tmp_path / "low"))
    assert [run.noise(generation).rank for generation in range(3)] == [0, 2, 2]
    digests = read(tmp_path / "low")["generations/theta_digest"]
    assert digests[0] == full[0]
    assert digests[1] != full[1]
    assert main(["replay", str(tmp_path / "low"), "--verify"]) == 0
    back = (f"run.fork_from={tmp_path}/low@2", "run.name=back", "es.generations=3")
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", *back], 0)
    assert done.returncode == 0, done.stderr
    run = RunFile.open(run_file_path(tmp_path / "back"))
    assert [run.noise(generation).rank for generation in range(3)] == [0, 2, 0]
    assert np.array_equal(read(tmp_path / "back")["generations/theta_digest"][:2], digests[:2])
    assert run.attributes["noise_version"] == 2
    assert main(["replay", str(tmp_path / "back"), "--verify"]) == 0
