"""`esmpi probe`: which sigmas tell members apart, and which break the model."""

from pathlib import Path

import numpy as np
import pytest
from support import TINY_RUN, Run

from esmpi.probe import Rung, table


def rung(sigma: float, *fitness: float, theta: float = 0.2) -> Rung:
    return Rung(sigma, theta, np.array(fitness))


@pytest.mark.parametrize(
    ("fitness", "verdict", "num_better"),
    [
        ([0.2, 0.2, 0.2], "no signal", 0),
        ([0.0, 0.0, 0.0], "no signal", 0),
        ([np.nan, np.nan, np.nan], "no signal", 0),
        ([0.1, 0.2, 0.3], "good", 1),
        ([0.1, np.nan, 0.3], "good", 1),
        ([0.01, 0.02, 0.03], "breaks the model", 0),
        ([0.4, 0.3, 0.5], "good", 3),
    ],
)
def test_what_a_sigma_does(fitness: list[float], verdict: str, num_better: int) -> None:
    made = rung(1e-3, *fitness)
    assert (made.verdict, made.num_better) == (verdict, num_better)


def test_the_table_names_the_range() -> None:
    rungs = [rung(1e-4, 0.2, 0.2), rung(1e-3, 0.1, 0.3), rung(1e-2, 0.0, 0.5), rung(1e-1, 0.0, 0.01)]
    lines = table(rungs).splitlines()
    assert lines[0] == "theta itself: fitness 0.200"
    assert [line.split(": ")[1] for line in lines[3:7]] == ["no signal", "good", "good", "breaks the model"]
    assert "es.sigma from 0.001 to 0.01 tells members apart" in lines[-1]
    assert "No sigma tells members apart" in table(rungs[:1])


def test_a_probe_of_the_tiny_model(launch: Run, tmp_path: Path) -> None:
    picture = tmp_path / "probe.png"
    sigmas = ["--sigmas", "1,1e-6,5e-3", "--members", "6", "--plot", picture]
    keys = ["es.shaping=top_k", "es.top_k=5", "data.batch_size=32", "data.num_train=64"]
    found = [launch(["-m", "esmpi", "probe", TINY_RUN, *sigmas, *keys], ranks) for ranks in (0, 2)]
    for done in found:
        assert done.returncode == 0, done.stderr
    lines = found[0].stdout.splitlines()
    assert [line.split(": ")[1] for line in lines[3:6]] == ["no signal", "good", "breaks the model"]
    assert [float(line.split()[0]) for line in lines[3:6]] == [1e-6, 5e-3, 1]
    assert found[1].stdout == found[0].stdout, "the ranks share the members"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*/")), "a probe leaves no run directory"


@pytest.mark.parametrize("sigmas", ["0", "1e-3,x", "1e4"])
def test_bad_sigmas_are_refused(launch: Run, sigmas: str) -> None:
    done = launch(["-m", "esmpi", "probe", TINY_RUN, "--sigmas", sigmas], 0)
    assert done.returncode == 2
    assert "argument --sigmas: " in done.stderr
