"""What a sink is: a place that draws figures over generations."""

import json
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.errors import UserError
from esmpi.files import open_regular


class Sink(ABC):
    """A place that draws figures over generations."""

    lacks_from: int | None = None
    """The first generation that the sink lacks, or may lack. `__init__` sets it; None is its `first`. From there on,
    what the run file has is written when the sink is opened: a start that was killed may have committed what it did not
    show, and a sink may be new to a run."""

    @abstractmethod
    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        """Open the sink.

        Parameters
        ----------
        directory : Path
            The run directory.
        attributes : mapping
            Those of the run file, such as `run_uuid` and `config`.
        first : int
            The generation that comes next. What an earlier start wrote from there on is not part of the run, and is
            to be dropped: evaluations of theta of this generation that are part of it are written again. A sink that
            sets `lacks_from` drops what it has from there on.
        """

    @abstractmethod
    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        """Add figures of a generation."""

    def write_members(  # noqa: B027  # most sinks draw figures alone
        self, generation: int, fitness: np.ndarray, samples: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add what is known of the members of a generation. A sink that shows neither does nothing.

        Parameters
        ----------
        generation : int
        fitness : (n,) ndarray of float64
            Of the members that have one.
        samples : sequence of mapping
            Completions that `log.samples` keeps, as docs/run-files.md describes them.
        """

    @abstractmethod
    def close(self) -> None:
        """Write what is still held back."""


def earlier_lines(path: Path) -> list[str]:
    """Return the lines that an earlier start wrote into a sink's file.

    Raises
    ------
    UserError
        If it is a pipe or a device: a run directory may come from a stranger.
    """
    try:
        with open_regular(path) as file:
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except UserError as error:
        raise UserError(f"log.sinks: {path.suffix[1:]} cannot be opened: {error}") from None


def first_gap(known: Container[int], first: int) -> int:
    """Return the first generation that is not known, at most `first`."""
    return next((generation for generation in range(first) if generation not in known), first)


def row_of_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a completion of a member as a row of a table: numbers and texts."""
    example = sample["example"]
    figures = ", ".join(f"{name} {value:.4g}" for name, value in sample["figures"].items())
    return {
        **{key: sample[key] for key in ("which", "member", "fitness")},
        "problem": example if isinstance(example, str) else json.dumps(example, ensure_ascii=False),
        **{key: sample[key] for key in ("prompt", "completion", "reward", "correct")},
        "parts of the reward": figures,
    }
