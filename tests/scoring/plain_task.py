"""A task whose problems do not matter, for tests of what scores."""

from esmpi.tasks import Example, Task, TaskConfig


class PlainTask(Task):
    """Any example will do. Subclasses score."""

    config_type = TaskConfig

    def __init__(self, config: TaskConfig):
        pass

    def prompt(self, example: Example) -> str:
        return ""

    def check(self, example: Example) -> None:
        pass

    def key(self, example: Example) -> int:
        return 0
