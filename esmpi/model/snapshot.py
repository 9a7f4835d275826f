"""Read a snapshot: theta of one generation, in place of the base model's tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from esmpi.errors import UserError
from esmpi.hdf5 import check_hdf5, try_first
from esmpi.model.base_model import BaseModel, matrix_shape

if TYPE_CHECKING:
    import torch

SNAPSHOT_VERSION = 1


class SnapshotError(UserError):
    """A snapshot that must not be used."""


class Snapshot:
    """A snapshot file to read from: the same `read` as `esmpi.model.base_model.BaseModel`.

    Looks at the contents at once: check an unknown file's seal first.

    Raises
    ------
    SnapshotError
        If the file is not a snapshot, or has an unknown version.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            try_first(path)
            self._file = h5py.File(path, "r")
            check_hdf5(self._file, path.stat().st_size)
            self.attributes: dict[str, Any] = dict(self._file.attrs)
        except FileNotFoundError:
            raise SnapshotError(f"no snapshot {path}") from None
        except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
            raise SnapshotError(f"snapshot {path} cannot be read: {error}") from error
        found = self.attributes.get("snapshot_version")
        if found != SNAPSHOT_VERSION:
            self._file.close()
            raise SnapshotError(f"{path} has snapshot_version {found}; this esmpi reads {SNAPSHOT_VERSION}")

    def __enter__(self) -> "Snapshot":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    @property
    def generation(self) -> int:
        """Generation of theta."""
        return int(self.attributes["generation"])

    @property
    def theta_digest(self) -> int:
        """Digest of theta, as the run had it."""
        return int(self.attributes["theta_digest"])

    def read(self, name: str, rows: tuple[int, int], cols: tuple[int, int]) -> "torch.Tensor":
        """Return a rectangle of a tensor, seen as a matrix, as float32.

        Raises
        ------
        SnapshotError
            If there is no such tensor, or it cannot be read.
        """
        import torch

        try:
            stored = self._file[f"theta/{name}"]
            if stored.ndim == 2:
                part = stored[rows[0] : rows[1], cols[0] : cols[1]]
            else:
                part = stored[()].reshape(matrix_shape(stored.shape))[rows[0] : rows[1], cols[0] : cols[1]]
        except (KeyError, OSError, RuntimeError) as error:
            raise SnapshotError(f"snapshot {self.path}: {name} cannot be read: {error}") from error
        return torch.from_numpy(np.ascontiguousarray(part, np.float32))


@contextmanager
def opened(path: Path | None, base: BaseModel) -> "Iterator[Snapshot | BaseModel]":
    """Open the source of theta: a snapshot whose seal was checked, or the base model if there is none."""
    if path is None:
        yield base
        return
    with Snapshot(path) as snapshot:
        yield snapshot
