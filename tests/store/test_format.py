"""docs/run-files.md says of a real run's files what is in them, all of it, and nothing else."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import ROOT, TINY_RUN, Run

from esmpi.es.member_columns import STORED

Table = dict[str, list[str]]

SMALL = (
    "es.population_size=2",
    "es.generations=1",
    "data.num_eval=3",
    "data.batch_size=2",
    "snapshot.every=1",
    "run.profile=true",
)
ALL_FIGURES = ("eval.divergence=true", "eval.num_samples=2", "eval.temperature=0.7")


@pytest.fixture(scope="module")
def run(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    arguments = ["-m", "esmpi.run", TINY_RUN, f"run.output_dir={output}", "run.export_dtype=none"]
    done = launch([*arguments, *SMALL, *ALL_FIGURES], 0)
    assert done.returncode == 0, done.stderr
    return output / "tiny"


def table(heading: str) -> Table:
    """Return the first table below a heading: the other cells by each name in the first."""
    text = (ROOT / "docs" / "run-files.md").read_text()
    found = re.search(rf"^#+ {re.escape(heading)}.*?\n\n(?:[^#|\n].*\n|\n)*((?:\|.*\n)+)", text, re.MULTILINE)
    assert found is not None, heading
    rows: Table = {}
    for line in found[1].splitlines()[2:]:
        first, *others = (cell.strip() for cell in line.strip("|").split("|"))
        rows |= dict.fromkeys(re.findall(r"`([^`]+)`", first), others)
    return rows


def test_attributes(run: Path) -> None:
    with h5py.File(run / "run.h5") as file:
        assert set(file.attrs) == set(table("Attributes"))
        assert set(file) == {"generations", "members", "evaluations", "figures", "profile"}
    with h5py.File(run / "snapshots" / "g000001.h5") as file:
        assert set(file.attrs) == set(table("snapshots/*.h5"))
        assert set(file) == {"theta"}


def test_the_members_columns_are_those_that_the_program_describes() -> None:
    described = {column.name: [np.dtype(column.dtype).name, column.unit, column.doc] for column in STORED}
    assert table("/members/COLUMN") == described


@pytest.mark.parametrize("group", ["generations", "members", "profile"])
def test_columns(run: Path, group: str) -> None:
    described = table(f"/{group}/COLUMN")
    with h5py.File(run / "run.h5") as file:
        assert set(file[group]) == set(described)
        for name, column in file[group].items():
            dtype, unit = described[name][:2]
            assert column.dtype == np.dtype(dtype), name
            assert column.attrs.get("unit", unit) == unit, name


def test_phases(run: Path) -> None:
    """All that a rank does is described, lies within the generation, and fills nearly all of it."""
    text = (ROOT / "docs" / "run-files.md").read_text().split("| phase |")[1].split("###")[0]
    with h5py.File(run / "run.h5") as file:
        profile = {name: column[()] for name, column in file["profile"].items()}
        total, members = file["generations/seconds_total"][0], file["members/seconds"][0]
        told = {name: file[f"generations/seconds_{name}"][0] for name in ("perturb", "generate")}
    assert set(profile["phase"].astype(str)) == set(re.findall(r"`(\w+)`", text)) - {"run"}
    start, end = profile["seconds_start"], profile["seconds_end"]
    assert (start >= 0).all()
    assert (start <= end).all()
    spent = {name: (end - start)[profile["phase"] == name.encode()].sum() for name in ("perturb", "generate")}
    assert sum(spent.values()) == pytest.approx(members.sum(), rel=0.02)
    assert told == pytest.approx(spent)  # one rank
    loop = ~np.isin(profile["phase"], [b"score", b"commit", b"write", b"evaluate", b"snapshot"])
    assert 0.9 * total < (end - start)[loop].sum() < total


def test_figures(run: Path) -> None:
    """Those of countdown's score, as the page describes them."""
    described = table("/figures/COLUMN")
    assert set(described) == {"generation", "NAME_mean", "NAME_std"}
    with h5py.File(run / "run.h5") as file:
        assert set(file["figures"]) == {"generation", "format_mean", "format_std"}
        assert {name: column.dtype.name for name, column in file["figures"].items()} == {
            name.replace("NAME", "format"): dtype for name, (dtype, *_) in described.items()
        }


def test_evaluations(run: Path) -> None:
    described = table("/evaluations/SUITE/COLUMN")
    assert {"pass_at_K", "..._mean"} <= set(described)
    fixed = set(described) - {"pass_at_K", "..._mean"}
    with h5py.File(run / "run.h5") as file:
        columns = set(file["evaluations/held_out"])
    assert fixed <= columns
    assert all(re.fullmatch(r"pass_at_\d+|\w+_mean", name) for name in columns - fixed)
    assert "pass_at_2" in columns
