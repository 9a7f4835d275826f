"""A run whose directory is taken away, or used by a new run of the same name, ends and spoils nothing."""

import os
import shutil
import subprocess
import sys
import time
from collections import UserDict
from pathlib import Path

import h5py
import pytest
import torch
from support import LEAST_CONFIG, ROOT, TINY_RUN

from esmpi.files import LostError, locked, replacing, write_whole
from esmpi.model.base_model import BaseModel
from esmpi.model.find import fetch_model
from esmpi.store.export import export
from esmpi.store.run_file import RunFile
from esmpi.store.snapshot_keeper import SnapshotKeeper, snapshot_path
from esmpi.store.snapshot_writer import write_snapshot


def test_nothing_is_written_into_a_directory_that_is_held_no_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run):
        write_whole(run / "run.h5", b"1")
        write_whole(run / "snapshots" / "g1.h5", b"1")
        write_whole(tmp_path / "elsewhere", b"1")
        run.rename(tmp_path / "moved")
        for name in ("run.h5", "snapshots/g2.h5", "eval/x.jsonl"):
            with pytest.raises(LostError, match="run is no longer the directory in which this run began"):
                write_whole(run / name, b"2")
        assert not run.exists(), "nor is it made again"
        run.mkdir()  # as a run of the same name would
        (run / ".lock").touch()
        with pytest.raises(LostError):
            write_whole(run / "run.h5", b"2")
        write_whole(tmp_path / "elsewhere", b"2")
    write_whole(run / "run.h5", b"3")


def test_a_directory_that_is_removed_during_a_write_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run), pytest.raises(LostError), replacing(run / "run.h5") as temporary:  # noqa: PT012 (goes on within)
        temporary.write_bytes(b"1")
        shutil.rmtree(run)
    with locked(run), pytest.raises(FileNotFoundError), replacing(run / "run.h5"):
        pass  # nothing was written


NEWER = (".lock", "run.h5", "model/esmpi.json", "snapshots/g000001.h5", "snapshots/g000002.h5")


def begin_anew(run: Path) -> None:
    """Rename a run's directory, and let another run of that name begin."""
    run.rename(run.with_name("moved"))
    for name in NEWER:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("newer")


def is_newer(run: Path) -> bool:
    found = {path.relative_to(run).as_posix(): path.read_text() for path in run.rglob("*") if path.is_file()}
    return found == dict.fromkeys(NEWER, "newer")


class Takes(UserDict[str, torch.Tensor]):
    """Theta of a run whose directory is taken away when theta is read."""

    run: Path

    def __getitem__(self, name: str) -> torch.Tensor:
        if not self.run.with_name("moved").exists():
            begin_anew(self.run)
        return super().__getitem__(name)


@pytest.mark.parametrize("meanwhile", [False, True])
def test_models_and_snapshots_are_not_written_into_a_newer_runs_directory(tmp_path: Path, meanwhile: bool) -> None:
    run, base = tmp_path / "run", BaseModel(fetch_model("esmpi:tiny_countdown", None))
    theta = Takes({name: torch.zeros(tensor.shape) for name, tensor in base.tensors.items()})
    theta.run = run
    origin = {"generation": 1, "theta_digest": 0, "run_uuid": "older", "config": LEAST_CONFIG}
    with locked(run):
        keeper = SnapshotKeeper(RunFile.create(run / "run.h5", LEAST_CONFIG, 0, "", list(theta), {}), keep=1)
        if not meanwhile:
            begin_anew(run)
        with pytest.raises(LostError):
            export(base, theta, {}, run / "model", "float32", origin)
        with pytest.raises(LostError):
            write_snapshot(snapshot_path(run / "run.h5", 1), theta, origin)
        keeper.save(0, theta.items(), last=True, best=True)  # a failure is only a warning
        with pytest.raises(LostError):
            keeper.tidy()
        keeper.close()
    assert is_newer(run)


def test_a_directory_that_is_taken_away_while_a_file_is_written(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def write() -> None:
        with replacing(run / "snapshots" / "g000001.h5") as temporary:
            temporary.write_bytes(b"older")
            begin_anew(run)

    with locked(run), pytest.raises(LostError):
        write()
    assert is_newer(run)


def test_a_run_that_could_not_begin_leaves_the_lock_of_a_newer_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run):
        run.rename(tmp_path / "moved")
        run.mkdir()
        (run / ".lock").write_text("newer")
    assert (run / ".lock").read_text() == "newer"


@pytest.mark.parametrize("anew", [False, True])
def test_a_run_whose_directory_was_renamed_stops_and_leaves_a_new_one_alone(tmp_path: Path, anew: bool) -> None:
    def start(generations: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", "data.num_eval=2"]
        settings = [f"es.generations={generations}", "es.population_size=2", "snapshot.every=2", "snapshot.keep=1"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen([*command, *settings], env=environment, stderr=subprocess.PIPE, text=True)

    directory, moved = tmp_path / "tiny", tmp_path / "moved"
    older = start(100_000)
    while not (directory / "run.h5").exists() and older.poll() is None:
        time.sleep(0.05)
    os.kill(older.pid, 19)  # SIGSTOP: it is slow to die
    directory.rename(moved)
    newer = start(3) if anew else None
    if newer is not None:
        assert newer.wait(120) == 0, newer.stderr
    os.kill(older.pid, 18)
    said = older.communicate(timeout=120)[1]
    assert older.returncode == 2, said
    assert f"esmpi: {directory} is no longer the directory in which this run began" in said
    assert "Traceback" not in said
    if newer is None:
        assert not directory.exists()
    else:
        with h5py.File(directory / "run.h5", "r") as file, h5py.File(moved / "run.h5", "r") as before:
            assert len(file["generations/theta_digest"]) == 3
            assert file.attrs["run_uuid"] != before.attrs["run_uuid"]
