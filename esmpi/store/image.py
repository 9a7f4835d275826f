"""The bytes of a run file, as they are before the seal."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import h5py
import numpy as np

from esmpi.store.columns import write_columns
from esmpi.store.format import GENERATION_DTYPE, JSON_ATTRIBUTES, LOG_ONLY_GENERATIONS
from esmpi.store.history import History
from esmpi.store.members import LOG_ONLY, Segment, seeds_by_config, write_members
from esmpi.store.seal import image_of, put, put_attribute

_EVALUATION_UNITS = {"seconds": "s", "tokens_mean": "tokens"}


def image_of_run(run: History, segments: Sequence[Segment]) -> memoryview:
    """Return the bytes of a run file, yet to be sealed.

    Parameters
    ----------
    run : History
    segments : sequence of Segment
        Those that hold the members of the first generations; the file refers to them.
    """
    return image_of(lambda file: _fill(file, run, segments))


def _fill(file: h5py.File, run: History, segments: Sequence[Segment]) -> None:
    log_only = run.attributes["log_only"]
    for name, value in (run.attributes | {"segments": [asdict(segment) for segment in segments]}).items():
        put_attribute(file.id, name, json.dumps(value) if name in JSON_ATTRIBUTES else _stored(value))
    table = np.array(run.generations, GENERATION_DTYPE)
    write_columns(file.create_group("generations"), table, LOG_ONLY_GENERATIONS if log_only else None)
    frozen = segments[-1].end if segments else 0
    write_members(file, segments, run.members[frozen:], _member_columns(run) if log_only else None)
    if run.profile is not None and not log_only:
        write_columns(file.create_group("profile"), run.profile)
    if run.figures and not log_only:
        _put_rows(file.create_group("figures"), run.figures)
    evaluations = file.create_group("evaluations")
    for suite, rows in run.evaluations.items():
        _put_rows(evaluations.create_group(suite), rows)


def _put_rows(group: h5py.Group, rows: Sequence[dict[str, Any]]) -> None:
    for name in dict.fromkeys(name for row in rows for name in row):
        dataset = put(group, name, np.array([row.get(name, math.nan) for row in rows]))
        if name in _EVALUATION_UNITS:
            put_attribute(dataset, "unit", _EVALUATION_UNITS[name])


def _member_columns(run: History) -> Sequence[str]:
    """Return the members' columns of a log-only file: without the seeds if the config leads to them."""
    by_config = seeds_by_config(run.attributes["config"], run.members)
    if by_config is None:
        return LOG_ONLY
    follow = all(np.array_equal(seeds, row["seed"]) for seeds, row in zip(by_config, run.members, strict=True))
    return ("coefficient",) if follow else LOG_ONLY


def _stored(value: Any) -> Any:
    return np.uint64(value) if isinstance(value, int) and value >= 2**31 else value
