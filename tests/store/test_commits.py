"""A commit replaces the run file whole or not at all: a kill, a full disk, a forbidden file, two processes."""

import errno
import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import make, members_of, row_of

from esmpi import files
from esmpi.errors import UserError
from esmpi.files import ForbiddenError, FullError, locked, replacing, write_whole
from esmpi.store.run_file import RunFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "run.h5"


class Killed(BaseException):
    """Stands for the death of the process at this point."""


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_commit_that_dies_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    run = make(path)
    before = path.read_bytes()

    def die(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, function, die)
        with pytest.raises(Killed):
            run.commit(row_of(3), members_of(3))
    assert path.read_bytes() == before
    assert RunFile.open(path).num_generations == 3
    assert [entry.name for entry in path.parent.iterdir()] == ["run.h5"]
    run.write()
    assert RunFile.open(path).num_generations == 4


@pytest.mark.parametrize(
    ("number", "tries"), [(errno.EIO, 5), (errno.ESTALE, 2), (errno.EROFS, 1), (errno.EACCES, 1), (errno.EDQUOT, 1)]
)
def test_what_may_pass_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch, number: int, tries: int) -> None:
    """Two failures are got over, five are not; what will not pass is not tried again."""
    run = make(path)
    before, count, fsync = path.read_bytes(), 0, os.fsync
    failures = 5 if number == errno.EIO else 1
    monkeypatch.setattr(files, "_WAITS_S", (0.0,) * 4)

    def fail(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count <= failures:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    if number == errno.ESTALE:
        run.commit(row_of(3), members_of(3))
        assert RunFile.open(path).num_generations == 4
        assert count == tries + 1  # the folder's, too
        return
    error, said = {
        errno.EIO: (OSError, os.strerror(number)),
        errno.EDQUOT: (FullError, "no room for"),
    }.get(number, (ForbiddenError, rf"run.h5 cannot be written any more \({os.strerror(number)}\)"))
    with locked(path.parent), pytest.raises(error, match=said):
        run.commit(row_of(3), members_of(3))
    assert count == tries
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock", "run.h5"]


def test_a_file_of_no_run_may_be_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a page, whose writer has its own words for it."""

    def fail(descriptor: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PermissionError):
        write_whole(tmp_path / "page.html", b"page")


def test_a_block_that_raises_replaces_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "file"

    def write(text: str, error: BaseException | None = None) -> None:
        with replacing(target) as temporary:
            assert temporary.parent == target.parent
            temporary.write_text(text)
            if error is not None:
                raise error

    write("old")
    with pytest.raises(Killed):
        write("half of the n", Killed())
    assert target.read_text() == "old"
    assert [entry.name for entry in target.parent.iterdir()] == ["file"]
    write("new")
    assert target.read_text() == "new"


def test_a_kill_between_any_two_commits_leaves_a_whole_file(path: Path) -> None:
    """SIGKILL while a process commits as fast as it can; whatever it announced is there."""
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from run_files import *\n"
        "run = make(Path(sys.argv[1]), 0)\n"
        "for generation in range(10**6):\n"
        "    run.commit(row_of(generation), members_of(generation))\n"
        "    print(generation + 1, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(path), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 20:
                break
        process.kill()
        announced = [int(line) for line in process.stdout]
    run = RunFile.open(path)
    last = announced[-1] if announced else 20
    assert run.num_generations in (last, last + 1)
    assert run.members[-1]["seed"].tolist() == members_of(run.num_generations - 1)["seed"].tolist()


def _commit_with_little_room(path: Path, size: int) -> None:
    import signal

    run = RunFile.open(path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run.commit(row_of(3), members_of(3))
    except FullError as error:
        os._exit(7 if "bytes at" in str(error) and "rerun the same command" in str(error) else 8)
    os._exit(0)


def test_a_full_disk_waits_once_for_what_makes_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(path)
    full, asked = True, 0
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    def make_room() -> None:
        nonlocal full, asked
        full, asked = asked == 1, asked + 1

    monkeypatch.setattr(os, "fsync", sync)
    run.make_room = make_room
    run.commit(row_of(3), members_of(3))
    assert asked == 1
    assert RunFile.open(path).num_generations == 4
    full = True
    with pytest.raises(FullError):
        run.commit(row_of(4), members_of(4))
    assert asked == 2
    assert RunFile.open(path).num_generations == 4


@pytest.mark.parametrize("size", [0, 1000, 12_000])
def test_a_full_disk_leaves_the_old_file(path: Path, size: int) -> None:
    make(path)
    before = path.read_bytes()
    assert len(before) > 12_000
    process = multiprocessing.get_context("spawn").Process(target=_commit_with_little_room, args=(path, size))
    process.start()
    process.join(100)
    assert process.exitcode == 7
    assert path.read_bytes() == before
    assert RunFile.open(path).num_generations == 3


def _try_lock(directory: Path) -> str:
    program = (
        "import sys; from pathlib import Path\n"
        "from esmpi.files import locked; from esmpi.errors import UserError\n"
        "try:\n"
        "    with locked(Path(sys.argv[1])): print('held')\n"
        "except UserError as error: print('refused:', error)\n"
    )
    return subprocess.run([sys.executable, "-c", program, str(directory)], capture_output=True, text=True).stdout


def test_the_lock_refuses_a_second_process_and_says_who_has_it(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "one"
    with locked(directory):
        refusal = _try_lock(directory)
        assert refusal.startswith(f"refused: run directory {directory} is in use (by process {os.getpid()} on ")
        assert _try_lock(tmp_path / "runs" / "other") == "held\n"
    assert _try_lock(directory) == "held\n"


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from esmpi.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"by process {process.pid} on "), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path):
        pass
