"""A run whose directory is taken away, or used by a new run of the same name, ends and spoils nothing."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from support import ROOT, TINY_RUN

from esmpi.files import LostError, locked, replacing, write_whole


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
