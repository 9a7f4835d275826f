"""What a task is: it turns an example into a prompt and a completion into a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from esmpi.config.sections import TaskConfig
from esmpi.data.problem import Example, Part, Prompt
from esmpi.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one completion is worth. Reward and accuracy are never mixed."""

    reward: float
    """What ES maximises; higher is better."""
    correct: bool
    """Whether the answer is right: accuracy is the share of completions with `correct`."""
    parsed: bool = True
    """False if no answer could be read from the completion, right or wrong."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that are logged; a task gives the same names for each completion."""


class Task(ABC):
    """A set of problems with their reward. Tasks know neither MPI nor engines."""

    name: ClassVar[str]
    """What `task.name` of the config says, or the form of it."""
    config_type: ClassVar[type[TaskConfig]]
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 1024, "temperature": 0.0}
    """Keys of the config's section `sampling` for what the config leaves open."""
    source: bytes = b""
    """The program, of the user's own, that computes the rewards; empty for a task of an installed package."""

    @abstractmethod
    def __init__(self, config: Any):
        """Take the task's section of the config, an instance of `config_type`."""

    @classmethod
    def goes_by(cls, name: str) -> bool:
        """Return whether a `task.name` of the config means this task."""
        return name == cls.name

    @classmethod
    def make(cls, config: Any, source: bytes) -> Task:
        """Return the task of a config; `source` is what another process has read as `Task.source`."""
        return cls(config)

    @abstractmethod
    def prompt(self, example: Example) -> Prompt:
        """Return what the engine completes."""

    @abstractmethod
    def score(self, completion: str, example: Example) -> Score:
        """Score one completion (the text after the prompt). Must not execute it."""

    @abstractmethod
    def check(self, example: Example) -> None:
        """Raise ValueError, saying what is wrong, if this task cannot use `example`."""

    @abstractmethod
    def key(self, example: Example) -> Hashable:
        """Return what makes two examples the same problem (train and held-out must not share one)."""

    def answer(self, completion: str, example: Example) -> str | None:
        """Return the answer that a completion gives, None if none can be read; called after `score`, where it runs.

        Completions vote by it, in `es.fitness: majority` and in ensembles. So equal answers must be equal texts, and
        completions with equal answers must be equally right.
        """
        raise NotImplementedError

    @property
    def has_answers(self) -> bool:
        """Whether the task says what a completion's answer is."""
        return type(self).answer is not Task.answer

    def problems(self, part: Part) -> list[Example]:
        """Return the problems of a part that come with the task (`data.train: builtin`).

        Raises
        ------
        ValueError
            If the task has none.
        """
        raise ValueError(f"task {self.name} comes with no problems of its own: name a file as data.{part}")

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        """Return a function that draws one example each time it is called.

        Raises
        ------
        ValueError
            If the task has no generator; its problems then come from files.
        """
        raise ValueError(
            f"task {self.name} cannot generate problems: name files as data.train and data.eval, or `builtin` for the "
            f"problems that come with a task"
        )


def load_extra(module: str, extra: str) -> ModuleType:
    """Import a library that a task needs and that is not one of esmpi's own requirements.

    Raises
    ------
    UserError
        If it is not installed, naming the extra that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{error}: this task needs {module}: pip install 'esmpi[{extra}]'") from None
