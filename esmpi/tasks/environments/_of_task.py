"""Environments whose problems are those of a task."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

from esmpi.data.problem import Example
from esmpi.tasks.base import Task
from esmpi.tasks.environments.base import Environment

if TYPE_CHECKING:
    import numpy as np


class OfTask(Environment):
    """An environment that has the problems of `task`, which a subclass sets."""

    task: Task

    def check(self, example: Example) -> None:
        self.task.check(example)

    def key(self, example: Example) -> Hashable:
        return self.task.key(example)

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        return self.task.generator(rng)


def keys_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters, in which ranges are lists, as keys of a task's config, where they are tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in params.items()}
