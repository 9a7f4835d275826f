"""Ranks of a node that have one theta together."""

from pathlib import Path

from support import TINY_RUN, Run, assert_same_run, read, train

from esmpi.__main__ import main

AT_PHASE = Path(__file__).parents[1] / "faults" / "at_phase.py"
KEYS = ("engine.share_theta=true", "es.antithetic=true", "es.population_size=8", "es.anchor=0.05", "eval.every=1")

MEMORY = """
import re
import sys
import numpy as np
from pathlib import Path
from esmpi.mpi.comm import Comm
from esmpi.weights.host import Weights
from esmpi.weights.views import View
import torch

comm = Comm()
shape = (4096, 4096)
place = comm.place()
if sys.argv[1] == "shared":
    place = comm.share_memory(place, 8 * 4096 * 4096)


def read(view):
    return torch.arange(4096 * 4096, dtype=torch.float32).view(shape)


def pss():
    return 1024 * int(re.search(r"^Pss:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text(), re.M)[1])


Weights([View("small", (1, 1), (0, 1), (0, 1), None)], lambda _: torch.zeros(1, 1), 1)  # compiles the kernels
with comm.together():
    before = pss()
    weights = Weights([View("weight", shape, (0, 4096), (0, 4096), None)], read, 1, memory=place.memory)
digests = []
comm.barrier()
held = pss() - before
for generation in range(2):
    weights.update(np.arange(2, dtype=np.uint64) + generation, np.array([0.5, -0.25], np.float32))
    digests.append(weights.digest())
comm.barrier()
everyone = comm.allgather_object([held, digests])
print(*everyone, sep="\\n") if comm.is_root else None
if sys.argv[2] == "disagree":
    weights.update(np.arange(2, dtype=np.uint64), np.array([0.5, comm.rank + 1], np.float32))
"""


def test_ranks_have_one_theta_and_each_updates_a_part(launch: Run, tmp_path: Path) -> None:
    script = tmp_path / "memory.py"
    script.write_text(MEMORY)
    found = {}
    for kind in ("own", "shared"):
        done = launch([script, kind, "agree"], 2, timeout_s=100)
        assert done.returncode == 0, done.stderr
        found[kind] = [eval(line) for line in done.stdout.splitlines()]
    assert len({str(digests) for kind in found.values() for _, digests in kind}) == 1
    assert len(set(found["own"][0][1])) == 2
    size = 4 * 4096**2
    held = {kind: sum(held for held, _ in ranks) / size for kind, ranks in found.items()}
    assert 1.9 < held["own"] < 2.4
    assert 0.9 < held["shared"] < 1.4
    done = launch([script, "shared", "disagree"], 2, timeout_s=100)
    assert done.returncode != 0
    assert "the ranks of this node are about to write different updates into one theta" in done.stderr


def test_a_run_is_the_same_killed_in_an_update_and_resumed(launch: Run, tmp_path: Path) -> None:
    train(launch, tmp_path / "own", 0, *KEYS[1:], "es.generations=2")
    killed = ["another rank", "kill", "update", tmp_path / "stamp", 0, TINY_RUN, *KEYS, "es.generations=2"]
    done = launch([AT_PHASE, *killed, f"run.output_dir={tmp_path / 'shared'}"], 3)
    assert done.returncode != 0
    assert len(read(tmp_path / "shared" / "tiny")["generations/theta_digest"]) == 1
    train(launch, tmp_path / "shared", 2, *KEYS, "es.generations=2")
    assert_same_run(tmp_path / "shared" / "tiny", tmp_path / "own" / "tiny")
    assert main(["replay", str(tmp_path / "shared" / "tiny"), "--verify"]) == 0
