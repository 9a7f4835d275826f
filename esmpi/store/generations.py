"""The generations' columns of a run file: plain data sets, or, once they are large, frozen segments and a tail.

This is for the rows of generations, and of the further figures of their rewards, what `esmpi.store.members` is for the
rows of members: a commit writes the tail, and so it costs the same however long the run is. The lists of segments are
apart because members take far more room: a segment has some thousand generations here, and may have a dozen there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from esmpi.errors import UserError
from esmpi.hdf5 import opened
from esmpi.store.columns import Part, check_column, read_columns, write_columns, write_virtual
from esmpi.store.format import GENERATION_DEFAULTS, GENERATION_DTYPE
from esmpi.store.members import read_listed
from esmpi.store.seal import checksum, image_of, put, put_attribute, seal

SEGMENT_BYTES = 2**20
"""The most that the rows of generations in a run file take, roughly: those of 6,000 generations."""

_UNITS = {"seconds": "s", "tokens_mean": "tokens"}


@dataclass(frozen=True)
class GenerationSegment:
    """A file with the rows of consecutive generations."""

    file: str
    """Path, relative to the run file."""
    first: int
    """First generation."""
    end: int
    """The generation after the last."""
    sha256: str
    """Checksum of the file from byte 512 on."""
    num_figures: int
    """How many of the generations have further figures."""
    figures: Sequence[str]
    """Names of these figures, and `generation`; none if there are no such rows."""


def freeze(
    first: int, rows: Sequence[np.void], figures: Sequence[dict[str, Any]]
) -> tuple[GenerationSegment, memoryview]:
    """Make a segment of generations, as `esmpi.store.members.freeze` does of members.

    Parameters
    ----------
    first : int
        The first generation.
    rows : sequence of void
        Of GENERATION_DTYPE.
    figures : sequence of dict
        The rows of further figures of these generations.
    """

    def fill(file: h5py.File) -> None:
        write_columns(file, np.array(rows, GENERATION_DTYPE))
        if figures:
            write_rows(file.create_group("figures"), figures)

    image = image_of(fill)
    seal(image)
    end = first + len(rows)
    return (
        GenerationSegment(segment_file(first, end), first, end, checksum(image), len(figures), names_of(figures)),
        image,
    )


def segment_file(first: int, end: int) -> str:
    """Return the path of a segment, relative to the run file."""
    return f"generations/{first:06d}-{end - 1:06d}.h5"


def read_segment(run_file: Path, segment: GenerationSegment) -> tuple[list[np.void], list[dict[str, Any]]]:
    """Return the rows of a segment's generations, and those of their further figures.

    Raises
    ------
    UserError
        If the file is missing, damaged, or not the one that the run file lists.
    """
    path = run_file.parent / segment.file
    with opened(path, read_listed(run_file, segment.file, segment.sha256)) as file:
        table = read_columns(file, GENERATION_DTYPE, ndim=1, defaults=GENERATION_DEFAULTS)
        figures = read_rows(file["figures"]) if "figures" in file else []
    if len(table) != segment.end - segment.first or len(figures) != segment.num_figures:
        raise UserError(f"{path} has {len(table)} generations, which is not what {run_file} means")
    return list(table), figures


def write_generations(
    file: h5py.File,
    segments: Sequence[GenerationSegment],
    tail: Sequence[np.void],
    figures: Sequence[dict[str, Any]],
    columns: Sequence[str] | None = None,
) -> None:
    """Write the groups `/generations` and `/figures`: plain data sets, or virtual ones over segments and tails.

    Parameters
    ----------
    file : h5py.File
    segments : sequence of GenerationSegment
        Those that hold the first generations.
    tail : sequence of void
        The rows of the other generations.
    figures : sequence of dict
        The rows of further figures of the other generations.
    columns : sequence of str, optional
        The columns to write, for a file without segments; by default all.
    """
    table = np.array(tail, GENERATION_DTYPE)
    if not segments:
        write_columns(file.create_group("generations"), table, columns)
        if figures:
            write_rows(file.create_group("figures"), figures)
        return
    write_columns(file.create_group("tail_generations"), table)
    write_rows(file.create_group("tail_figures"), figures)
    first = segments[-1].end
    group = file.create_group("generations")
    for name in GENERATION_DTYPE.names or ():
        parts: list[Part] = [(part.file, name, part.first, (part.end - part.first,)) for part in segments]
        if tail:
            parts.append((".", f"tail_generations/{name}", first, (len(table),)))
        fill = GENERATION_DEFAULTS.get(name, 0)
        write_virtual(group, name, GENERATION_DTYPE[name], fill, (first + len(table),), parts)
    _write_figures(file, segments, figures)


def _write_figures(file: h5py.File, segments: Sequence[GenerationSegment], tail: Sequence[dict[str, Any]]) -> None:
    whole = sum(segment.num_figures for segment in segments) + len(tail)
    in_tail = names_of(tail)
    if whole == 0:
        return
    group = file.create_group("figures")
    for name in dict.fromkeys(name for names in (*(part.figures for part in segments), in_tail) for name in names):
        parts: list[Part] = []
        first = 0
        for segment in segments:
            if name in segment.figures:
                parts.append((segment.file, f"figures/{name}", first, (segment.num_figures,)))
            first += segment.num_figures
        if name in in_tail:
            parts.append((".", f"tail_figures/{name}", first, (len(tail),)))
        is_number = name == "generation"
        dtype = np.dtype(np.int64 if is_number else np.float64)
        write_virtual(group, name, dtype, 0 if is_number else math.nan, (whole,), parts)


def names_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the columns that rows have, in the order in which they appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def write_rows(group: h5py.Group, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as a data set for each of their columns; a row that lacks one has NaN there."""
    for name in names_of(rows):
        dataset = put(group, name, np.array([row.get(name, math.nan) for row in rows]))
        if name in _UNITS:
            put_attribute(dataset, "unit", _UNITS[name])


def read_rows(group: h5py.Group) -> list[dict[str, Any]]:
    """Return what `write_rows` wrote; raise ValueError if it is anything else."""
    if not len(group):
        return []
    shape = group["generation"].shape
    for dataset in group.values():
        check_column(dataset, shape, 1)
        if dataset.dtype.kind not in "biuf":
            raise ValueError(f"{dataset.name} is no column of numbers")
    figures = {name: dataset[()].tolist() for name, dataset in group.items()}
    return [{name: column[i] for name, column in figures.items()} for i in range(shape[0])]
