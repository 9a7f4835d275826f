"""Read a Hugging Face model folder: which tensors it stores, and their values. Imports no torch to list them."""

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from esmpi.errors import UserError
from esmpi.files import open_regular

if TYPE_CHECKING:
    import torch


_READ_AT_ONCE = 1 << 26
"""Elements."""
_MOST_JSON_BYTES = 256 * 2**20
"""Of an index, which has a line for each tensor."""


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


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of a tensor seen as a matrix; a scalar is 1 x 1."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


class BaseModel:
    """A model folder: its tensors by canonical name in `tensors`, its config.json in `config`.

    Raises
    ------
    UserError
        If a file is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self._opened: dict[Path, Any] = {}
        self._deviations: dict[str, float] = {}
        try:
            self.config: dict[str, Any] = _read_json(folder / "config.json")
            self._list_tensors()
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"model.path: {folder} is damaged or incomplete: {error}") from error

    @property
    def num_weights(self) -> int:
        """Weights of the model; what is tied counts once."""
        tied = {"lm_head.weight"} if self.config.get("tie_word_embeddings") else set()
        return sum(tensor.num_elements for name, tensor in self.tensors.items() if name not in tied)

    def canonical_names(self) -> list[str]:
        """Return the names of the tensors; what is tied is there once."""
        names = list(self.tensors)
        if self.config.get("tie_word_embeddings") and any(name.endswith("embed_tokens.weight") for name in names):
            return [name for name in names if name != "lm_head.weight"]
        return names

    def standard_deviation(self, name: str) -> float:
        """Return the standard deviation (ddof 0) of a tensor's values, rounded to float32.

        It has the same bits on every machine, so that a replay elsewhere finds the same one.
        """
        if name not in self._deviations:
            from esmpi.noise.deviation import standard_deviation

            rows, columns = matrix_shape(self.tensors[name].shape)
            each = max(1, _READ_AT_ONCE // max(1, columns))
            self._deviations[name] = standard_deviation(
                lambda: (
                    self.read(name, (row, min(row + each, rows)), (0, columns)).view(-1).numpy()
                    for row in range(0, rows, each)
                )
            )
        return self._deviations[name]

    def tied_to(self, names: Collection[str]) -> dict[str, str]:
        """Return which other matrices are stored twice: the name of each, with that of its equal among `names`."""
        others = ((name, tensor) for name, tensor in self.tensors.items() if name not in names)
        found = ((name, next((one for one in names if self._equal(one, tensor)), None)) for name, tensor in others)
        return {name: equal for name, equal in found if equal is not None}

    def _equal(self, name: str, other: StoredTensor) -> bool:
        """Return whether a tensor is the same matrix as another one; a constant is the same as none."""
        import torch

        if len(other.shape) != 2 or self.tensors[name].shape != other.shape or not self.standard_deviation(other.name):
            return False
        rows, columns = matrix_shape(other.shape)
        each = max(1, _READ_AT_ONCE // max(1, columns))
        parts = [((row, min(row + each, rows)), (0, columns)) for row in range(0, rows, each)]
        return all(torch.equal(self.read(name, *part), self.read(other.name, *part)) for part in parts)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file of the folder; raise UserError if it holds none."""
        try:
            return _read_json(self.folder / name)
        except (ValueError, OSError) as error:
            raise UserError(f"model.path: {self.folder} is damaged or incomplete: {error}") from error

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
        entries = _read_json(index).get("weight_map")
        if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries.values()):
            raise ValueError(f"{index.name} has no weight_map from tensors to files")
        for name in sorted(set(entries.values())):
            # the files themselves may be links, as in the hub's cache
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(f"model.path: {index} names {name}: only *.safetensors files beside it are read")
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

        entry = self.tensors[name]
        if entry.dtype not in ("F32", "BF16", "F16"):
            raise UserError(f"model.path: {name} is stored as {entry.dtype}: ES needs unquantized weights")
        if entry.file not in self._opened:  # kept open: listing the tensors of a large file takes milliseconds
            self._opened[entry.file] = safe_open(entry.file, framework="pt")
        stored = self._opened[entry.file]
        if len(entry.shape) == 2:
            part = stored.get_slice(name)[rows[0] : rows[1], cols[0] : cols[1]]
        else:
            whole = stored.get_tensor(name).view(matrix_shape(entry.shape))
            part = whole[rows[0] : rows[1], cols[0] : cols[1]]
        return part.to(torch.float32, copy=True)  # not the file's own memory, which the next reader would get, too


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise ValueError, UserError or OSError if there is none."""
    with open_regular(path) as file:
        text = file.read(_MOST_JSON_BYTES)
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path.name}: brackets too deep inside one another") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no object")
    return found


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


def kinds_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Group tensors by their names without the numbers of layers and experts, which become stars."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return kinds
