"""The bytes of a run file, as they are before the seal."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import h5py
import numpy as np

from esmpi.store.columns import write_columns
from esmpi.store.format import JSON_ATTRIBUTES, LOG_ONLY_GENERATIONS
from esmpi.store.generations import GenerationSegment, write_generations, write_rows
from esmpi.store.history import History
from esmpi.store.members import LOG_ONLY, Segment, seeds_by_config, write_members
from esmpi.store.seal import image_of, put_attribute


def image_of_run(
    run: History, segments: Sequence[Segment], generation_segments: Sequence[GenerationSegment]
) -> memoryview:
    """Return the bytes of a run file, yet to be sealed.

    Parameters
    ----------
    run : History
    segments : sequence of Segment
        Those that hold the members of the first generations; the file refers to them.
    generation_segments : sequence of GenerationSegment
        Those that hold the rows of the first generations.
    """
    return image_of(lambda file: _fill(file, run, segments, generation_segments))


def _fill(
    file: h5py.File, run: History, segments: Sequence[Segment], generation_segments: Sequence[GenerationSegment]
) -> None:
    log_only = run.attributes["log_only"]
    listed = {
        "segments": [asdict(segment) for segment in segments],
        "generation_segments": [asdict(segment) for segment in generation_segments],
    }
    for name, value in (run.attributes | listed).items():
        put_attribute(file.id, name, json.dumps(value) if name in JSON_ATTRIBUTES else _stored(value))
    frozen = generation_segments[-1].end if generation_segments else 0
    num_figures = sum(segment.num_figures for segment in generation_segments)
    figures = [] if log_only else run.figures[num_figures:]
    columns = LOG_ONLY_GENERATIONS if log_only else None
    write_generations(file, generation_segments, run.generations[frozen:], figures, columns)
    frozen = segments[-1].end if segments else 0
    write_members(file, segments, run.members[frozen:], _member_columns(run) if log_only else None)
    if run.profile is not None and not log_only:
        write_columns(file.create_group("profile"), run.profile)
    evaluations = file.create_group("evaluations")
    for suite, rows in run.evaluations.items():
        write_rows(evaluations.create_group(suite), rows)


def _member_columns(run: History) -> Sequence[str]:
    """Return the members' columns of a log-only file: without the seeds if the config leads to them."""
    by_config = seeds_by_config(run.attributes["config"], run.members)
    if by_config is None:
        return LOG_ONLY
    follow = all(np.array_equal(seeds, row["seed"]) for seeds, row in zip(by_config, run.members, strict=True))
    return ("coefficient",) if follow else LOG_ONLY


def _stored(value: Any) -> Any:
    return np.uint64(value) if isinstance(value, int) and value >= 2**31 else value
