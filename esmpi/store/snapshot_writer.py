"""Write a snapshot, theta of one generation in an HDF5 file, and check its seal; `esmpi.model.snapshot` reads it.

HDF5 only lays the file out (`esmpi.store.layout`). The bytes are then written from first to last by plain writes, so
theta is never held twice, a full disk is an OSError (HDF5 would crash the process), and the disk is kept busy. The
last bytes are a seal over all others: the SHA-256 of the SHA-256s of each 16 MiB, which several threads make and
check. It is checked before HDF5 looks at the file, because HDF5 may crash or loop for ever on a damaged one.
"""

import hashlib
import json
import os
import platform
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from esmpi.errors import UserError
from esmpi.files import open_regular, replacing
from esmpi.model.snapshot import SNAPSHOT_VERSION, SnapshotError
from esmpi.store.layout import lay_out
from esmpi.version import __version__

if TYPE_CHECKING:
    import torch

_BLOCK_BYTES = 16 * 2**20
_BUFFER_BYTES = 2**20
_NUM_THREADS = 2
_SEAL = b"\nesmpi snapshot, sha256 of the sha256s of each 16 MiB before this line: "
_SEAL_BYTES = len(_SEAL) + 64 + 1


def write_snapshot(path: Path, theta: Mapping[str, "torch.Tensor"], origin: Mapping[str, Any]) -> int:
    """Write a snapshot, durably, in place of any that is there; return its size in bytes.

    Parameters
    ----------
    path : Path
    theta : mapping of canonical name to tensor
        float32, on the CPU, contiguous, of the canonical shape. Not copied.
    origin : mapping
        Which theta this is: `generation`, `theta_digest` (int), `run_uuid`, and `config` (JSON).

    Raises
    ------
    OSError
        If it cannot be written. An older file of that name is then as it was.
    """
    arrays = {name: tensor.numpy() for name, tensor in theta.items()}
    attributes = {
        "snapshot_version": SNAPSHOT_VERSION,
        "creator": f"esmpi {__version__}",
        "generation": int(origin["generation"]),
        "theta_digest": np.uint64(origin["theta_digest"]),
        "run_uuid": origin["run_uuid"],
        "config": json.dumps(origin["config"]),
        "host": platform.node(),
        "unix_time": time.time(),
    }
    with replacing(path) as temporary, open(temporary, "wb", _BUFFER_BYTES) as file:
        return _write_sealed(file, _blocks(lay_out(arrays, attributes)))


def _write_sealed(file: IO[bytes], blocks: Iterable[list[memoryview]]) -> int:
    """Write blocks and the seal, hashing and writing side by side; return how many bytes that makes."""
    digests: list[bytes] = []
    pending = deque[Future[bytes]]()
    position = handed_over = 0
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for block in blocks:
            pending.append(pool.submit(_hash, block))
            for piece in block:
                file.write(piece)
                position += len(piece)
            if position - handed_over >= 4 * _BLOCK_BYTES:
                _start_writeback(file, handed_over, position)
                handed_over = position
            while len(pending) > 2 * _NUM_THREADS:
                digests.append(pending.popleft().result())
        digests += [future.result() for future in pending]
    file.write(_seal_line(digests))
    file.flush()
    return position + _SEAL_BYTES


def check_seal(path: Path) -> None:
    """Read a whole snapshot file and compare its checksum.

    Raises
    ------
    SnapshotError
        If it is not, to the bit, what was written, or cannot be read.
    """
    try:
        with _opened(path) as file, ThreadPoolExecutor(_NUM_THREADS) as pool:
            end = os.fstat(file.fileno()).st_size - _SEAL_BYTES
            if end <= 0:
                raise SnapshotError(f"snapshot {path} is torn")
            descriptor = file.fileno()

            def read(start: int) -> bytes:
                return _hash([memoryview(_read_all(descriptor, start, min(_BLOCK_BYTES, end - start)))])

            said = _read_all(descriptor, end, _SEAL_BYTES)
            if not said.startswith(_SEAL):
                raise SnapshotError(f"snapshot {path} is torn, or its end is damaged")
            if said != _seal_line(list(pool.map(read, range(0, end, _BLOCK_BYTES)))):
                raise SnapshotError(f"snapshot {path} is damaged: its checksum is wrong")
    except OSError as error:
        raise SnapshotError(f"snapshot {path} cannot be read: {error.strerror}") from error


def _opened(path: Path) -> IO[bytes]:
    try:
        return open_regular(path)
    except UserError as error:
        raise SnapshotError(f"snapshot {error}") from None


def _read_all(descriptor: int, start: int, size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return b"".join(parts)


def _hash(pieces: Iterable[memoryview]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _seal_line(digests: list[bytes]) -> bytes:
    return _SEAL + hashlib.sha256(b"".join(digests)).hexdigest().encode() + b"\n"


def _start_writeback(file: IO[bytes], start: int, end: int) -> None:
    """Let the kernel write what it has so far: all at the end, in the fsync, would take longer."""
    file.flush()
    # Also drops from the page cache what is on the disk already: a model's worth of it would crowd out others.
    os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def _blocks(pieces: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """Gather pieces into blocks of 16 MiB, cutting pieces where a block is full; the last one may be smaller."""
    block: list[memoryview] = []
    room = _BLOCK_BYTES
    for piece in pieces:
        rest = piece
        while len(rest):
            block.append(rest[:room])
            room -= len(block[-1])
            rest = rest[len(block[-1]) :]
            if room == 0:
                yield block
                block, room = [], _BLOCK_BYTES
    if block:
        yield block
