"""Check that the parts of a run file, each well formed, fit together. A seal shows damage, but not a made-up file."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.config.problems import MOST_SUITES, is_suite_name
from esmpi.config.reader import check_stored
from esmpi.errors import UserError, said
from esmpi.store.generations import GenerationSegment
from esmpi.store.history import History
from esmpi.store.members import Segment

_KINDS = {
    **{"config": dict, "provenance": list, "tensors": list, "aliases": dict, "model_digest": int, "forks": list},
    **{"log_only": bool, "run_uuid": str, "creator": str, "data_digest": str, "task_digest": str},
    "suite_digests": dict,
    "events": list,
}
_FORK_KINDS = {"run_uuid": str, "generation": int, "path": str, "config": dict}
_EVENT_KINDS = {"generation": int, "action": str, "reason": str}
_MOST_RANKS = 100_000
"""Ten times what anybody has run; a report has an entry for each rank."""
_NAMED = (("run", "name"), ("es", "generations"), ("model", "path"), ("task", "name"))
"""The keys of the config that every run has; a command that needs others checks the config by itself."""


@contextmanager
def shown(*paths: Path) -> Iterator[None]:
    """Turn what fails on a file that is well formed, but that no esmpi wrote, into a UserError that names it.

    For what only shows runs: figures of a run that esmpi wrote are all there, whatever else is wrong.
    """
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{', '.join(map(str, paths))} cannot be shown: {said(error)}") from error


def check_contents(run: History) -> None:
    """Raise ValueError if the parts of a run file do not fit together."""
    if len(run.members) != run.num_generations:
        raise ValueError(f"{len(run.members)} rows of members for {run.num_generations} generations")
    for generation, made in enumerate(run.generations):
        if made["generation"] != generation:
            raise ValueError(f"row {generation} of the generations is of generation {made['generation']}")
        if not 0 <= made["shrink"] <= 1:
            raise ValueError(f"generation {generation} has shrink {made['shrink']}")
    _check_members(run.members)
    if run.profile is not None:
        _check_profile(run.profile, run.num_generations)
    for row in run.figures:
        _check_generation("further figures are", row, run.num_generations - 1)
    _check_evaluations(run)


def _check_profile(profile: np.ndarray, num_generations: int) -> None:
    generations = profile["generation"]
    if not generations.size or not (0 <= generations.min() == generations.max() < num_generations):
        raise ValueError("the profile is not of one generation")
    if not (profile["rank"].min() >= 0 and profile["rank"].max() < _MOST_RANKS):
        raise ValueError("the profile has impossible ranks")
    if not (profile["seconds_start"] <= profile["seconds_end"]).all():
        raise ValueError("the profile has phases that end before they begin")


def _check_evaluations(run: History) -> None:
    if len(run.evaluations) > MOST_SUITES:
        raise ValueError(f"{len(run.evaluations):,} suites; at most {MOST_SUITES} are possible")
    for suite, rows in run.evaluations.items():
        if not is_suite_name(suite):
            raise ValueError(f"{suite!r} cannot be the name of a suite")
        for row in rows:
            if not {"generation", "accuracy", "reward_mean"} <= row.keys():
                raise ValueError("an evaluation lacks a column")
            _check_generation("an evaluation is", row, run.num_generations)
        if any(row["generation"] >= after["generation"] for row, after in pairwise(rows)):
            raise ValueError(f"the evaluations of {suite} are not in the order of their generations")


def check_segments(
    segments: Sequence[Segment] | Sequence[GenerationSegment], name_of: Callable[[int, int], str]
) -> None:
    """Raise ValueError unless segments are files in the run directory that follow one another.

    Parameters
    ----------
    segments : sequence of Segment or of GenerationSegment
    name_of : callable
        Returns the path of a segment from its first generation and the one after its last.
    """
    end = 0
    for segment in segments:
        numbers = (
            *(segment.first, segment.end),
            segment.num_members if isinstance(segment, Segment) else segment.num_figures,
        )
        if not all(type(number) is int for number in numbers) or not end == segment.first < segment.end:
            raise ValueError(f"segment {segment.file!r} is of generations {segment.first} to {segment.end}")
        if segment.file != name_of(segment.first, segment.end):
            raise ValueError(f"a segment is called {segment.file!r}")
        end = segment.end


def _check_members(members: Sequence[np.ndarray]) -> None:
    for generation, row in enumerate(members):
        if row.size and not (0 <= row["rank"].min() <= row["rank"].max() < _MOST_RANKS):
            raise ValueError(f"generation {generation} has members of impossible ranks")
        if (row["tokens"] < 0).any() or not np.isfinite(row["coefficient"]).all():
            raise ValueError(f"generation {generation} has members with impossible numbers")


def _check_generation(what: str, row: dict[str, Any], last: int) -> None:
    if not (isinstance(row.get("generation"), int) and 0 <= row["generation"] <= last):
        raise ValueError(f"{what} of generation {row.get('generation')}")


def check_attributes(attributes: dict[str, Any]) -> None:
    """Raise ValueError unless the attributes of a run file are as esmpi writes them."""
    for name, kind in _KINDS.items():
        if not isinstance(attributes[name], kind):
            raise ValueError(f"attribute {name} is no {kind.__name__}")
    for section, key in _NAMED:
        keys = attributes["config"].get(section)
        if not isinstance(keys, dict) or keys.get(key) is None:
            raise ValueError(f"attribute config has no {section}.{key}")
    check_stored(attributes["config"])
    names = (*attributes["tensors"], *attributes["aliases"].values())
    if not all(isinstance(name, str) for name in names):
        raise ValueError("attributes tensors and aliases: not all of them are names")
    for start in attributes["provenance"]:
        _check_start(start)
    for fork in attributes["forks"]:
        if not isinstance(fork, dict) or not all(isinstance(fork.get(n), kind) for n, kind in _FORK_KINDS.items()):
            raise ValueError("attribute forks is no list of forks")
    for event in attributes["events"]:
        if not isinstance(event, dict) or not all(isinstance(event.get(n), kind) for n, kind in _EVENT_KINDS.items()):
            raise ValueError("attribute events is no list of events")
        # theta is only ever taken back: otherwise its path from the base model would have no end
        if event["action"] == "restore" and not (
            isinstance(event.get("to"), int) and 0 <= event["to"] <= event["generation"]
        ):
            raise ValueError(f"an event takes theta from generation {event['generation']} to {event.get('to')!r}")


def _check_start(start: Any) -> None:
    if not isinstance(start, dict) or not all(isinstance(start.get(name, {}), dict) for name in ("packages", "slurm")):
        raise ValueError("attribute provenance is no list of starts")
    ranks, began = start.get("ranks", 1), start.get("unix_time", 0.0)
    if not (type(ranks) is int and 1 <= ranks <= _MOST_RANKS):
        raise ValueError(f"attribute provenance has a start on {ranks!r} ranks")
    if type(began) not in (int, float) or not math.isfinite(began):
        raise ValueError(f"attribute provenance has a start at {began!r}")
