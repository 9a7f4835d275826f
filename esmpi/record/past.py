"""What a run file has of a run, as its sinks are told of it: figures of generations and evaluations, in their order."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.errors import UserError
from esmpi.es.member_columns import OK
from esmpi.es.population import idle_seconds
from esmpi.files import read_json_lines
from esmpi.store.run_file import RunFile, member_samples_path

GENERATION = "generation"
"""The group of a generation's figures; those of an evaluation have the suite's name."""
_NOT_SHOWN = ("generation", "theta_digest")
_OF_SAMPLES = {"which", "member", "fitness", "example", "prompt", "completion", "reward", "correct", "figures"}
"""What a line of a file of samples has."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """A generation, or an evaluation."""

    group: str
    generation: int
    figures: Mapping[str, float]
    fitness: np.ndarray | None = None
    """(n,) float64, of the members that have one; None for an evaluation."""
    samples: Sequence[Mapping[str, Any]] = ()
    """Completions of members that `log.samples` kept."""


def past_of(run: RunFile, first: int) -> Iterator[Past]:
    """Yield what a run file has from a generation on: evaluations of theta, and then the generation that follows."""
    evaluated: dict[int, list[Past]] = {}
    for suite, rows in run.evaluations.items():
        for row in rows:
            figures = {name: float(value) for name, value in row.items() if not math.isnan(value)}
            generation = int(figures.pop("generation"))
            evaluated.setdefault(generation, []).append(Past(group=suite, generation=generation, figures=figures))
    for generation in range(first, max([run.num_generations, *evaluated]) + 1):
        yield from evaluated.get(generation, ())
        if generation < run.num_generations:
            yield _generation(run, generation)


def figures_of(row: np.void, further: Mapping[str, float], idle_s: float) -> dict[str, float]:
    """Return what sinks show of a generation.

    Parameters
    ----------
    row : void
        Of GENERATION_DTYPE.
    further : mapping of str to float
        Further numbers of the members' rewards.
    idle_s : float
        How long the ranks waited for the busiest one, on the average.
    """
    figures = {**further, **{name: float(row[name]) for name in row.dtype.names or () if name not in _NOT_SHOWN}}
    figures["seconds_idle"] = idle_s
    return {name: value for name, value in figures.items() if not math.isnan(value) or name == "fitness_mean"}


def _generation(run: RunFile, generation: int) -> Past:
    row, members = run.generations[generation], run.members[generation]
    idle = idle_seconds(members["rank"], members["seconds"], run.num_ranks(generation))
    further = dict(next((one for one in run.figures if one["generation"] == generation), {}))
    further.pop("generation", None)
    return Past(
        group=GENERATION,
        generation=generation,
        figures=figures_of(
            row, {name: value for name, value in further.items() if name != "generation"}, float(idle.mean())
        ),
        fitness=members["fitness"][members["status"] == OK],
        samples=_read_lines(member_samples_path(run.path, generation)),
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return JSON lines, none if the file is not there or is not as esmpi writes it: sinks are for watching alone."""
    try:
        lines = list(read_json_lines(path, inside=path.parents[1]))
    except (OSError, UserError):
        return []
    return lines if all(map(_is_sample, lines)) else []


def _is_sample(line: Any) -> bool:
    if not (isinstance(line, dict) and line.keys() >= _OF_SAMPLES and isinstance(line["figures"], dict)):
        return False
    return all(map(_is_number, line["figures"].values()))


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
