"""Files that are replaced whole or not at all, and the lock on a run directory."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esmpi.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, it replaces `path`, durably and at once.

    Whatever happens, `path` is the old file or the new one, never a mixture, and never missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's or a folder's contents survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run directory, so that no second process writes into it.

    Raises
    ------
    UserError
        If another process holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / ".lock", "a+")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"cannot write the run directory {directory}: {error.strerror}") from error
    with lock as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):  # not held: the file system's own trouble
                raise
            file.seek(0)
            raise UserError(
                f"run directory {directory} is in use ({file.read().strip() or 'by another process'}): wait for that "
                f"run to end, or choose another run.name"
            ) from None
        file.truncate(0)
        file.write(f"by process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        for folder in (directory, directory / "eval"):
            for leftover in folder.glob(".*.tmp"):  # of a process that was killed while writing
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield
