"""The tasks that esmpi knows, by name. Importing them is cheap: each loads its libraries when it is made."""

from esmpi.data.problem import Example, Part, Prompt
from esmpi.tasks.arc import Arc
from esmpi.tasks.base import Score, Task, TaskConfig
from esmpi.tasks.conciseness import Conciseness
from esmpi.tasks.countdown import Countdown
from esmpi.tasks.gsm8k import Gsm8k
from esmpi.tasks.gym import PREFIX, Gym
from esmpi.tasks.math import Math
from esmpi.tasks.multiplication import Multiplication
from esmpi.tasks.python import PythonTask, find_python_task
from esmpi.tasks.sudoku import Sudoku

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Arc, Conciseness, Countdown, Gsm8k, Math, Multiplication, Sudoku)
}


def find_task(name: str) -> type[Task] | None:
    """Return the task of a name of `TASKS`, of `gym:` and a name, of a Python file, or of an entry point, or None."""
    return Gym if name.startswith(PREFIX) else TASKS.get(name) or find_python_task(name)


def make_task(config: TaskConfig, source: bytes = b"") -> Task:
    """Return the task of a checked config.

    `source` is `Task.source` of the same task in another process: where it is, a file that has changed meanwhile is not
    read anew.
    """
    task = find_task(config.name)
    assert task is not None  # the config was checked with it
    # its config has the type that the task asks for
    return PythonTask(config, source) if task is PythonTask else task(config)  # type: ignore[arg-type]


__all__ = ["TASKS", "Example", "Part", "Prompt", "Score", "Task", "TaskConfig", "find_task", "make_task"]
