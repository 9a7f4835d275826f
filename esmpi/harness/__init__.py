"""Suites of lm-evaluation-harness (extra `lm-eval`): its tasks, answered by the run's engine.

Importing this module is cheap. `suite` and `model` import the library, and are imported when there is a suite to open.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from esmpi.config.problems import EvalConfig, HarnessSuite
from esmpi.errors import UserError

if TYPE_CHECKING:
    from esmpi.harness.suite import Suite


def harness_suites(config: EvalConfig) -> dict[str, HarnessSuite]:
    """Return those suites of a config that are tasks of the harness."""
    return {name: suite for name, suite in config.suites.items() if isinstance(suite, HarnessSuite)}


def check_harness(suites: Mapping[str, HarnessSuite]) -> None:
    """Raise UserError if the library or a folder of tasks is missing; loads nothing."""
    if suites and find_spec("lm_eval") is None:
        raise UserError(
            f"eval.suites: {next(iter(suites))}: this needs lm-evaluation-harness: pip install 'esmpi[lm-eval]'"
        )
    for name, suite in suites.items():
        if suite.include_path is not None and not Path(suite.include_path).expanduser().is_dir():
            raise UserError(f"eval.suites: {name}: include_path: no folder {suite.include_path}")


def open_suites(config: EvalConfig) -> "dict[str, Suite]":
    """Load the tasks of a config's suites and make their requests.

    Raises
    ------
    UserError
        If the library is missing, a task is unknown or cannot be loaded, or asks for what the engines cannot do.
    """
    wanted = harness_suites(config)
    check_harness(wanted)
    if not wanted:
        return {}
    from esmpi.harness.suite import Suite

    return {name: Suite(name, suite) for name, suite in wanted.items()}
