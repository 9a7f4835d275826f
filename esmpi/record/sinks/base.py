"""What a sink is: a place that draws figures over generations."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Sink(ABC):
    """A place that draws figures over generations."""

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
            to be dropped: evaluations of theta of this generation that are part of it are written again.
        """

    @abstractmethod
    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        """Add figures of a generation."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still held back."""
