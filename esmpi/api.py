"""The main program as a function: `esmpi.tune`."""

import json
import multiprocessing
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esmpi.report.view import Run


def tune(config: str | Path | Mapping[str, Any], /, **overrides: Mapping[str, Any]) -> "Run":
    """Collective. Train in this process as `python -m esmpi.run` does, and return the run.

    Call it again with the same arguments to resume a run that was stopped. Under mpiexec or srun every rank calls it.
    SIGINT and SIGTERM stop the run after the current generation, if this is the main thread. In a script, put the call
    under ``if __name__ == "__main__":``, because the processes that compute rewards import the script. On ranks other
    than 0 the run directory must be on a shared file system.

    Parameters
    ----------
    config : path or mapping
        A YAML file, or its contents: sections with their keys.
    **overrides
        Sections with the keys to change, such as ``es={"sigma": 2e-3}, run={"name": "mine"}``.

    Returns
    -------
    Run
        Its `finished` tells whether all generations are there.

    Raises
    ------
    UserError
        If something is wrong with the config, the data, the model or the run directory; the message says what to do.

    Examples
    --------
    >>> run = esmpi.tune("configs/quickstart.yaml", es={"generations": 2})
    >>> run.evaluations[["suite", "generation", "accuracy"]]
    """
    from esmpi.config.reader import load_config, parse_config
    from esmpi.report.view import open_run
    from esmpi.run import train_here
    from esmpi.store.run_file import RUN_FILE

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A process that scores imports the user's script, as every spawned process does.
        raise RuntimeError("put the call of esmpi.tune under `if __name__ == '__main__':`")
    changes = []
    for section, keys in overrides.items():
        if not isinstance(keys, Mapping):
            raise TypeError(f"tune() takes sections with their keys, such as {section}={{'key': {keys!r}}}")
        changes += [
            f"{section}.{key}={json.dumps(value, ensure_ascii=False, default=_plain)}" for key, value in keys.items()
        ]
    checked = parse_config(dict(config), changes) if isinstance(config, Mapping) else load_config(config, changes)
    train_here(checked)
    return open_run(checked.directory / RUN_FILE)


def _plain(value: Any) -> Any:
    """Return a value that JSON does not know, a path or a number of NumPy's, as one that it knows."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} is no value for a config")
