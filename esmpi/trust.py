"""Whose code a run's config would execute: a run file may be a stranger's, and nobody has agreed to its config."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from esmpi.config.overrides import Overrides, overrides_of
from esmpi.errors import UserError
from esmpi.masking import MASK
from esmpi.plugins import digest_of_code, file_named_by, source_of
from esmpi.store.run_file import RunFile


def check_agreed(run: RunFile, overrides: Overrides) -> None:
    """Raise UserError if to evaluate a run is to execute code that the user has not agreed to; executes nothing.

    The user agrees to a file, an engine or a model's own code by naming it in an override. Without one, a task's file
    is executed only if it is, to the letter, the file that the run was begun with, and did not come with the run.

    Parameters
    ----------
    run : RunFile
    overrides : sequence of str or mapping
        What the user gave on the command line.
    """
    given = {(change.section, change.key) for change in overrides_of(overrides)}
    config = run.attributes["config"]
    for section, key, trouble in _troubles(run, config):
        if (section, key) not in given:
            raise UserError(f"{section}.{key}: {trouble}")
    for section, keys in config.items():
        for key, value in keys.items():
            if (section, key) not in given and MASK in str(value):
                raise UserError(
                    f"{section}.{key}: held a token, key or password, which run files do not keep: give the key again, "
                    f"such as {section}.{key}=VALUE"
                )


def _troubles(run: RunFile, config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what needs the user's agreement: section and key, and why."""
    name = config["task"]["name"]
    if (path := file_named_by(name)) is not None:
        agree = f"it is not executed. If you trust it, add task.name={name}"
        if Path(path).expanduser().resolve().is_relative_to(run.path.parent.resolve()):
            yield "task", "name", f"{path} came with the run: {agree}"
        elif digest_of_code(path, source_of("task.name", path)) != run.attributes["task_digest"]:
            yield "task", "name", f"{path} is not the file that {run.path.parent} was begun with: {agree}"
    kind = config.get("engine", {}).get("kind")
    if file_named_by(str(kind)) is not None:
        yield (
            *("engine", "kind"),
            f"{kind} is code that only the run file asks for, and is not executed. If you trust it, add "
            f"engine.kind={kind}",
        )
    if config["model"].get("trust_remote_code"):
        yield (
            *("model", "trust_remote_code"),
            f"only the run file asks to execute code of the model {config['model']['path']}. If you trust it, add "
            "model.trust_remote_code=true",
        )
    for suite, source in (config.get("eval", {}).get("suites") or {}).items():
        if isinstance(source, Mapping) and source.get("include_path") is not None:
            yield (
                *("eval", "suites"),
                f"{suite} has tasks in {source['include_path']}, which may hold code, and only the run file asks for "
                "them. If you trust them, add eval.suites={...} with the same value",
            )
