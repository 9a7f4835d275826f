"""Upload a model folder to the Hugging Face hub, or another server that speaks its protocol (HF_ENDPOINT)."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmpi.errors import UserError, said

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def check_links(folder: Path) -> None:
    """Check that no file of a base model, which an export copies, is a link to a file of the user's own.

    A stranger's folder may have such links, and what they lead to would be uploaded. In the hub's cache all files are
    links to blobs.

    Raises
    ------
    UserError
        If one leads out of the folder.
    """
    real = folder.resolve()
    for file in sorted(folder.iterdir()):
        target = Path(os.path.realpath(file))
        if file.suffix == ".safetensors":
            continue  # whose values are theta's
        if not (target.is_relative_to(real) or target.parent == real.parent.parent / "blobs"):
            raise UserError(f"--push: {file} leads out of the model's folder, to {target}: put a copy in its place")


def check_push(repository: str, public: bool) -> None:
    """Check that a repository can be made: before the work of minutes, and without changing anything.

    A repository that is there must be empty, as an upload that did not end leaves it, and as private as is asked for.

    Raises
    ------
    UserError
        If there is no token, the hub cannot be reached, or the repository has files.
    """
    if _NAME.fullmatch(repository) is None:
        raise UserError(f"--push: {repository!r} is no name of a repository: write ORG/NAME")
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    api = _api()
    if get_token() is None:
        raise UserError("--push: no token for the hub: run `hf auth login`, or set HF_TOKEN")
    try:
        api.whoami()
    except Exception as error:  # no network, no such token, ...: the hub's own text says which
        raise UserError(_unreachable(api, error)) from error
    try:
        info = api.model_info(repository)
    except RepositoryNotFoundError:
        return
    except Exception as error:
        raise UserError(_unreachable(api, error)) from error
    names = [file.rfilename for file in info.siblings or () if file.rfilename != ".gitattributes"]
    if names:
        raise UserError(f"--push: {repository} exists and has files, such as {names[0]}: choose another name")
    _check_private(repository, info, public)


def push(folder: Path, repository: str, public: bool) -> str:
    """Upload a model folder in one commit to a repository, which is made if need be; return its address.

    Raises
    ------
    UserError
        If that fails. The folder stays as it is.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    api = _api()
    if not sys.stderr.isatty():  # such as a batch job's log
        disable_progress_bars()
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        _check_private(repository, api.model_info(repository), public)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Model of esmpi")
    except UserError:
        raise
    except Exception as error:  # whatever the library raises
        raise UserError(
            f"--push: {repository} is not complete: {said(error)}\nThe model is in {folder}. Rerun the same command, "
            f"or upload the folder: hf upload {repository} {folder}"
        ) from error
    return f"{address} ({'public' if public else 'private'})"


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="esmpi")


def _check_private(repository: str, info: Any, public: bool) -> None:
    if bool(info.private) is public:
        state, option = ("public", "add --public") if public is False else ("private", "leave out --public")
        raise UserError(f"--push: {repository} exists and is {state}: {option}, or choose another name")


def _unreachable(api: "HfApi", error: Exception) -> str:
    return f"--push: the hub at {api.endpoint} does not let esmpi in: {said(error)}"
