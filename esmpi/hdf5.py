"""What an HDF5 file of esmpi may consist of: plain tables and plain attributes, all of them inside of the file.

The format allows far more. A data set may take its values from any other file, a link may lead there, a file of a
kilobyte may promise terabytes, and a filter may unpack a page of zeros into them. esmpi writes none of this. A file
with it is somebody else's, and is refused before a value is read.

The library itself may loop for ever or crash on a file that was made for it: an attribute whose text is in a heap with
an entry of no size never comes to an end. So a file that is not of the run that this process holds is read once in a
child process with limits, which may die of it.
"""

import faulthandler
import gc
import hashlib
import io
import os
import resource
import signal
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py

from esmpi.files import is_held

MOST_OBJECTS = 100_000
"""Groups and data sets in a file: a thousand suites of a hundred figures."""
MOST_ATTRIBUTES = 100
_MOST_DEPTH = 3
_NONE: Mapping[str, str] = {}
_LEAST_CPU_S = 20
_CPU_BYTES_PER_SECOND = 50e6
"""Far less than any machine reads: 20 s are enough for the most objects, and one more for each 50 MB."""
_LEAST_MEMORY_BYTES = 2**30
_MOST_MESSAGE = 4000
_LAYOUTS = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT, h5py.h5d.CHUNKED)

_tried: deque[bytes] = deque(maxlen=100)
"""Digests of files that this process need not try again: a command may read a run file several times."""


@contextmanager
def opened(path: Path, data: bytes | None = None, virtual: Mapping[str, str] = _NONE) -> Iterator[h5py.File]:
    """Open an HDF5 file that a stranger may have made, and that has only what esmpi writes.

    Parameters
    ----------
    path : Path
        Of the file. If it is in a run directory that this process holds, its own run wrote it, and it is not tried in
        a child process first.
    data : bytes, optional
        Its bytes, if they are read already. Without them, values are read from the file, and a trial reads none.
    virtual : mapping of str to str, optional
        As in `check_hdf5`.

    Raises
    ------
    ValueError
        If the file has anything else, or if HDF5 does not come to an end with it.
    OSError
        If HDF5 cannot open it.
    """
    try_first(path, data, virtual)
    with h5py.File(path if data is None else io.BytesIO(data), "r") as file:
        check_hdf5(file, path.stat().st_size if data is None else len(data), virtual)
        yield file


def try_first(path: Path, data: bytes | None = None, virtual: Mapping[str, str] = _NONE) -> None:
    """Raise as `opened` does, whose parameters these are, if a child process cannot read a file within its limits."""
    digest = None if data is None else hashlib.sha256(data).digest()
    if is_held(path) or digest in _tried:
        return
    num_bytes = path.stat().st_size if data is None else len(data)
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            gc.disable()  # what the parent left over is not this process's to finish
            _limit(num_bytes)
            code = _trial(path, data, virtual, sending)
        finally:
            os._exit(code)
    os.close(sending)
    try:
        with open(receiving, "rb") as pipe:
            message = pipe.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if message:
        raise ValueError(message.decode())
    if status != 0:
        raise ValueError("HDF5 loops or crashes on it, or takes memory without end: this is no file that esmpi wrote")
    if digest is not None:
        _tried.append(digest)


def _trial(path: Path, data: bytes | None, virtual: Mapping[str, str], sending: int) -> int:
    try:
        with h5py.File(path if data is None else io.BytesIO(data), "r") as file:
            check_hdf5(file, path.stat().st_size if data is None else len(data), virtual)
            _read_all(file, virtual, data is not None)
    except MemoryError:
        return 1
    except Exception as error:
        os.write(sending, (str(error) or repr(error))[:_MOST_MESSAGE].encode(errors="replace"))
        return 1
    return 0


def _read_all(file: h5py.File, virtual: Mapping[str, str], values: bool) -> None:
    """Read what a reader may read: attributes, and the values of data sets."""
    dict(file.attrs)
    for path, identifier in _objects(file.id, "", 0):
        if isinstance(identifier, h5py.h5d.DatasetID) and values and not _is_virtual(file, path, virtual):
            file[path][()]


def _limit(num_bytes: int) -> None:
    """Bound this process: what goes beyond the bounds ends it."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    seconds = _LEAST_CPU_S + int(num_bytes / _CPU_BYTES_PER_SECOND)
    _lower(resource.RLIMIT_CPU, seconds)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, used + _LEAST_MEMORY_BYTES + 4 * num_bytes)


def _lower(limit: int, value: int) -> None:
    soft, hard = resource.getrlimit(limit)
    allowed = [bound for bound in (soft, hard, value) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(limit, (min(allowed), hard))


def check_hdf5(file: h5py.File, num_bytes: int, virtual: Mapping[str, str] = _NONE) -> None:
    """Raise ValueError unless a file has only what esmpi writes.

    Parameters
    ----------
    file : h5py.File
    num_bytes : int
        Size of the file. Its data sets may not take more, each counted once for each of its names.
    virtual : mapping of str to str, optional
        Groups whose data sets may be virtual if the file has the other group as well, which has the values that are
        in this file. They are not looked at, and the caller must not read them.
    """
    _check_attributes(file, num_bytes)
    left = num_bytes
    seen = set()
    for count, (path, identifier) in enumerate(_objects(file.id, "", 0), 1):
        if count > MOST_OBJECTS:
            raise ValueError(f"more than {MOST_OBJECTS:,} groups and data sets")
        if (address := h5py.h5o.get_info(identifier).addr) in seen:
            raise ValueError(f"{path} is another object under a second name")
        seen.add(address)
        if isinstance(identifier, h5py.h5d.DatasetID) and not _is_virtual(file, path, virtual):
            left -= _check_dataset(path, identifier)
            if left < 0:
                raise ValueError(f"{path} and others promise more data than the file has bytes")


def _is_virtual(file: h5py.File, path: str, virtual: Mapping[str, str]) -> bool:
    group = path.split("/")[1]
    return group in virtual and virtual[group] in file


def _objects(group: h5py.h5g.GroupID, path: str, depth: int) -> "Iterator[tuple[str, h5py.h5i.ObjectID]]":
    """Yield the groups and data sets below a group, through hard links alone."""
    if depth > _MOST_DEPTH:
        raise ValueError(f"{path} is too deep")
    for name in group:
        inner = f"{path}/{name.decode(errors='replace')}"
        if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{inner} is a link to another place")
        identifier = h5py.h5o.open(group, name)
        if not isinstance(identifier, h5py.h5g.GroupID | h5py.h5d.DatasetID):
            raise ValueError(f"{inner} is neither a group nor a data set")
        yield inner, identifier
        if isinstance(identifier, h5py.h5g.GroupID):
            yield from _objects(identifier, inner, depth + 1)


def _check_dataset(path: str, dataset: h5py.h5d.DatasetID) -> int:
    """Return how many bytes a data set takes; raise ValueError unless it is a plain table that stores all its values.

    HDF5 allows a data set of any shape that stores nothing: terabytes fit into a file of a kilobyte.
    """
    properties = dataset.get_create_plist()
    if properties.get_layout() not in _LAYOUTS or properties.get_external_count():
        raise ValueError(f"{path} takes its values from other files")
    if properties.get_nfilters():
        raise ValueError(f"{path} is compressed or otherwise filtered")
    kind = dataset.dtype
    if kind.kind not in "biufS" or kind.subdtype is not None:
        raise ValueError(f"{path} is no table of numbers: its type is {kind}")
    size: int = kind.itemsize
    for length in dataset.shape:
        size *= length
    stored = dataset.get_storage_size()
    # the last of equal chunks may reach beyond the end
    if stored < size or (stored > size and properties.get_layout() != h5py.h5d.CHUNKED):
        raise ValueError(f"{path} has shape {dataset.shape}, but stores {stored:,} bytes")
    return int(stored)


def _check_attributes(file: h5py.File, num_bytes: int) -> None:
    if h5py.h5a.get_num_attrs(file.id) > MOST_ATTRIBUTES:
        raise ValueError(f"more than {MOST_ATTRIBUTES} attributes")
    for i in range(h5py.h5a.get_num_attrs(file.id)):
        attribute = h5py.h5a.open(file.id, index=i)
        name, kind = attribute.name.decode(errors="replace"), attribute.dtype
        is_text = isinstance(attribute.get_type(), h5py.h5t.TypeStringID)
        if attribute.shape != () or not (is_text or kind.kind in "biuf"):
            raise ValueError(f"attribute {name} is neither a text nor a number")
        if attribute.get_storage_size() > num_bytes:
            raise ValueError(f"attribute {name} promises more than the file has bytes")
