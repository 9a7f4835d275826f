"""Run files of strangers: one clear error, or shown, under every command; bounded, and nothing outside is read."""

import dataclasses
import mmap
import os
import resource
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from made_runs import make_run
from strangers import REFUSED, SHOWN, attribute, change, loop, not_files

from esmpi import hdf5
from esmpi.__main__ import main
from esmpi.errors import UserError
from esmpi.files import locked
from esmpi.model.snapshot import Snapshot, SnapshotError
from esmpi.store import members as member_table
from esmpi.store import snapshot_writer
from esmpi.store.run_file import RunFile, samples_path
from esmpi.store.seal import checksum
from esmpi.store.snapshot_keeper import check_snapshot

SECONDS = 60


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """End a test that hangs, and one that wants more than a few GB of memory."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30, old[1]))
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    make_run(folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A run directory of its own."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def outcome(*words: str | Path) -> int:
    """Run a command in this process; whatever it raises is a failure of the test."""
    return main([str(word) for word in words])


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_esmpi_writes_is_refused(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run / "run.h5", REFUSED[name])
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        RunFile.open(run / "run.h5")
    assert time.monotonic() - began < 10
    assert str(run / "run.h5") in str(error.value)
    assert "root:" not in str(error.value)
    assert outcome("inspect", run) == 2
    assert capsys.readouterr().err == f"esmpi: {error.value}\n"


def test_hdf5_that_comes_to_no_end_is_ended(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "_LEAST_CPU_S", 1)
    loop(run / "run.h5")
    with pytest.raises(UserError, match=r"run\.h5 cannot be read as a run file: HDF5 loops or crashes on it"):
        RunFile.open(run / "run.h5")
    snapshot = tmp_path / "g000001.h5"
    origin = {"generation": 1, "theta_digest": 1, "run_uuid": "u", "config": {}}
    snapshot_writer.write_snapshot(snapshot, {"a": torch.zeros(2)}, origin)
    Snapshot(snapshot)
    loop(snapshot)
    with pytest.raises(SnapshotError, match=r"g000001\.h5 cannot be read: HDF5 loops or crashes on it"):
        Snapshot(snapshot)


def test_a_trial_has_bounded_memory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "_tried", deque(maxlen=100))
    monkeypatch.setattr(hdf5, "_LEAST_MEMORY_BYTES", 2**20)
    change(run / "run.h5", attribute("creator", "somebody"))
    monkeypatch.setattr(hdf5, "_read_all", lambda *_: _map_memory(2**28))
    with pytest.raises(UserError, match="takes memory without end"):
        RunFile.open(run / "run.h5")


def _map_memory(num_bytes: int) -> None:
    """Take memory from the kernel: malloc may give out again what a long-lived process freed, which counts already."""
    try:
        mmap.mmap(-1, num_bytes)
    except OSError as error:
        raise MemoryError from error


def test_files_of_the_run_that_is_held_are_not_tried(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "_tried", deque(maxlen=100))
    monkeypatch.setattr(hdf5, "_trial", lambda *_: 1)
    with locked(run):
        RunFile.open(run / "run.h5")
    change(run / "run.h5", attribute("creator", "somebody"))
    with pytest.raises(UserError, match="HDF5 loops"):
        RunFile.open(run / "run.h5")


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_odd_is_shown_or_refused(name: str, run: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run / "run.h5", SHOWN[name])
    assert outcome("inspect", run) in (0, 1, 2)  # 1, because the suite `kept` has no completions
    assert outcome("inspect", "--json", run) in (0, 1, 2)
    assert outcome("report", run) in (0, 2)
    assert outcome("report", "--no-plot", run, made) in (0, 2)
    assert outcome("watch", "--once", run) in (0, 2)
    assert outcome("export", "--log-only", run, "--out", run / "log.h5") in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "report", "replay", "export", "watch", "eval"])
def test_every_command_says_it(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run / "run.h5", REFUSED["external storage"])
    more = {"export": ["--out", run / "model"], "watch": ["--once"]}.get(command, [])
    assert outcome(command, run, *more) == 2
    said = "".join(capsys.readouterr())
    assert "takes its values from other files" in " ".join(said.split())
    assert "root:" not in said


@pytest.mark.parametrize("kind", ["a pipe", "an endless device", "a folder", "a link to itself", "a huge hole"])
@pytest.mark.parametrize("command", ["inspect", "report", "watch", "export"])
def test_what_is_no_file_is_not_read(kind: str, command: str, run: Path, tmp_path: Path) -> None:
    (run / "run.h5").unlink()
    not_files(tmp_path)[kind](run / "run.h5")
    more = {"export": ["--log-only", "--out", run / "log.h5"], "watch": ["--once"]}.get(command, [])
    assert outcome(command, run, *more) == 2


@pytest.mark.parametrize("kind", ["a pipe", "an endless device", "a huge hole"])
def test_segments_are_files_of_the_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _with_segments(tmp_path / "run", monkeypatch)
    path = file.path.parent / file.segments[0].file
    path.unlink()
    not_files(tmp_path)[kind](path)
    with pytest.raises(UserError, match=r"is not a regular file|leads out of|not a run file"):
        RunFile.open(file.path)


def test_a_segment_elsewhere_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _with_segments(tmp_path / "run", monkeypatch)
    path = file.path.parent / file.segments[0].file
    path.rename(tmp_path / "elsewhere.h5")
    path.symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(UserError, match="leads out of"):
        RunFile.open(file.path)


def test_a_segment_may_not_refer_to_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _with_segments(tmp_path / "run", monkeypatch)
    path = file.path.parent / file.segments[0].file

    def external(segment: h5py.File) -> None:
        shape = segment["fitness"].shape
        del segment["fitness"]
        segment.create_dataset("fitness", shape, "f8", external=[("/etc/passwd", 0, 8 * shape[0] * shape[1])])

    change(path, external)
    _list_again(file, path)
    with pytest.raises(UserError, match="takes its values from other files"):
        RunFile.open(file.path)


def test_the_virtual_tables_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run with segments, the tables over them may be anything: esmpi reads the segments themselves."""
    file = _with_segments(tmp_path / "run", monkeypatch)
    before = [row.tobytes() for row in file.members]

    def elsewhere(image: h5py.File) -> None:
        del image["members/fitness"]
        image.create_dataset("members/fitness", (40, 20), "f8", external=[("/etc/passwd", 0, 6400)])

    change(file.path, elsewhere)
    assert [row.tobytes() for row in RunFile.open(file.path).members] == before


@pytest.mark.parametrize("kind", ["a pipe", "an endless device", "a folder", "a file of somebody else", "a huge hole"])
def test_completions_are_files_of_the_run(
    kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = samples_path(run / "run.h5", "held_out", 12)
    path.unlink()
    not_files(tmp_path)[kind](path)
    assert outcome("inspect", run) == 1
    for command in ("report", "watch"):
        outcome(command, run, *(["--once"] if command == "watch" else []))
    assert "of somebody else" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        *("5", "[]", "{}", "nothing", "[" * 100_000, '{"completion": 5, "example": {}}', "\0" * 100, '"\\ud800"'),
        '{"completion": "x", "example": {}, "index": "first"}',
        '{"completion": "x", "example": {}, "index": 1e999}',
        '{"completion": "x", "example": {}, "reward": 1' + 400 * "0" + "}",
        '{"completion": "x", "example": {}, "reward": "much"}',
        '{"completion": "\\ud800", "example": "\\udfff", "reward": 1, "prompt": "\\ud800"}',
        '{"completion": "x", "example": [[1], null], "reward": null, "correct": "no"}',
    ],
    ids=lambda line: line[:30],
)
def test_odd_completions(line: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for generation in (0, 12):
        samples_path(run / "run.h5", "held_out", generation).write_text(line + "\n")
    assert outcome("inspect", run) == 1  # not as many as the run file says
    for words in (["report", run], ["watch", "--once", run]):
        assert outcome(*words) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["external", "compressed", "texts", "pipe"])
def test_snapshots_of_strangers(kind: str, run: Path) -> None:
    path = run / "snapshots" / "g000000.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file.attrs.update({"snapshot_version": 1, "generation": 0, "theta_digest": 1})
        how = {
            "external": {"shape": (8,), "dtype": "f4", "external": [("/etc/passwd", 0, 32)]},
            "compressed": {"data": np.zeros(8, "f4"), "compression": "gzip"},
            "texts": {"data": ["x"] * 8, "dtype": h5py.string_dtype()},
        }
        file.create_dataset("theta/w", **how.get(kind, {"data": np.zeros(8, "f4")}))
    data = path.read_bytes()
    path.write_bytes(data + snapshot_writer._seal_line([snapshot_writer._hash([memoryview(data)])]))
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(SnapshotError, match=r"other files|filtered|no table of numbers|not a regular file"):
        check_snapshot(path, RunFile.open(run / "run.h5"))


def _with_segments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunFile:
    monkeypatch.setattr(member_table, "SEGMENT_BYTES", 200 * member_table.MEMBER_DTYPE.itemsize)
    file = make_run(folder, generations=40, members=20)
    assert file.segments
    return RunFile.open(file.path)


def _list_again(file: RunFile, path: Path) -> None:
    """Seal a run file again that lists the checksum of a segment that was changed."""
    data = path.read_bytes()
    file.segments[0] = dataclasses.replace(file.segments[0], sha256=checksum(data))
    file.write()
