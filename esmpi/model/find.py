"""Find a model: a folder, one that ships with esmpi, or a hub id in the local cache or on the hub."""

from importlib.resources import files
from pathlib import Path

from esmpi.errors import UserError, nearest

PACKAGED = "esmpi:"
"""Prefix of a model that ships inside the package: `esmpi:tiny_countdown`."""


def find_model(path: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model: a folder, a packaged model, or a hub id that is in the local cache.

    Returns
    -------
    Path or None
        None for a hub id that has to be fetched first.

    Raises
    ------
    UserError
        If `path` looks like a folder that does not exist, or holds no safetensors.
    """
    if path.startswith(PACKAGED):
        models = Path(str(files("esmpi"))) / "assets"
        names = [PACKAGED + entry.name for entry in models.iterdir() if (entry / "config.json").exists()]
        if path not in names:
            raise UserError(f"model.path: no packaged model {path!r}{nearest(path, names)}")
        return models / path.removeprefix(PACKAGED)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise UserError(f"model.path: {path} has no config.json: it is not a Hugging Face model folder")
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"model.path: {path} holds no *.safetensors: convert the model to safetensors first")
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
        names = [str(Path(path).parent / entry.name) for entry in siblings if entry.is_dir()]
        raise UserError(f"model.path: no folder {path}{nearest(path, names)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(path, revision=revision, local_files_only=True))
        # a snapshot that was only begun has its small files
        return cached if any(cached.glob("*.safetensors")) else None
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise UserError(f"model.path: {path} is no folder, and no hub id either") from None


def fetch_model(path: str, revision: str | None = None) -> Path:
    """Return the folder of a model as `find_model` does, downloading it from the hub if need be."""
    folder = find_model(path, revision)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "README.md", "LICENSE*", "NOTICE*"]
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # no network, no such model, no access: the hub's own text says which
        raise UserError(
            f"model.path: {path} is neither a folder nor in the local Hugging Face cache, and fetching it "
            f"failed: {error}\nOn nodes without internet, download it on the login node first: hf download {path}"
        ) from error
