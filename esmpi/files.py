"""Files that are replaced whole or not at all, and the lock on a run directory."""

import errno
import fcntl
import glob
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from esmpi.errors import UserError

log = logging.getLogger(__name__)

_PASSING = (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.EBUSY)
"""What a network file system says when it or its server hiccups."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Lustre mounted without flock, NFS without lockd."""
_WAITS_S = (0.1, 0.5, 2.0, 5.0)
_MOST_LINE_BYTES = 64 * 2**20
_TEMPORARY = re.compile(
    r"\.(run\.h5|model|(best-)?g\d{6,}\.h5|g\d{6,}\.[\w-]+\.jsonl?|\d{6,}-\d{6,}\.h5)\.\d+(\.old)?\.tmp"
)
"""Names of what is being written in a run directory."""


_held: dict[Path, os.stat_result] = {}
"""The lock file of each run directory that this process holds, as it was when the lock was taken."""


class FullError(UserError):
    """There is no room for a file."""


class ForbiddenError(UserError):
    """A file may not be written: the file system is read-only, or somebody has changed permissions."""


class LostError(UserError):
    """A run directory that this process holds is another one now, or is gone."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, it replaces `path`, durably and at once.

    Whatever happens, `path` is the old file or the new one, never a mixture, and never missing.

    Raises
    ------
    LostError
        If `path` is in a run directory that this process holds no more.
    """
    check_held(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        check_held(path)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError:
        check_held(path)  # if the directory was taken away meanwhile, this says so
        raise
    finally:
        with suppress(OSError):  # the first error matters more; the next start cleans up
            if temporary.is_dir():
                shutil.rmtree(temporary)
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Replace a file by one with these bytes, durably; errors that may be temporary are retried.

    Raises
    ------
    FullError
        If there is no room, on the disk or in the quota.
    ForbiddenError
        If it is in a run directory that this process holds, and may not be written any more.
    OSError
        If it does not work for another reason, after several tries where that may help. In each case the old file is as
        it was.
    """
    for wait_s in (*_WAITS_S, None):
        try:
            # Starts from the beginning: after a failed fsync Linux counts the lost pages as written.
            with replacing(path) as temporary:
                temporary.write_bytes(data)
            return
        except OSError as error:
            if error.errno in _FULL:
                raise FullError(
                    f"no room for {len(data):,} bytes at {path} ({error.strerror}); nothing is lost. Make room, then "
                    f"rerun the same command to resume from the last committed generation"
                ) from error
            if error.errno in _FORBIDDEN and is_held(path):
                raise ForbiddenError(
                    f"{path} cannot be written any more ({error.strerror}); nothing that is committed is lost. Let "
                    f"esmpi write there, then rerun the same command to resume from the last committed generation"
                ) from error
            if error.errno not in _PASSING or wait_s is None:
                raise
            log.warning("writing %s failed (%s): once more in %.1f s", path, error.strerror, wait_s)
            time.sleep(wait_s)


def open_regular(path: Path, inside: Path | None = None) -> IO[bytes]:
    """Open a file for reading, unless it is a pipe or a device, which may block or have no end.

    Parameters
    ----------
    path : Path
    inside : Path, optional
        A folder that the file must be in; a link may not lead out of it.

    Raises
    ------
    UserError
        If it is no regular file, or not in the folder.
    OSError
        If it cannot be opened.
    """
    if inside is not None and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(inside)):
        raise UserError(f"{path} leads out of {inside}, and is not read: put a copy of the file in its place")
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is not a regular file, and is not read")
    # a pipe that takes the file's place at this moment must not block either
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_json_lines(path: Path, inside: Path) -> Iterator[Any]:
    """Yield what the lines of a file in a folder hold; blank ones are left out.

    Raises
    ------
    UserError
        As `open_regular` does, or if a line is not JSON, or so long that no program of esmpi wrote it.
    OSError
        If the file cannot be read.
    """
    with open_regular(path, inside) as file:
        number = 0
        while line := file.readline(_MOST_LINE_BYTES):
            number += 1
            if len(line) == _MOST_LINE_BYTES:
                raise UserError(f"{path} is damaged: line {number} has more than {_MOST_LINE_BYTES:,} bytes")
            try:
                if not line.isspace():
                    yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} is damaged: line {number}: {error}") from None


def sync(path: Path) -> None:
    """Make a file's or a folder's contents survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(directory: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the run directory, so that no second process writes into it.

    Where the file system has no locks there is a warning, and nothing is held. A directory that did not exist before is
    removed if nothing was written into it, because the run could not begin.

    Raises
    ------
    UserError
        If another process holds it, and still does after `patience_s` seconds, or if it cannot be written.
    """
    deadline = time.monotonic() + patience_s
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = _open_lock(directory)
    except OSError as error:
        raise UserError(f"cannot write the run directory {directory}: {error}") from error
    with file:
        try:
            while not (held := _lock(file)) and time.monotonic() < deadline:
                time.sleep(0.5)
            if held:
                file.truncate(0)
                # bypasses Python's buffer, which would retry on closing what a full disk has refused
                os.write(file.fileno(), f"by process {os.getpid()} on {os.uname().nodename}".encode())
        except OSError as error:
            if error.errno not in _LOCKLESS:
                raise UserError(f"cannot write the run directory {directory}: {error.strerror}") from error
            log.warning(
                "the file system of %s has no locks (%s): see to it that nothing else writes there",
                directory,
                error.strerror,
            )
            held = True
        if not held:
            raise UserError(
                f"run directory {directory} is in use ({file.read().strip() or 'by another process'}): wait for that "
                f"run to end, or choose another run.name"
            )
        place = Path(os.path.abspath(directory))
        _held[place] = os.fstat(file.fileno())
        try:
            yield
        finally:
            if is_new:
                _remove_if_unused(directory)
            del _held[place]


def _remove_if_unused(directory: Path) -> None:
    with suppress(OSError, LostError):  # another run's directory may be there by now
        check_held(directory)
        if os.listdir(directory) == [".lock"]:
            os.unlink(directory / ".lock")
            directory.rmdir()


def is_held(path: Path) -> bool:
    """Return whether a file is in a run directory that this process holds: its own run wrote what is there."""
    return any(Path(os.path.abspath(path)).is_relative_to(directory) for directory in _held)


def check_held(path: Path) -> None:
    """Check that a file's run directory is still the one that this process has locked; other files pass.

    A user may remove or rename the directory of a run that is slow to die, and start a run of that name anew. The older
    run must not write into the newer one's directory.

    Raises
    ------
    LostError
        If it is not.
    """
    absolute = os.path.abspath(path)
    for directory, lock in _held.items():
        if not Path(absolute).is_relative_to(directory):
            continue
        try:
            same = os.path.samestat(os.stat(directory / ".lock", follow_symlinks=False), lock)
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            raise LostError(
                f"{directory} is no longer the directory in which this run began: it was removed, renamed or replaced. "
                f"Nothing more is written there. If it was renamed, give it its old name back, and rerun the same "
                f"command to resume from the last committed generation"
            )


def clean_up(directory: Path) -> None:
    """Remove what a killed process left half written in the run directory, which this one holds.

    Raises
    ------
    UserError
        If it cannot be removed.
    """
    try:
        put_back(directory / "model")
        for leftover in leftovers(directory):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    except OSError as error:
        raise UserError(f"cannot write the run directory {directory}: {error}") from error


def leftovers(directory: Path) -> list[Path]:
    """Return the temporary files and folders that esmpi made in a run directory, and nothing else that is there."""
    folders = (directory, *(directory / name for name in ("eval", "generations", "members", "samples", "snapshots")))
    return sorted(path for folder in folders for path in folder.glob(".*.tmp") if _TEMPORARY.fullmatch(path.name))


def older_of(folder: Path) -> Path:
    """Return where a folder's older version is while a new one takes its place."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")


def put_back(folder: Path) -> None:
    """Give a folder its older version back if a process was killed while it put a new one in its place."""
    for older in folder.parent.glob(f".{glob.escape(folder.name)}.*.old.tmp"):
        if not folder.exists():
            os.replace(older, folder)


def is_locked_elsewhere(directory: Path) -> bool:
    """Return whether another process, on this node or any other, holds the run directory."""
    # In a process of its own: a process's own lock never stands in its way, and closing the file here would drop it.
    child = os.fork()
    if child == 0:
        code = 2
        try:
            with _open_lock(directory) as file:
                code = 0 if not _lock(file) else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _open_lock(directory: Path) -> IO[str]:
    # not through a link: what it leads to would be overwritten
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    return open(directory / ".lock", "r+", opener=lambda path, _: os.open(path, flags, 0o666))


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):  # not held by another process: the file system itself fails
            raise
        return False
    return True
