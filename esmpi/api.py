"""The main program as a function: `esmpi.tune`."""

import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esmpi.report.view import Run


def tune(config: str | Path | Mapping[str, Any], /, **overrides: Mapping[str, Any]) -> "Run":
    """Collective. Train in this process as `python -m esmpi.run` does, and return the run.

    Call it again with the same arguments to resume a run that was stopped. Under mpiexec or srun every rank calls it.
    SIGINT and SIGTERM stop the run after the current generation, if this is the main thread. In a script that runs vLLM
    with worker processes, put the call under ``if __name__ == "__main__":``, because these import the script. On ranks
    other than 0 the run directory must be on a shared file system.

    Parameters
    ----------
    config : path or mapping
        A YAML file, or its contents: sections with their keys.
    **overrides
        Sections with the keys to change, such as ``es={"sigma": 2e-3}, run={"name": "mine"}``. Values may also be
        paths, NumPy numbers and arrays. If a change of the engine or task leaves keys of `config` unused, a warning
        names them.

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
    from esmpi.arguments import warn_of
    from esmpi.config.overrides import plain
    from esmpi.config.reader import load_config, parse_config
    from esmpi.report.view import open_run
    from esmpi.run import train_here
    from esmpi.store.run_file import RUN_FILE

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker process of an engine imports the user's script, as every spawned process does.
        raise RuntimeError("put the call of esmpi.tune under `if __name__ == '__main__':`")
    notes: list[str] = []
    if isinstance(config, Mapping):
        checked = parse_config(plain(config, "config"), overrides, notes)
    else:
        checked = load_config(config, overrides, notes)
    warn_of(notes)
    train_here(checked)
    return open_run(checked.directory / RUN_FILE)
