"""Read a Hugging Face model folder: which tensors it stores, and their values. Imports no torch to list them."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from esmpi.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

PACKAGED = "esmpi:"
"""Prefix of a model that ships inside the package: `esmpi:tiny_countdown`."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it: "F32", "BF16", ..."""
    file: Path

    @property
    def num_elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def find_model(path: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model: a folder, a packaged model, or a hub id that is in the local cache.

    Returns
    -------
    Path or None
        None for a hub id that has to be fetched first.

    Raises
    ------
    UserError
        If `path` can only be a folder and is none, or holds no safetensors.
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
        wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py"]
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # no network, no such model, no access: the hub's own text says which
        raise UserError(
            f"model.path: {path} is neither a folder nor in the local Hugging Face cache, and fetching it "
            f"failed: {error}\nOn nodes without internet, download it on the login node first: hf download {path}"
        ) from error


class Checkpoint:
    """A model folder: its tensors by canonical name in `tensors`, its config.json in `config`.

    Raises
    ------
    UserError
        If a file is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        try:
            self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._list_tensors()
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"model.path: {folder} is damaged or incomplete: {error}") from error

    @property
    def num_weights(self) -> int:
        """Weights of the model; what is tied counts once."""
        tied = {"lm_head.weight"} if self.config.get("tie_word_embeddings") else set()
        return sum(tensor.num_elements for name, tensor in self.tensors.items() if name not in tied)

    def _list_tensors(self) -> None:
        for file in self._weight_files():
            with safe_open(file, framework="numpy") as stored:
                for name in stored.keys():  # noqa: SIM118 (it is no mapping)
                    part = stored.get_slice(name)
                    self.tensors[name] = StoredTensor(name, tuple(part.get_shape()), part.get_dtype(), file)

    def _weight_files(self) -> Iterator[Path]:
        index = self.folder / "model.safetensors.index.json"
        if not index.exists():
            yield from sorted(self.folder.glob("*.safetensors"))
            return
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (self.folder / name).exists():
                raise UserError(f"model.path: {self.folder} lacks {name}, which its index names")
            yield self.folder / name

    def read(self, name: str, rows: tuple[int, int], cols: tuple[int, int]) -> "torch.Tensor":
        """Return a rectangle of a tensor, seen as a matrix, as float32.

        Raises
        ------
        UserError
            If the tensor is quantized (anything but float32, bfloat16, float16).
        """
        import torch

        from esmpi.weights.views import matrix_shape

        entry = self.tensors[name]
        if entry.dtype not in ("F32", "BF16", "F16"):
            raise UserError(f"model.path: {name} is stored as {entry.dtype}: ES needs unquantized weights")
        with safe_open(entry.file, framework="pt") as stored:
            if len(entry.shape) == 2:
                part = stored.get_slice(name)[rows[0] : rows[1], cols[0] : cols[1]]
            else:
                whole = stored.get_tensor(name).view(matrix_shape(entry.shape))
                part = whole[rows[0] : rows[1], cols[0] : cols[1]]
        return part.to(torch.float32)


def tied_embedding(names: Iterable[str]) -> str:
    """Return which of a model's tensors `lm_head.weight` is tied to.

    Raises
    ------
    UserError
        If none of them is called so.
    """
    for name in names:
        if name.endswith("embed_tokens.weight"):
            return name
    raise UserError("model.path: lm_head.weight is tied, but to no embed_tokens.weight: esmpi does not know this model")
