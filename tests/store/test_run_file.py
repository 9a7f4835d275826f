"""The run file: what goes in comes out, by esmpi and by plain h5py, and damage is told, not met."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from run_files import CONFIG, NUM_MEMBERS, editing, evaluation_of, make, members_of, row_of, same_run

from esmpi.errors import UserError
from esmpi.store.run_file import RunFile, run_file_path, samples_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "run.h5"


@pytest.mark.parametrize("num_generations", [0, 1, 3])
def test_what_was_written_is_read(path: Path, num_generations: int) -> None:
    run = make(path, num_generations)
    read = RunFile.open(path)
    assert same_run(read, run)
    assert read.num_generations == num_generations
    assert read.digest_after(0) == 0xFEDCBA9876543210
    assert read.theta_digest == (2**64 - num_generations if num_generations else 0xFEDCBA9876543210)
    assert read.attributes["config"] == CONFIG
    assert read.attributes["aliases"] == {"tied.weight": "a.weight"}
    assert [entry.name for entry in path.parent.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("digest", [0, 5, 2**31 - 1, 2**31, 2**63, 2**64 - 1])
def test_any_digest_of_the_model_survives(path: Path, digest: int) -> None:
    make(path, 0, digest)
    assert RunFile.open(path).digest_after(0) == digest


def test_a_file_that_was_read_goes_on(path: Path) -> None:
    make(path, 2)
    run = RunFile.open(path)
    run.commit(row_of(2), members_of(2))
    run.add_evaluation("other", evaluation_of(3))
    again = RunFile.open(path)
    assert same_run(again, run)
    assert again.members[2]["seed"].tolist() == members_of(2)["seed"].tolist()
    assert set(again.evaluations) == {"held_out", "other"}


def test_plain_h5py_reads_the_documented_schema(path: Path) -> None:
    make(path)
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 4
        assert file.attrs["noise_version"] == 1
        assert file.attrs["creator"].startswith("esmpi ")
        assert len(file.attrs["run_uuid"]) == 36
        assert json.loads(file.attrs["config"]) == CONFIG
        assert file.attrs["model_digest"] == 0xFEDCBA9876543210
        assert json.loads(file.attrs["provenance"])[0]["host"] == "here"
        generations = {"generation", "fitness_mean", "fitness_std", "fitness_min", "fitness_max", "theta_digest"}
        generations |= {f"seconds_{p}" for p in ("generate", "score", "perturb", "update", "exchange", "total")}
        generations |= {"tokens", "num_failed", "unix_time"}
        assert generations <= set(file["generations"])
        assert all(file["generations"][name].shape == (3,) for name in generations)
        assert file["generations/theta_digest"].dtype == np.uint64
        assert file["generations/seconds_total"].attrs["unit"] == "s"
        types = {"seed": "u8", "sign": "i1", "status": "u1", "fitness": "f8", "coefficient": "f4"}
        for name, kind in types.items():
            assert file[f"members/{name}"].dtype == np.dtype(kind)
        assert {"rank", "seconds", "tokens"} <= set(file["members"])
        assert all(column.shape == (3, NUM_MEMBERS) for column in file["members"].values())
        assert (file["members/seed"][1] == members_of(1)["seed"]).all()
        assert file["evaluations/held_out/generation"][()].tolist() == [0, 3]
        assert file["evaluations/held_out/accuracy"][()].tolist() == [0.25, 0.25]


@pytest.mark.parametrize(("name", "reads"), [("format_version", "1 and 2 and 3 and 4"), ("noise_version", "1 and 2")])
def test_other_versions_are_refused(path: Path, name: str, reads: str) -> None:
    make(path)
    with editing(path) as file:
        file.attrs[name] = 9
    with pytest.raises(UserError, match=rf"has {name} 9; this esmpi reads {reads}$"):
        RunFile.open(path)
    with editing(path) as file:
        del file.attrs[name]
    with pytest.raises(UserError, match=rf"is not a run file of esmpi: it has no attribute {name}"):
        RunFile.open(path)


def test_missing_foreign_and_cut_files_are_refused(path: Path) -> None:
    with pytest.raises(UserError, match="no run file"):
        RunFile.open(path)
    make(path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:100], whole[: len(whole) // 2], whole[:-1], b"\0" * len(whole)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged|is not a run file"):
            RunFile.open(path)


@pytest.mark.parametrize(
    "place", ["generations", "members", "evaluations", "members/coefficient", "generations/tokens"]
)
def test_missing_parts_are_refused(path: Path, place: str) -> None:
    make(path)
    with editing(path) as file:
        del file[place]
    with pytest.raises(UserError, match="cannot be read as a run file"):
        RunFile.open(path)


@pytest.mark.parametrize("name", ["config", "provenance", "tensors", "aliases"])
def test_damaged_json_is_refused(path: Path, name: str) -> None:
    make(path)
    with editing(path) as file:
        file.attrs[name] = file.attrs[name][:-1] + "?"
    with pytest.raises(UserError, match="cannot be read as a run file"):
        RunFile.open(path)


def test_columns_of_unequal_length_are_refused(path: Path) -> None:
    make(path)
    with editing(path) as file:
        short = file["members/coefficient"][:2]
        del file["members/coefficient"]
        file["members/coefficient"] = short
    with pytest.raises(UserError, match="cannot be read as a run file"):
        RunFile.open(path)


def test_every_flipped_bit_is_refused(path: Path) -> None:
    make(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is damaged|is not a run file"):
            RunFile.open(path)


def test_paths_beside_the_run_file(tmp_path: Path) -> None:
    assert run_file_path(tmp_path / "a.h5") == tmp_path / "a.h5" / "run.h5"
    (tmp_path / "run.h5").touch()
    assert run_file_path(tmp_path) == run_file_path(tmp_path / "run.h5") == tmp_path / "run.h5"
    assert samples_path(tmp_path / "run.h5", "held_out", 30) == tmp_path / "eval" / "g000030.held_out.jsonl"


def test_a_run_directory_can_be_moved(path: Path, tmp_path: Path) -> None:
    run = make(path)
    shutil.move(path.parent, tmp_path / "elsewhere")
    assert same_run(RunFile.open(tmp_path / "elsewhere" / "run.h5"), run)


def test_the_best_evaluation_is_the_most_accurate_then_best_rewarded_then_first(path: Path) -> None:
    run = make(path)
    for generation, accuracy, reward in ((0, 0.5, 0.9), (1, 0.6, 0.1), (2, 0.6, 0.2), (3, 0.6, 0.2)):
        run.add_evaluation("held_out", {"generation": generation, "accuracy": accuracy, "reward_mean": reward})
    assert run.best() == {"generation": 2, "accuracy": 0.6, "reward_mean": 0.2}
    assert run.choose_generation(None, best=True) == 2
    assert run.best("other") is None
