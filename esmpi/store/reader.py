"""Read a run file, of this version or an older one."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from esmpi.errors import UserError
from esmpi.es.member_columns import MEMBER_DEFAULTS, MEMBER_DTYPE
from esmpi.hdf5 import opened
from esmpi.masking import masked
from esmpi.noise import NOISE_VERSIONS
from esmpi.store import generations
from esmpi.store.columns import read_columns
from esmpi.store.format import (
    FORMAT_VERSION,
    GENERATION_DEFAULTS,
    GENERATION_DTYPE,
    JSON_ATTRIBUTES,
    LOG_ONLY_GENERATIONS,
    PROFILE_DTYPE,
)
from esmpi.store.generations import GenerationSegment, read_rows
from esmpi.store.history import History
from esmpi.store.members import (
    LOG_ONLY,
    Segment,
    read_segment,
    rows_of,
    seeds_by_config,
    segment_file,
)
from esmpi.store.seal import read_sealed
from esmpi.store.validation import check_attributes, check_contents, check_segments

H = TypeVar("H", bound=History)

_VIRTUAL = {"members": "tail", "generations": "tail_generations", "figures": "tail_generations"}


def read_run(
    path: Path,
    make: Callable[[Path, dict[str, Any]], H],
    members_of: Callable[[Path, Segment], list[np.ndarray]] = read_segment,
) -> tuple[H, list[Segment], list[GenerationSegment]]:
    """Read a run file and the segments that belong to it.

    Parameters
    ----------
    path : Path
    make : callable
        Makes the history from its path and attributes.
    members_of : callable
        Reads a segment; `without_segment` leaves it unread, for who needs only the last members.

    Returns
    -------
    History
    list of Segment
        The segments that hold the members of the first generations.
    list of GenerationSegment
        The segments that hold the rows of the first generations.

    Raises
    ------
    UserError
        If the file is missing, damaged, no run file, or of a version that this esmpi does not know.
    """
    try:
        data = read_sealed(path)
        # these are virtual data sets once there are segments; here they are read from the segments themselves
        with opened(path, data, virtual=_VIRTUAL) as file:
            run = make(path, _read_attributes(path, file))
            check_attributes(run.attributes)
            segments = [Segment(**entry) for entry in run.attributes.pop("segments")]
            check_segments(segments, segment_file)
            frozen = [GenerationSegment(**entry) for entry in run.attributes.pop("generation_segments")]
            check_segments(frozen, generations.segment_file)
            for listed, tail in ((segments, "tail"), (frozen, "tail_generations")):
                if bool(listed) != (tail in file):
                    raise ValueError(f"there are segments, but no group {tail}, or the other way round")
            log_only = run.attributes["log_only"]
            run.members = _read_members(run, file, segments, members_of)
            for segment in frozen:
                rows, figures = generations.read_segment(path, segment)
                run.generations += rows
                run.figures += figures
            run.generations += list(_read_generations(file, log_only, bool(frozen)))
            for suite, group in file["evaluations"].items():
                run.evaluations[suite] = read_rows(group)
            if (name := "tail_figures" if frozen else "figures") in file:
                run.figures += read_rows(file[name])
            if "profile" in file:
                run.profile = read_columns(file["profile"], PROFILE_DTYPE, ndim=1)
            check_contents(run)
            return run, segments, frozen
    except FileNotFoundError:
        raise UserError(f"no run file {path}: name the run's directory") from None
    # all that h5py and json raise
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{path} cannot be read as a run file: {error}") from error


def without_segment(_run_file: Path, segment: Segment) -> list[np.ndarray]:
    """Return no members for each generation of a segment, whose file is not opened."""
    return [np.empty(0, MEMBER_DTYPE)] * (segment.end - segment.first)


def _read_attributes(path: Path, file: h5py.File) -> dict[str, Any]:
    """Return the attributes as plain types, those of an older version brought up to this one."""
    stored = dict(file.attrs)
    for name, known in (
        ("format_version", range(1, FORMAT_VERSION + 1)),
        ("noise_version", NOISE_VERSIONS),
    ):
        if name not in stored:
            raise UserError(f"{path} is not a run file of esmpi: it has no attribute {name}")
        if stored[name] not in known:
            reads = " and ".join(map(str, known))
            raise UserError(f"{path} has {name} {stored[name]}; this esmpi reads {reads}")
    attributes = {
        name: json.loads(value) if name in JSON_ATTRIBUTES else value.item() if isinstance(value, np.generic) else value
        for name, value in stored.items()
    }
    # older versions of esmpi recorded what they were given
    attributes |= {name: masked(attributes[name]) for name in ("config", "provenance", "forks") if name in attributes}
    attributes = {
        "task_digest": "",
        "suite_digests": {},
        "events": [],
        "generation_segments": [],
    } | attributes  # an esmpi of before had none
    if attributes["format_version"] == 1:
        attributes |= {"forks": [], "segments": [], "log_only": False}
    return attributes | {"format_version": FORMAT_VERSION}


def _read_members(
    run: History,
    file: h5py.File,
    segments: Sequence[Segment],
    members_of: Callable[[Path, Segment], list[np.ndarray]],
) -> list[np.ndarray]:
    columns = [name for name in LOG_ONLY if name in file["members"]] if run.attributes["log_only"] else None
    members = [row for segment in segments for row in members_of(run.path, segment)]
    group = file["tail" if segments else "members"]
    members += rows_of(read_columns(group, MEMBER_DTYPE, columns, defaults=MEMBER_DEFAULTS))
    if columns == ["coefficient"]:
        for row, seeds in zip(members, seeds_by_config(run.attributes["config"], members) or (), strict=True):
            row["seed"] = seeds
    return members


def _read_generations(file: h5py.File, log_only: bool, in_tail: bool) -> np.ndarray:
    names: Sequence[str] = LOG_ONLY_GENERATIONS if log_only else GENERATION_DTYPE.names or ()
    if file.attrs["format_version"] > 1:
        group = file["tail_generations" if in_tail else "generations"]
        return read_columns(group, GENERATION_DTYPE, names, ndim=1, defaults=GENERATION_DEFAULTS)
    names = [name for name in names if not name.startswith("num_score_")]
    rows = read_columns(file["generations"], GENERATION_DTYPE, names, ndim=1, defaults=GENERATION_DEFAULTS)
    rows["num_score_raised"] = file["generations/num_score_failures"][()]  # version 1 told no kinds apart
    return rows
