"""Copy a model to a disk of the node, so that the shared file system is read once per node, not once per rank."""

import hashlib
import logging
import os
import shutil
from pathlib import Path

from esmpi.errors import UserError
from esmpi.files import replacing

log = logging.getLogger(__name__)


def staged_path(model: Path, stage_to: str) -> Path:
    """Return the path of the copy of a model folder. The same files have the same path on every node."""
    target = Path(os.path.expandvars(stage_to)).expanduser()
    if "$" in str(target):
        raise UserError(f"model.stage_to: {stage_to} names a variable that is not set on this node")
    text = "\n".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in _files(model))
    return target / f"{model.name}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def stage(model: Path, target: Path) -> None:
    """Copy a model folder to `target`, whole or not at all; nothing is done if it is there.

    Raises
    ------
    UserError
        If there is no room, or no permission.
    """
    if target.is_dir():
        return
    try:
        with replacing(target) as temporary:
            temporary.mkdir()
            for file in _files(model):
                shutil.copyfile(file, temporary / file.name)  # follows the links of the hub's cache
    except OSError as error:
        if target.is_dir():  # another job on this node was faster
            return
        raise UserError(f"model.stage_to: {model} cannot be copied to {target.parent}: {error}") from error


def _files(model: Path) -> list[Path]:
    return sorted(entry for entry in model.iterdir() if entry.is_file() and not entry.name.startswith("."))
