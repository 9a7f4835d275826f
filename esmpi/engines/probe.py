"""Find out where a model keeps its checkpoint's tensors, by asking the model's own weight loader.

An engine may fuse tensors, pad them, or hold shards of them; how, only its loader knows. So the loader is given
tensors whose elements say who they are (which tensor, which row, which column, a digit at a time), and what then
stands in the parameters tells the views. No table of architectures is needed, and a layout that this cannot
express is refused by the parameter's name.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from esmpi.checkpoint import Checkpoint, StoredTensor
from esmpi.errors import UserError
from esmpi.weights import View, matrix_shape

Load = Callable[[Iterable[tuple[str, torch.Tensor]]], object]
"""A model's `load_weights`: takes (canonical name, tensor) pairs."""

_BASE = 256
"""Digits are integers below this: bfloat16 holds them exactly."""
_UNTOUCHED = -1


@dataclass(frozen=True)
class Padding:
    """Rows of a parameter that the checkpoint does not fill, such as a vocabulary rounded up."""

    parameter: str
    rows: torch.Tensor
    """(R, C) live memory."""


def derive_views(
    parameters: Mapping[str, torch.Tensor], load: Load, checkpoint: Checkpoint
) -> tuple[list[View], list[Padding]]:
    """Return the views that cover all parameters, and the padding. Overwrites the parameters' values.

    Raises
    ------
    UserError
        If a parameter is empty, or holds the checkpoint's elements in an order that views cannot express.
    """
    matrices = {name: _as_matrix(name, parameter) for name, parameter in parameters.items()}
    places = {name: _Place() for name in matrices}
    tensors = list(checkpoint.tensors.values())
    largest = [matrix_shape(tensor.shape) for tensor in tensors]
    limits = {
        "tensor": len(tensors),
        "row": max(rows for rows, _ in largest),
        "col": max(cols for _, cols in largest),
    }
    for what, limit in limits.items():
        for digit in range(_num_digits(limit)):
            for matrix in matrices.values():
                matrix.fill_(_UNTOUCHED)
            load(_probe_tensors(tensors, what, digit, next(iter(matrices.values()))))
            for name, matrix in matrices.items():
                places[name].add(what, digit, matrix)
    views: list[View] = []
    padding: list[Padding] = []
    for name, matrix in matrices.items():
        for tensor, rows, cols, part in places[name].runs(name, matrix):
            if tensor == _UNTOUCHED:
                padding.append(Padding(name, part))
            else:
                views.append(View(tensors[tensor].name, tensors[tensor].shape, rows, cols, part))
    return views, padding


def _as_matrix(name: str, parameter: torch.Tensor) -> torch.Tensor:
    data = parameter.detach()
    if data.numel() == 0:
        raise UserError(
            f"engine: parameter {name} is empty: the engine keeps its values in a form that ES cannot reach"
        )
    if data.dim() == 2:
        return data
    if not data.is_contiguous():
        raise UserError(f"engine: parameter {name} of shape {tuple(data.shape)} is not contiguous in memory")
    return data.view(-1, 1) if data.dim() < 2 else data.view(-1, data.shape[-1])


def _num_digits(limit: int) -> int:
    digits = 1
    while _BASE**digits < limit:
        digits += 1
    return digits


def _probe_tensors(
    tensors: list[StoredTensor], what: str, digit: int, like: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield, for each tensor of the checkpoint, one whose elements are a digit of their tensor, row or column."""
    for number, tensor in enumerate(tensors):
        rows, cols = matrix_shape(tensor.shape)
        index = {
            "tensor": torch.full((1, 1), number),
            "row": torch.arange(rows).view(-1, 1),
            "col": torch.arange(cols).view(1, -1),
        }[what]
        digits = (index // _BASE**digit % _BASE).to(like.device, like.dtype)
        yield tensor.name, digits.expand(rows, cols).reshape(tensor.shape)


class _Place:
    """What was read from one parameter: tensor and row along its first column, column along one row."""

    def __init__(self) -> None:
        self._along_rows: dict[str, torch.Tensor] = {}
        self._cols: torch.Tensor | None = None
        self._row = 0

    def add(self, what: str, digit: int, matrix: torch.Tensor) -> None:
        if what == "col":
            found = matrix[self._row].to("cpu", torch.int64) * _BASE**digit
            self._cols = found if self._cols is None else self._cols + found
            return
        column = matrix[:, 0].to("cpu", torch.int64)
        value = torch.where(column == _UNTOUCHED, _UNTOUCHED, column * _BASE**digit)
        if what in self._along_rows:
            value = torch.where(column == _UNTOUCHED, _UNTOUCHED, self._along_rows[what] + value)
        elif what == "tensor":
            # columns are read where the checkpoint has written something
            self._row = int((column != _UNTOUCHED).to(torch.int8).argmax())
        self._along_rows[what] = value

    def runs(
        self, name: str, matrix: torch.Tensor
    ) -> Iterator[tuple[int, tuple[int, int], tuple[int, int], torch.Tensor]]:
        """Yield (tensor, rows, columns, live memory) of each stretch of rows that belong together."""
        tensor, row = self._along_rows["tensor"], self._along_rows["row"]
        assert self._cols is not None
        first, count = int(self._cols[0]), matrix.shape[1]
        if bool((tensor != _UNTOUCHED).any()) and not torch.equal(self._cols, torch.arange(first, first + count)):
            raise UserError(f"engine: parameter {name} does not hold neighbouring columns of its tensor side by side")
        joined = (tensor[1:] == tensor[:-1]) & ((row[1:] == row[:-1] + 1) | (tensor[1:] == _UNTOUCHED))
        starts = [0, *(torch.nonzero(~joined)[:, 0] + 1).tolist(), len(tensor)]
        for start, stop in itertools.pairwise(starts):
            begin = int(row[start])
            yield int(tensor[start]), (begin, begin + stop - start), (first, first + count), matrix[start:stop]
