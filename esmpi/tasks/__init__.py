"""Tasks, found by name: what ships with esmpi, a user's file, or an installed package's. Importing them is cheap.

Each module here that defines a `Task` is a task that ships with esmpi; each loads its libraries when it is made.
"""

from esmpi import plugins
from esmpi.config.keys import PlugIn
from esmpi.config.sections import TaskConfig
from esmpi.data.problem import Example, Part, Prompt
from esmpi.tasks.base import Progress, Sample, Scope, Score, Task, Turns
from esmpi.tasks.calls import Calls, OutOfTimeError

ENTRY_POINTS = "esmpi.tasks"
"""Group of the entry points by which installed packages offer tasks."""


def task_types() -> tuple[type[Task], ...]:
    """Return the tasks that ship with esmpi."""
    return plugins.classes("esmpi.tasks", Task)


def find_task(name: str) -> type[Task] | None:
    """Return the task that a name stands for, None if there is none."""
    for task in task_types():
        if task.goes_by(name):
            return task
    found: type[Task] | None = plugins.from_entry_point("task.name", ENTRY_POINTS, name, Task)
    return found


def make_task(config: TaskConfig, source: bytes = b"") -> Task:
    """Return the task of a checked config.

    `source` is `Task.source` of the same task in another process: where it is given, a file that has changed meanwhile
    is not read anew.
    """
    task = find_task(config.name)
    assert task is not None  # the config was checked with it
    return task.make(config, source)


def check_file(config: TaskConfig) -> None:
    """Raise UserError if a task is in a Python file that cannot be read, without executing it."""
    name = config.name.removeprefix("env:")
    if plugins.names_a_file(name):
        plugins.source_of("task.name", name.rpartition(":")[0])


def find_plug_in(name: str) -> PlugIn | None:
    """Return what a task adds to the config, None if there is no such task."""
    task = find_task(name)
    return None if task is None else _plug_in(task)


def plug_ins() -> dict[str, PlugIn]:
    """Return what the tasks that ship with esmpi add to the config, by their names."""
    return {task.name: _plug_in(task) for task in task_types()}


def _plug_in(task: type[Task]) -> PlugIn:
    return PlugIn(task.config_type, {"sampling": task.default_sampling})


def valid_names() -> list[str]:
    """Return the names of the tasks that ship with esmpi, for messages."""
    return [task.name for task in task_types()]


__all__ = [
    "Calls",
    "Example",
    "OutOfTimeError",
    "Part",
    "Progress",
    "Prompt",
    "Sample",
    "Scope",
    "Score",
    "Task",
    "TaskConfig",
    "Turns",
    "check_file",
    "find_task",
    "make_task",
    "task_types",
]
