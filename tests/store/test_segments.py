"""Large logs: members in segments, and what a commit costs then; versions; log-only files."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import LEAST_CONFIG, require

from esmpi.errors import UserError
from esmpi.es.member_columns import ABSENT, MEMBER_DTYPE
from esmpi.files import FullError
from esmpi.store import generations, reader
from esmpi.store import members as member_table
from esmpi.store.run_file import GENERATION_DTYPE, RunFile

DIGEST = 0xFEDCBA9876543210


def new_run(folder: Path) -> RunFile:
    return RunFile.create(folder / "run.h5", LEAST_CONFIG, DIGEST, "d", ["a.weight"], {})


def commit(run: RunFile, num_members: int, figures: dict[str, float] | None = None) -> None:
    generation = run.num_generations
    rng = np.random.default_rng(generation)
    row = np.zeros(1, GENERATION_DTYPE)[0]
    row["generation"], row["theta_digest"] = generation, 2**63 + generation
    members = np.zeros(num_members, MEMBER_DTYPE)
    members["seed"] = rng.integers(2**63, 2**64, num_members, np.uint64)
    members["coefficient"], members["fitness"] = rng.random(num_members), rng.random(num_members)
    members["sign"], members["tokens"] = 1, generation
    run.begin_commit(row, members, figures)()


def same(a: RunFile, b: RunFile) -> bool:
    same_members = len(a.members) == len(b.members) and all(
        one.tobytes() == other.tobytes() for one, other in zip(a.members, b.members, strict=True)
    )
    return same_members and np.array(a.generations).tobytes() == np.array(b.generations).tobytes()


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFile:
    """A run of 50 generations with segments of up to seven, as if it were large."""
    monkeypatch.setattr(member_table, "SEGMENT_BYTES", 7 * 20 * MEMBER_DTYPE.itemsize)
    run = new_run(tmp_path)
    for _ in range(50):
        commit(run, 20)
    return run


def test_esmpi_and_plain_h5py_see_one_table(large: RunFile) -> None:
    names = sorted(path.name for path in (large.path.parent / "members").iterdir())
    assert len(names) == len(large.segments) == 7
    assert names[:2] == ["000000-000006.h5", "000007-000013.h5"]  # of the first and the last generation
    assert same(RunFile.open(large.path), large)
    with h5py.File(large.path, "r") as file:
        for name in MEMBER_DTYPE.names or ():
            column = file[f"members/{name}"]
            assert column.shape == (50, 20)
            assert column.dtype == MEMBER_DTYPE[name]
            np.testing.assert_array_equal(column[()], np.array(large.members)[name])
        assert len(file["tail/seed"]) == 50 - large.segments[-1].end
        assert file["members/tokens"].attrs["unit"] == "tokens"


def test_the_same_contents_are_the_same_bytes(large: RunFile) -> None:
    before = large.path.read_bytes()
    time.sleep(1.1)  # HDF5 would keep the second
    large.write()
    assert large.path.read_bytes() == before


def test_the_directory_may_be_moved(large: RunFile, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(large.path.parent, moved, ignore=shutil.ignore_patterns("elsewhere"))
    shutil.rmtree(large.path.parent / "members")
    with h5py.File(moved / "run.h5", "r") as file:
        np.testing.assert_array_equal(file["members/seed"][()], np.array(large.members)["seed"])
    run = RunFile.open(moved / "run.h5")
    commit(run, 20)
    assert same(RunFile.open(moved / "run.h5"), run)


def test_segments_never_change_and_the_run_file_stays_small(large: RunFile) -> None:
    before = {path: path.read_bytes() for path in (large.path.parent / "members").iterdir()}
    sizes = []
    for _ in range(30):
        commit(large, 20)
        sizes.append(large.path.stat().st_size)
    assert all(path.read_bytes() == content for path, content in before.items())
    # what grows is the generations' own rows, and a few bytes a segment
    assert max(sizes) - min(sizes) < 7 * 20 * MEMBER_DTYPE.itemsize + 30 * (GENERATION_DTYPE.itemsize + 200)


@pytest.mark.parametrize("what", ["missing", "damaged", "another"])
def test_a_segment_that_is_not_what_was_written_is_named(large: RunFile, what: str) -> None:
    segments = sorted((large.path.parent / "members").iterdir())
    if what == "missing":
        segments[2].unlink()
        expected = f"{segments[2]} is missing"
        with h5py.File(large.path, "r") as file:  # which HDF5 does not mind: it reads as members that are absent
            rows = slice(large.segments[2].first, large.segments[2].end)
            assert (file["members/status"][rows] == ABSENT).all()
            assert (file["members/status"][: rows.start] != ABSENT).all()
    elif what == "damaged":
        data = bytearray(segments[2].read_bytes())
        data[len(data) // 2] ^= 1
        segments[2].write_bytes(data)
        expected = f"{segments[2]} is damaged"
    else:
        segments[2].write_bytes(segments[3].read_bytes())
        expected = f"{segments[2]} is not the file"
    with pytest.raises(UserError, match=expected):
        RunFile.open(large.path)


def test_a_killed_freeze_is_done_again(large: RunFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The segment is there, but the run file that refers to it is not yet."""
    check_killed_freeze(large, "segments", 20)


def check_killed_freeze(stored: RunFile, segments: str, num_members: int) -> None:
    run = RunFile.open(stored.path)
    before = run.path.read_bytes()
    while len(getattr(run, segments)) == len(getattr(stored, segments)):
        commit(run, num_members)
        at_last, before = before, run.path.read_bytes()
    run.path.write_bytes(at_last)
    again = RunFile.open(run.path)
    assert again.num_generations == run.num_generations - 1
    commit(again, num_members)
    assert same(again, run)
    assert same(RunFile.open(run.path), run)


def test_generations_may_have_different_numbers_of_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [3, 3, 5, 5, 5, 2, 2, 4, 4, 4]
    for limit in (2**20, 3 * 5 * MEMBER_DTYPE.itemsize):
        monkeypatch.setattr(member_table, "SEGMENT_BYTES", limit)
        run = new_run(tmp_path / str(limit))
        for size in sizes:
            commit(run, size)
        read = RunFile.open(run.path)
        assert same(read, run)
        assert bool(read.segments) == (limit < 2**20)
        with h5py.File(run.path, "r") as file:
            assert file["members/seed"].shape == (10, 5)
            assert (file["members/status"][()] == ABSENT).sum(axis=1).tolist() == [5 - size for size in sizes]
            assert file["members/coefficient"][0, 3:].tolist() == [0, 0]


@pytest.mark.parametrize("num_members", [2, 30, 1000])
def test_bytes_of_a_generation(tmp_path: Path, num_members: int) -> None:
    run = new_run(tmp_path)
    commit(run, num_members)
    first = run.path.stat().st_size
    for _ in range(40):
        commit(run, num_members)
    assert (run.path.stat().st_size - first) / 40 <= 64 * num_members + 512


def test_a_log_only_file_is_one_small_file(large: RunFile, tmp_path: Path) -> None:
    log = large.cut(tmp_path / "other" / "log.h5", 33)
    log.attributes |= {"log_only": True}
    log.write()
    assert [path.name for path in log.path.parent.iterdir()] == ["log.h5"]
    read = RunFile.open(log.path)
    assert read.num_generations == 33
    for generation in range(34):
        assert read.digest_after(generation) == large.digest_after(generation)
    for mine, whole in zip(read.members, large.members[:33], strict=True):
        np.testing.assert_array_equal(mine[["seed", "coefficient"]], whole[["seed", "coefficient"]])
    with h5py.File(log.path, "r") as file:
        assert set(file["members"]) == {"seed", "coefficient"}
    with pytest.raises(UserError, match="has generations 0 to 33"):
        read.cut(log.path, 34)


@pytest.mark.parametrize("size", [7, 1000], ids=["segments", "one file"])
def test_a_run_file_from_before_a_column_has_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(member_table, "SEGMENT_BYTES", size * 20 * MEMBER_DTYPE.itemsize)
    run = new_run(tmp_path)
    for _ in range(10):
        commit(run, 20)
    newer = np.dtype([*MEMBER_DTYPE.descr, ("joules", np.float32)])
    for module in (member_table, reader):
        monkeypatch.setattr(module, "MEMBER_DTYPE", newer)
        monkeypatch.setattr(module, "MEMBER_DEFAULTS", {"joules": np.float32(0.5)})
    again = RunFile.open(run.path)
    assert len(again.members) == 10
    for old, new in zip(run.members, again.members, strict=True):
        assert new["joules"].tolist() == [0.5] * 20
        assert new[list(MEMBER_DTYPE.names or ())].tolist() == old.tolist()
    last = again.generations[-1].copy()
    last["generation"] = 10
    again.commit(last, again.members[-1])  # with the column, beside segments without it
    assert [row["joules"].tolist() for row in RunFile.open(run.path).members] == [[0.5] * 20] * 11


@pytest.fixture
def long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFile:
    """A run of 50 generations with segments of up to seven of them, as if it were long; some have further figures."""
    monkeypatch.setattr(generations, "SEGMENT_BYTES", 7 * GENERATION_DTYPE.itemsize)
    run = new_run(tmp_path)
    for generation in range(50):
        commit(
            run,
            3,
            {"a": float(generation)} if generation in (2, 3, 20, 48) else {"b": -1.5} if generation == 21 else {},
        )
    return run


def test_rows_of_generations_are_one_table_for_everybody(long: RunFile) -> None:
    names = sorted(path.name for path in (long.path.parent / "generations").iterdir())
    assert len(names) == len(long.generation_segments) == 7
    assert names[:2] == ["000000-000006.h5", "000007-000013.h5"]
    read = RunFile.open(long.path)
    assert same(read, long)
    assert [{name: x for name, x in row.items() if not np.isnan(x)} for row in read.figures] == long.figures
    with h5py.File(long.path, "r") as file:
        table = np.array(long.generations, GENERATION_DTYPE)
        for name in GENERATION_DTYPE.names or ():
            assert file[f"generations/{name}"].dtype == GENERATION_DTYPE[name]
            np.testing.assert_array_equal(file[f"generations/{name}"][()], table[name])
        assert file["figures/generation"][()].tolist() == [2, 3, 20, 21, 48]
        np.testing.assert_array_equal(file["figures/a"][()], [2, 3, 20, np.nan, 48])
        np.testing.assert_array_equal(file["figures/b"][()], [np.nan, np.nan, np.nan, -1.5, np.nan])
        assert len(file["tail_generations/generation"]) == 1
    commit(read, 3)
    assert RunFile.open(long.path).num_generations == 51


def test_a_commit_of_a_long_run_writes_no_more(tmp_path: Path) -> None:
    """The rows of 20,000 generations are 3.6 MB; a run file has those of 1 MiB at most."""
    run = new_run(tmp_path)
    row = np.zeros(1, GENERATION_DTYPE)[0]
    members = np.zeros(1, MEMBER_DTYPE)
    for generation in range(20_000):
        made = row.copy()
        made["generation"] = generation
        run.generations.append(made)
        run.members.append(members)
    run.write()
    each = generations.SEGMENT_BYTES // GENERATION_DTYPE.itemsize
    assert [segment.end for segment in run.generation_segments] == [each, 2 * each, 3 * each]
    assert run.path.stat().st_size < 2 * generations.SEGMENT_BYTES
    again = RunFile.open(run.path)
    assert same(again, run)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "generations").iterdir()}
    commit(again, 1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "generations").iterdir()} == before


@pytest.mark.parametrize("what", ["missing", "damaged", "another"])
def test_a_segment_of_generations_that_is_not_what_was_written_is_named(long: RunFile, what: str) -> None:
    segments = sorted((long.path.parent / "generations").iterdir())
    if what == "missing":
        segments[2].unlink()
    elif what == "damaged":
        segments[2].write_bytes(segments[2].read_bytes()[:-1])
    else:
        segments[2].write_bytes(segments[3].read_bytes())
    text = {"missing": "is missing", "damaged": "is damaged", "another": "is not the file"}[what]
    with pytest.raises(UserError, match=f"{segments[2]} {text}"):
        RunFile.open(long.path)


def test_a_killed_freeze_of_generations_is_done_again(long: RunFile) -> None:
    """The segment is there, but the run file that refers to it is not yet."""
    check_killed_freeze(long, "generation_segments", 3)


def test_version_1_is_read_and_becomes_the_newest(tmp_path: Path) -> None:
    """A file that was written before there were segments, forks and log-only files."""
    path = tmp_path / "run.h5"
    shutil.copy(Path(__file__).parent / "run_v1.h5", path)
    with h5py.File(path, "r") as file:
        assert file.attrs["format_version"] == 1
        columns = {name: file["members"][name][()] for name in file["members"]}
    run = RunFile.open(path)
    assert run.num_generations == 2
    assert run.attributes["forks"] == []
    commit(run, 3)
    with h5py.File(path, "r") as file:
        assert file.attrs["format_version"] == 4
        for name, column in columns.items():
            np.testing.assert_array_equal(file["members"][name][:2], column)
    assert same(RunFile.open(path), run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True)
    require("tmpfs", done.returncode == 0, f"cannot mount: {done.stderr}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    run = new_run(small_disk)
    whole = b""

    def fill() -> None:
        nonlocal whole
        for _ in range(1000):
            commit(run, 100)
            whole = run.path.read_bytes()

    with pytest.raises(FullError, match=r"no room for [\d,]+ bytes at .*run.h5 \(No space left on device\)"):
        fill()
    assert run.num_generations > 10
    assert run.path.read_bytes() == whole
    assert [path.name for path in small_disk.iterdir()] == ["run.h5"]
    assert RunFile.open(run.path).num_generations == run.num_generations - 1
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    again = RunFile.open(run.path)
    commit(again, 100)
    assert same(RunFile.open(run.path), run)
