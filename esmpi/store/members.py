"""The members' columns of a run file: plain data sets, or, once they are large, frozen segments and a tail.

A commit replaces the whole run file, and must not become slower as a run grows. So the run file itself keeps at most
`SEGMENT_BYTES` of members' rows. Older rows are frozen into segments, sealed files that never change again, and the
run file has virtual data sets over all segments and the tail. Plain h5py and h5ls see one (G, N) table either way.
HDF5 reads a missing segment as fill values without an error, so the run file lists the segments' checksums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from esmpi.errors import UserError
from esmpi.es.member_columns import ABSENT, MEMBER_DEFAULTS, MEMBER_DTYPE, STORED
from esmpi.es.population import plan
from esmpi.hdf5 import opened
from esmpi.store.columns import Part, read_columns, write_columns, write_virtual
from esmpi.store.seal import checksum, image_of, read_sealed, seal

SEGMENT_BYTES = 4 * 2**20
"""The most that the members' rows in a run file take, roughly. Most runs are smaller, and have no segment."""

LOG_ONLY = ("seed", "coefficient")
"""The columns from which, with the base model, theta can be rebuilt; seeds are left out where the config gives them."""

_FILL = {column.name: column.absent for column in STORED if column.absent != 0}


@dataclass(frozen=True)
class Segment:
    """A file with the members of consecutive generations."""

    file: str
    """Path, relative to the run file."""
    first: int
    """First generation."""
    end: int
    """The generation after the last."""
    num_members: int
    """Width of its tables: the most members that one of its generations has."""
    sha256: str
    """Checksum of the file from byte 512 on."""


def freeze(first: int, rows: Sequence[np.ndarray]) -> tuple[Segment, memoryview]:
    """Make a segment, which is not written yet.

    The name says which generations it holds, and the same generations make the same file. So a segment that a killed
    writer left behind is overwritten by the same bytes.

    Parameters
    ----------
    first : int
        The first generation.
    rows : sequence of (N,) ndarray
        The members of the generations, of MEMBER_DTYPE.

    Returns
    -------
    Segment
        Its entry in the run file.
    memoryview
        The bytes of the file.
    """
    table = padded(rows)
    image = image_of(lambda file: write_columns(file, table))
    seal(image)
    end = first + len(rows)
    return Segment(segment_file(first, end), first, end, table.shape[1], checksum(image)), image


def segment_file(first: int, end: int) -> str:
    """Return the path of a segment, relative to the run file."""
    return f"members/{first:06d}-{end - 1:06d}.h5"


def read_segment(run_file: Path, segment: Segment) -> list[np.ndarray]:
    """Return the members in a segment, one array for each generation.

    Parameters
    ----------
    run_file : Path
        The run file that the segment belongs to.
    segment : Segment

    Raises
    ------
    UserError
        If the file is missing, damaged, or not the one that the run file lists.
    """
    path = run_file.parent / segment.file
    with opened(path, read_listed(run_file, segment.file, segment.sha256)) as file:
        table = read_columns(file, MEMBER_DTYPE, defaults=MEMBER_DEFAULTS)
    if table.shape != (segment.end - segment.first, segment.num_members):
        raise UserError(f"{path} has a table of shape {table.shape}, which is not what {run_file} means")
    return rows_of(table)


def read_listed(run_file: Path, name: str, sha256: str) -> bytes:
    """Return the bytes of a segment that a run file lists with its checksum; raise UserError as `read_segment` does."""
    path = run_file.parent / name
    try:
        data = read_sealed(path, inside=run_file.parent)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {run_file} has the rows of some generations there") from None
    if checksum(data) != sha256:
        raise UserError(f"{path} is not the file that {run_file} means: its checksum is another one")
    return data


def write_members(
    file: h5py.File, segments: Sequence[Segment], tail: Sequence[np.ndarray], columns: Sequence[str] | None = None
) -> None:
    """Write the group `/members`: plain data sets, or virtual ones over the segments and the group `/tail`.

    Parameters
    ----------
    file : h5py.File
    segments : sequence of Segment
        Those that hold the members of the first generations.
    tail : sequence of (N,) ndarray
        The members of the generations that are in no segment, of MEMBER_DTYPE.
    columns : sequence of str, optional
        The columns to write, for a file without segments; by default all.
    """
    table = padded(tail)
    if not segments:
        write_columns(file.create_group("members"), table, columns)
        return
    write_columns(file.create_group("tail"), table)
    first = segments[-1].end
    width = max(table.shape[1], *(segment.num_members for segment in segments))
    members = file.create_group("members")
    for name in MEMBER_DTYPE.names or ():
        parts: list[Part] = [
            (segment.file, name, segment.first, (segment.end - segment.first, segment.num_members))
            for segment in segments
        ]
        if table.size:
            parts.append((".", f"tail/{name}", first, table.shape))
        whole = (first + len(table), width)
        write_virtual(members, name, MEMBER_DTYPE[name], _FILL.get(name, 0), whole, parts)


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return the members of several generations as one (G, N) table, with shorter rows padded with ABSENT members."""
    width = max((len(row) for row in rows), default=0)
    absent = np.zeros(width, MEMBER_DTYPE)
    for name, value in _FILL.items():
        absent[name] = value
    # joined as bytes: NumPy copies records field by field, which is thirty times as slow
    parts: list[np.ndarray] = []
    for row in rows:
        parts += [row] if len(row) == width else [row, absent[len(row) :]]
    whole = bytearray().join(np.ascontiguousarray(part).data for part in parts)
    return np.frombuffer(whole, MEMBER_DTYPE).reshape(len(rows), width)


def rows_of(table: np.ndarray) -> list[np.ndarray]:
    """Return the members of each generation in a (G, N) table, without the padding."""
    return [row[row["status"] != ABSENT] for row in table]


def seeds_by_config(config: dict[str, Any], rows: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Return the seeds that follow from a config.

    Parameters
    ----------
    config : dict
    rows : sequence of (N,) ndarray
        The members of each generation; only their number counts.

    Returns
    -------
    list of (N,) uint64 ndarray, or None
        None if the config does not have the keys that seeds depend on.
    """
    try:
        run_seed, antithetic = config["run"]["seed"], config["es"]["antithetic"]
    except KeyError:
        return None
    return [plan(run_seed, generation, len(row), antithetic).seeds for generation, row in enumerate(rows)]
