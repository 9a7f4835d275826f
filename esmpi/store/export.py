"""Write theta as a Hugging Face model folder."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from esmpi.errors import UserError
from esmpi.files import check_held, older_of, put_back, sync
from esmpi.model.base_model import BaseModel, matrix_shape
from esmpi.progress import Progress

if TYPE_CHECKING:
    import torch

_MARK = "esmpi.json"
"""File that says that a folder is an export, and of which theta."""
_COPIED = (".json", ".jinja", ".txt", ".model", ".py")
"""Suffixes of the base model's files that are copied."""


def export(
    base: BaseModel,
    theta: Mapping[str, "torch.Tensor"],
    aliases: dict[str, str],
    out: Path,
    dtype: str,
    origin: dict[str, Any],
    files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write a model folder that transformers and vLLM load: the base model's files with theta's values.

    The folder is written under another name first, so that a folder that is there is complete.

    Parameters
    ----------
    base : BaseModel
        Gives config, tokenizer, and which tensor is in which file.
    theta : mapping
        Float32 tensors of the canonical shape by canonical name. One file's are in memory at a time.
    aliases : dict
        Names of tied tensors and the canonical name of each.
    out : Path
        Folder to write; an older export there is replaced.
    dtype : str
        "float32" or "bfloat16".
    origin : dict
        Which theta this is (`RunFile.describe`); written into esmpi.json and the weights' metadata.
    files : mapping, optional
        Further files by name, such as the model card; they replace files of the base model that have the same name.

    Raises
    ------
    UserError
        If `out` exists and is not an export of esmpi, or if it cannot be written; what was there is then unchanged.
        A LostError if `out` is in a run directory that this process holds no more.
    """
    check_held(out)  # before the target's folders are made
    check_target(out)
    read = _reader(base, theta, aliases, dtype)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        _write_files(base, unfinished, dtype, files or {})
        metadata = {"format": "pt", **{f"esmpi_{key}": str(value) for key, value in origin.items()}}
        _write_weights(base, read, unfinished, metadata)
        (unfinished / _MARK).write_text(json.dumps(origin | {"dtype": dtype}, indent=2) + "\n")
        _put_in_place(unfinished, out)
    except (OSError, SafetensorError) as error:  # full disk, quota, ...
        check_held(out)  # if the directory was taken away meanwhile, this says so
        raise UserError(
            f"cannot write the model folder {out}: {error}; what was there before is still there"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_target(out: Path) -> None:
    """Check that a model folder can be written, and bring back what a killed export had moved away.

    Raises
    ------
    UserError
        If `out` exists and is not an export of esmpi, or if its parent cannot be written.
    """
    if out.exists() and not (out / _MARK).exists():
        raise UserError(f"{out} exists and was not written by esmpi: choose another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        put_back(out)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror}") from error


def _write_files(base: BaseModel, out: Path, dtype: str, files: Mapping[str, str | bytes]) -> None:
    """Write all files but the weights."""
    for file in sorted(base.folder.iterdir()):
        if file.is_file() and file.suffix in _COPIED:
            shutil.copyfile(file, out / file.name)
    for name, content in files.items():
        (out / name).write_bytes(content.encode() if isinstance(content, str) else content)
    _set_dtype(out / "config.json", dtype)


def _reader(
    base: BaseModel, theta: Mapping[str, "torch.Tensor"], aliases: Mapping[str, str], dtype: str
) -> "Callable[[str], torch.Tensor]":
    """Return a function that gives a tensor of the folder by its name."""
    import torch

    target = getattr(torch, dtype)

    def read(name: str) -> torch.Tensor:
        if name in aliases:
            return theta[aliases[name]].to(target, copy=True)  # safetensors refuses shared memory
        if name in theta:
            return theta[name].to(target)
        # a stored buffer, which is no weight, stays as it is
        shape = base.tensors[name].shape
        rows, cols = matrix_shape(shape)
        return base.read(name, (0, rows), (0, cols)).view(shape)

    return read


def _write_weights(base: BaseModel, read: Callable[[str], "torch.Tensor"], out: Path, metadata: dict[str, str]) -> None:
    """Write the tensors, distributed over files as in the base, and the index if the base has one."""
    total = 0
    places = sorted({tensor.file for tensor in base.tensors.values()})
    with Progress("writing the model" if len(places) == 1 else "files of the model written") as progress:
        for number, file in enumerate(places, 1):
            names = [name for name, tensor in base.tensors.items() if tensor.file == file]
            tensors = {name: read(name).contiguous() for name in names}
            total += sum(tensor.nbytes for tensor in tensors.values())
            save_file(tensors, out / file.name, metadata=metadata)
            # safetensors makes it readable for its owner alone; a run directory is shared as the umask says
            shutil.copymode(out / "config.json", out / file.name)
            if len(places) > 1:
                progress(number, len(places))
    index = out / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        metadata = content.get("metadata")
        content["metadata"] = (metadata if isinstance(metadata, dict) else {}) | {"total_size": total}
        index.write_text(json.dumps(content, indent=2) + "\n")


def _set_dtype(path: Path, dtype: str) -> None:
    config = json.loads(path.read_text())
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    config[key] = dtype
    path.write_text(json.dumps(config, indent=2) + "\n")


def _put_in_place(unfinished: Path, out: Path) -> None:
    """Put a finished folder where an older one may be, durably; a failure leaves the older one there."""
    older = older_of(out)
    for file in [*unfinished.iterdir(), unfinished]:
        sync(file)
    check_held(out)
    if out.exists():
        shutil.rmtree(older, ignore_errors=True)
        os.replace(out, older)
    try:
        os.replace(unfinished, out)
    except OSError:
        put_back(out)
        raise
    shutil.rmtree(older, ignore_errors=True)
