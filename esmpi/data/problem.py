"""What a problem is, and the protocol of what makes problems."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

Example = dict[str, Any]
"""One problem: a JSON object whose keys the task knows (`numbers`, `target`, ...)."""

Part = Literal["train", "eval"]

Prompt = str | list[dict[str, str]]
"""The text that the engine completes, or messages (`role`, `content`) for the model's own chat template."""


class ProblemSource(Protocol):
    """Makes problems and tells them apart: a task. See `esmpi.tasks.base.Task` for what each method does."""

    @property
    def name(self) -> str:
        """Name of the task, for messages."""

    def check(self, example: Example) -> None:
        """Raise ValueError if `example` cannot be used."""

    def key(self, example: Example) -> Hashable:
        """Return what makes two examples the same problem."""

    def problems(self, part: Part) -> list[Example]:
        """Return the problems that come with the task; ValueError without any."""

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        """Return a function that draws an example; ValueError if there is none."""
