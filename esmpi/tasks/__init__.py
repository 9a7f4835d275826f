"""The tasks that esmpi knows, by name."""

from esmpi.tasks.base import Example, Score, Task, TaskConfig
from esmpi.tasks.countdown import Countdown

TASKS: dict[str, type[Task]] = {task.name: task for task in (Countdown,)}

__all__ = ["TASKS", "Example", "Score", "Task", "TaskConfig"]
