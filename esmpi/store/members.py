"""The members' columns of a run file: plain data sets, or, once they are large, frozen segments and a tail.

A commit replaces the whole run file, which must not become slower as a run grows. So the members' rows in it are kept
under `SEGMENT_BYTES`: what would be more is first frozen into a segment, a sealed file of its own that never changes
again, and the run file then has virtual data sets over all segments and the tail. Plain h5py and h5ls see one (G, N)
table either way. HDF5 reads a segment that is missing as fill values; so the run file lists the checksums.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from esmpi.errors import UserError
from esmpi.es.population import ABSENT, plan
from esmpi.store.columns import describe, read_columns, write_columns
from esmpi.store.seal import checksum, image_of, read_sealed, seal

SEGMENT_BYTES = 4 * 2**20
"""The members' rows in a run file are at most about so large. A smaller run, and that is most, has no segment."""

MEMBER_DTYPE = np.dtype(
    [
        ("seed", np.uint64),
        ("sign", np.int8),
        ("status", np.uint8),
        ("fitness", np.float64),
        ("coefficient", np.float32),
        ("rank", np.int32),
        ("seconds", np.float32),
        ("tokens", np.int32),
    ]
)

LOG_ONLY = ("seed", "coefficient")
"""The columns from which, with the base model, theta can be rebuilt; seeds are left out where the config gives them."""

_FILL = {"status": ABSENT, "fitness": np.nan}


@dataclass(frozen=True)
class Segment:
    """A file of neighbouring generations' members."""

    file: str
    """Path, relative to the run file."""
    first: int
    """First generation."""
    end: int
    """The generation after the last."""
    num_members: int
    """Columns of its tables: the most members that one of its generations has."""
    sha256: str
    """Of the file from byte 512 on."""


def freeze(first: int, rows: Sequence[np.ndarray]) -> tuple[Segment, memoryview]:
    """Return the entry and the bytes of a segment of generations `first`, ...; they are to be written.

    The name says which generations, and the same ones make the same file: a segment that a killed writer left is
    overwritten by itself.
    """
    table = padded(rows)
    image = image_of(lambda file: write_columns(file, table))
    seal(image)
    end = first + len(rows)
    return Segment(f"members/{first:06d}-{end - 1:06d}.h5", first, end, table.shape[1], checksum(image)), image


def read_segment(run_file: Path, segment: Segment) -> list[np.ndarray]:
    """Return a segment's rows, one array a generation.

    Raises
    ------
    UserError
        If the file is missing, damaged, or another one than the run file means.
    """
    path = run_file.parent / segment.file
    try:
        data = read_sealed(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {run_file} has the members of some generations there") from None
    if checksum(data) != segment.sha256:
        raise UserError(f"{path} is not the file that {run_file} means: its checksum is another one")
    with h5py.File(io.BytesIO(data), "r") as file:
        table = read_columns(file, MEMBER_DTYPE)
    if table.shape != (segment.end - segment.first, segment.num_members):
        raise UserError(f"{path} has a table of shape {table.shape}, which is not what {run_file} means")
    return rows_of(table)


def write_members(
    file: h5py.File, segments: Sequence[Segment], tail: Sequence[np.ndarray], columns: Sequence[str] | None = None
) -> None:
    """Write `/members`: of the tail alone, or virtual over the segments and `/tail`."""
    table = padded(tail)
    if not segments:
        write_columns(file.create_group("members"), table, columns)
        return
    write_columns(file.create_group("tail"), table)
    first = segments[-1].end
    width = max(table.shape[1], *(segment.num_members for segment in segments))
    members = file.create_group("members")
    for name in MEMBER_DTYPE.names or ():
        dtype = MEMBER_DTYPE[name]
        layout = h5py.VirtualLayout((first + len(table), width), dtype)
        for segment in segments:
            shape = (segment.end - segment.first, segment.num_members)
            source = h5py.VirtualSource(segment.file, name, shape, dtype)
            layout[segment.first : segment.end, : segment.num_members] = source
        if table.size:
            source = h5py.VirtualSource(".", f"tail/{name}", table.shape, dtype)
            layout[first : first + len(table), : table.shape[1]] = source
        describe(members.create_virtual_dataset(name, layout, fillvalue=_FILL.get(name, 0)).id, name)


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return generations' members as one (G, N) table; shorter rows are filled up with ABSENT members."""
    width = max((len(row) for row in rows), default=0)
    absent = np.zeros(width, MEMBER_DTYPE)
    for name, value in _FILL.items():
        absent[name] = value
    # by their bytes: NumPy copies records field by field, thirty times as slowly
    parts: list[np.ndarray] = []
    for row in rows:
        parts += [row] if len(row) == width else [row, absent[len(row) :]]
    whole = bytearray().join(np.ascontiguousarray(part).data for part in parts)
    return np.frombuffer(whole, MEMBER_DTYPE).reshape(len(rows), width)


def rows_of(table: np.ndarray) -> list[np.ndarray]:
    """Return the members of each generation, without those that are only padding."""
    return [row[row["status"] != ABSENT] for row in table]


def seeds_by_config(config: dict[str, Any], rows: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Return the seeds that a config leads to for members' rows, (N,) uint64 a generation; None if it says nothing."""
    try:
        run_seed, antithetic = config["run"]["seed"], config["es"]["antithetic"]
    except KeyError:
        return None
    return [plan(run_seed, generation, len(row), antithetic).seeds for generation, row in enumerate(rows)]
