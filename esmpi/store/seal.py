"""Sealed HDF5 files: made in memory, with a checksum in front, so that damage is told before HDF5 meets it.

HDF5 lets a program keep bytes of its own before the data. There stands the checksum of the rest: the library itself
may loop for ever or crash on a damaged file.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import h5py

from esmpi.errors import UserError

USERBLOCK = 512
_SEAL = b"esmpi run file, HDF5 from byte 512 on, sha256 of that: "

# HDF5 before 1.8 keeps attributes under 64 KiB, which a provenance of many starts would outgrow.
LIBVER = ("v108", "v110")


def image_of(fill: Callable[[h5py.File], None]) -> bytes:
    """Return the bytes of a sealed HDF5 file; `fill` puts in the contents."""
    # Made in memory: HDF5 itself does not survive a full disk, it crashes the process on closing the file.
    image = io.BytesIO()
    with h5py.File(image, "w", libver=LIBVER, userblock_size=USERBLOCK) as file:
        fill(file)
    return sealed(image.getbuffer())


def sealed(image: memoryview) -> bytes:
    """Return a file's bytes with the checksum in front."""
    return _head(checksum(image)) + image[USERBLOCK:]


def checksum(image: bytes | memoryview) -> str:
    """Return the sha256, in hexadecimal, of what a seal covers."""
    return hashlib.sha256(memoryview(image)[USERBLOCK:]).hexdigest()


def read_sealed(path: Path) -> bytes:
    """Return a sealed file's bytes.

    Raises
    ------
    UserError
        If they are not what was written.
    OSError
        If the file cannot be read.
    """
    data = path.read_bytes()
    if not data.startswith(_SEAL):
        raise UserError(f"{path} is not a run file of esmpi, or its head is damaged")
    if data[:USERBLOCK] != _head(checksum(data)):
        raise UserError(f"{path} is damaged: its checksum is wrong. Take it from a backup")
    return data


def _head(digest: str) -> bytes:
    return (_SEAL + digest.encode() + b"\n").ljust(USERBLOCK, b"\0")
