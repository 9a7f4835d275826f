"""The lock on a run directory, and what a start removes there."""

import errno
import fcntl
import logging
import os
from pathlib import Path

import pytest

from esmpi.errors import UserError
from esmpi.files import clean_up, locked, replacing


def test_only_what_esmpi_left_is_removed_and_only_by_a_training_start(tmp_path: Path) -> None:
    ours = [
        *(".run.h5.17.tmp", ".model.17.tmp", ".model.17.old.tmp", "eval/.g000003.wide-2.jsonl.17.tmp"),
        *("eval/.g000003.held_out.json.17.tmp", "members/.000000-000511.h5.17.tmp"),
        *("snapshots/.g000100.h5.17.tmp", "snapshots/.best-g000100.h5.17.tmp"),
    ]
    others = [".notes.tmp", ".thesis.doc.17.tmp", "eval/.mine.tmp", ".run.h5.tmp", "snapshots/.cache/x.17.tmp"]
    (tmp_path / "model").mkdir()
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".model.17.tmp").unlink()
    (tmp_path / ".model.17.tmp" / "part").mkdir(parents=True)
    (tmp_path / "home.tmp").mkdir()
    with locked(tmp_path):
        pass
    assert all((tmp_path / name).exists() for name in ours + others)
    clean_up(tmp_path)
    assert [name for name in ours if (tmp_path / name).exists()] == []
    assert all((tmp_path / name).exists() for name in others)


def test_the_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(precious)
    refusal = pytest.raises(UserError, match=r"cannot write the run directory .*symbolic links.*\.lock")
    with refusal, locked(tmp_path / "run"):
        pass
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    # which a run in this process has changed
    monkeypatch.setattr(logging.getLogger("esmpi"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("esmpi"), "handlers", [])
    if number == errno.EIO:
        refusal = pytest.raises(UserError, match=f"cannot write the run directory {tmp_path}: Input/output error")
        with refusal, locked(tmp_path):
            pass
        return
    entered = False
    with locked(tmp_path):
        entered = True
    assert entered
    said = {record.getMessage() for record in caplog.records}
    assert len(said) == 1
    assert f"{tmp_path} has no locks ({os.strerror(number)})" in said.pop().splitlines()[0]


def test_a_folder_that_could_not_be_filled_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with replacing(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / "large").write_text("half of it")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert list(tmp_path.iterdir()) == []
