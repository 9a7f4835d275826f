"""The bytes of an HDF5 file in order, from arrays that are never copied: HDF5 only lays the file out.

HDF5 is given a file in memory and told to reserve room for every chunk and write nothing there. What it does write is
some kilobytes; the arrays' own bytes go in between.
"""

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from esmpi.store.seal import LIBVER

_CHUNK_BYTES = 4 * 2**20
_PAGE_BYTES = 4096


class _Sparse(io.RawIOBase):
    """A file in memory in which only pages that were written take room."""

    def __init__(self) -> None:
        super().__init__()
        self._pages: dict[int, bytearray] = {}
        self._position, self.end = 0, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + {0: 0, 1: self._position, 2: self.end}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            page, offset = divmod(self._position + done, _PAGE_BYTES)
            part = view[done : done + _PAGE_BYTES - offset]
            self._pages.setdefault(page, bytearray(_PAGE_BYTES))[offset : offset + len(part)] = part
            done += len(part)
        self._position += done
        self.end = max(self.end, self._position)
        return done

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            page, offset = divmod(self._position + done, _PAGE_BYTES)
            length = min(len(view) - done, _PAGE_BYTES - offset)
            found = self._pages.get(page)
            view[done : done + length] = found[offset : offset + length] if found else bytes(length)
            done += length
        self._position += done
        return done

    def truncate(self, size: int | None = None) -> int:
        self.end = self._position if size is None else size
        return self.end


_Extent = tuple[int, int, memoryview]
"""Where in the file a chunk is, its size in bytes, and its values (fewer bytes if it reaches beyond the tensor)."""


def lay_out(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> Iterator[memoryview]:
    """Yield the bytes of an HDF5 file, from the first to the last, in pieces.

    Parameters
    ----------
    arrays : mapping of name to array
        float32 and contiguous; data sets of the group `theta`. Not copied: the pieces are views of them.
    attributes : mapping
        Of the file, in types that h5py takes.
    """
    layout = _Sparse()
    extents: list[_Extent] = []
    with h5py.File(layout, "w", libver=LIBVER) as file:
        for name, value in attributes.items():
            file.attrs[name] = value
        group = file.create_group("theta")
        for name, array in arrays.items():
            extents += _lay_out_tensor(group, name, array)
    yield from _pieces(layout, sorted(extents, key=lambda extent: extent[0]))


def _lay_out_tensor(group: h5py.Group, name: str, array: np.ndarray) -> Iterator[_Extent]:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    # Room for all chunks now, and nothing written there.
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    matrix = array.reshape(array.shape[0] if array.ndim else 1, math.prod(array.shape[1:]))
    num_rows, row_bytes = len(matrix), matrix[:1].nbytes
    chunked = array.ndim > 0 and array.size > 0
    if chunked:
        num_chunks = -(-num_rows // max(1, _CHUNK_BYTES // row_bytes))
        rows = -(-num_rows // num_chunks)  # all alike, or the last would be mostly padding
        properties.set_chunk((rows, *array.shape[1:]))
    space = h5py.h5s.create_simple(array.shape) if array.ndim else h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=properties)
    if chunked:
        for i in range(dataset.get_num_chunks()):
            chunk = dataset.get_chunk_info(i)
            first = chunk.chunk_offset[0]
            yield chunk.byte_offset, chunk.size, _bytes_of(matrix[first : first + rows])
    elif array.size:
        yield dataset.get_offset(), array.nbytes, _bytes_of(matrix)


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.astype("<f4", copy=False).reshape(-1).data.cast("B")


def _pieces(layout: _Sparse, extents: Iterable[_Extent]) -> Iterator[memoryview]:
    """Yield the file from its first byte to its last."""

    def between(start: int, end: int) -> memoryview:
        layout.seek(start)
        return memoryview(layout.read(end - start))

    position = 0
    for offset, size, values in extents:
        yield between(position, offset)
        yield values
        yield memoryview(bytes(size - len(values)))
        position = offset + size
    yield between(position, layout.end)
