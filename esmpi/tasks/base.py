"""What a task is: it turns an example into a prompt and a completion into a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

Example = dict[str, Any]
"""One problem: a JSON object whose keys the task knows (`numbers`, `target`, ...)."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The `task` section of a config. A task with keys of its own subclasses it."""

    name: str
    """Which task: a name of `esmpi.tasks.TASKS`."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one completion is worth. Reward and accuracy are never mixed."""

    reward: float
    """What ES maximises; higher is better."""
    correct: bool
    """Whether the answer is right: accuracy is the share of completions with `correct`."""


class Task(ABC):
    """A set of problems with their reward. Tasks know neither MPI nor engines."""

    name: ClassVar[str]
    config_type: ClassVar[type[TaskConfig]]

    @abstractmethod
    def __init__(self, config: Any):
        """Take the task's section of the config, an instance of `config_type`."""

    @abstractmethod
    def prompt(self, example: Example) -> str:
        """Return the text that the engine completes."""

    @abstractmethod
    def score(self, completion: str, example: Example) -> Score:
        """Score one completion (the text after the prompt). Must not execute it."""

    @abstractmethod
    def check(self, example: Example) -> None:
        """Raise ValueError, saying what is wrong, if this task cannot use `example`."""

    @abstractmethod
    def key(self, example: Example) -> Hashable:
        """Return what makes two examples the same problem (train and held-out must not share one)."""

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        """Return a function that draws one example each time it is called.

        Raises
        ------
        ValueError
            If the task has no generator; its problems then come from files.
        """
        raise ValueError(f"task {self.name} cannot generate problems: give a .jsonl file as data.train and data.eval")
