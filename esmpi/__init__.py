"""esmpi: fine-tune language models with Evolution Strategies on a Slurm cluster.

    import esmpi

    run = esmpi.tune("configs/quickstart.yaml", es={"sigma": 2e-3})  # train in this process
    run = esmpi.open_run("runs/quickstart")                          # look at a run
    [job] = esmpi.submit("configs/countdown.yaml", nodes=4)          # or leave it to Slurm

Importing esmpi is cheap: torch, MPI and the engines are loaded when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from esmpi.version import __version__

if TYPE_CHECKING:
    from esmpi.api import tune
    from esmpi.errors import UserError
    from esmpi.launch.jobs import submit
    from esmpi.report.view import Run, open_run
    from esmpi.tasks.base import Score, Task
    from esmpi.tasks.environments.base import Environment

_HOMES = {
    "Environment": "esmpi.tasks.environments.base",
    "Run": "esmpi.report.view",
    "Score": "esmpi.tasks.base",
    "Task": "esmpi.tasks.base",
    "UserError": "esmpi.errors",
    "open_run": "esmpi.report.view",
    "submit": "esmpi.launch.jobs",
    "tune": "esmpi.api",
}
"""The module of each name. A name's module is imported when the name is first used."""

__all__ = ["Environment", "Run", "Score", "Task", "UserError", "__version__", "open_run", "submit", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'esmpi' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
