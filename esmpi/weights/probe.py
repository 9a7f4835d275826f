"""Find out where a model keeps its checkpoint's tensors, by asking the model's own weight loader.

An engine may rename tensors, fuse, pad or transpose them, or hold shards of them; how, only its loader knows. So the
loader is given tensors whose elements say who they are (which tensor, which row, which column, a digit at a time), and
what then stands in the parameters tells the views. No table of architectures is needed, and a layout that views cannot
express is refused by the parameter's name.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import torch

from esmpi.errors import UserError
from esmpi.model.base_model import StoredTensor, matrix_shape
from esmpi.weights.views import View

Load = Callable[[Iterable[tuple[str, torch.Tensor]]], object]
"""A model's `load_weights`: takes (canonical name, tensor) pairs."""

_T = TypeVar("_T")

_BASES = {torch.int8: 128, torch.float8_e4m3fn: 16}
"""Digits are integers below this, which a parameter of that type holds exactly; of any other type, below 256."""
_UNTOUCHED, _PADDING = -1, 0
"""What is read where the loader wrote nothing, and where it wrote zeros of its own. Tensors count from 1."""


@dataclass
class _Part:
    """Neighbouring rows of a parameter that come from one tensor."""

    tensor: int
    live: torch.Tensor
    """Transposed if the loader transposes the tensor: its rows are rows of the tensor in any case."""
    scales: torch.Tensor | None
    """Those of a quantized parameter's rows."""
    row: torch.Tensor
    """(rows,) int64, which row of the tensor each row is."""
    turned: bool | None = None
    """Whether `live` is transposed; None while nothing is known."""


@dataclass
class _Run:
    """A part of a parameter that is neighbouring rows of one tensor."""

    tensor: int
    first_row: int
    live: torch.Tensor
    scales: torch.Tensor | None
    cols: torch.Tensor


def own_memory(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the parameters but those that only show a part of another one's memory, as it is or in another order.

    Writing the other one changes them, too. Engines have them where they use one matrix in two ways.
    """
    holders: dict[int, torch.Tensor] = {}
    for tensor in parameters.values():
        place = tensor.untyped_storage().data_ptr()
        if tensor.is_contiguous() and (place not in holders or tensor.numel() > holders[place].numel()):
            holders[place] = tensor

    def is_own(tensor: torch.Tensor) -> bool:
        holder = holders.get(tensor.untyped_storage().data_ptr(), tensor)
        if holder is tensor or tensor.numel() == 0:
            return True
        (first, last), (begin, end) = _extent(tensor), _extent(holder)
        return not begin <= first < last <= end

    return {name: tensor for name, tensor in parameters.items() if is_own(tensor)}


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first address of a tensor's memory, and the one after the last."""
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def derive_views(
    parameters: Mapping[str, torch.Tensor],
    load: Load,
    tensors: Sequence[StoredTensor],
    scales: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> list[View]:
    """Return views that cover all parameters but padding. Leaves padding zero, all else overwritten.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        The model's parameters, each once.
    load : callable
    tensors : sequence of StoredTensor
        What the checkpoint holds.
    scales : mapping of str to Tensor, optional
        Those of quantized parameters, by the parameters' names.

    Raises
    ------
    UserError
        If a parameter is empty or not filled from the checkpoint, or the loader transforms or rearranges what it
        writes there; or if a quantized one is transposed.
    """
    matrices = {name: _as_matrix(name, parameter) for name, parameter in parameters.items()}
    shapes = [matrix_shape(tensor.shape) for tensor in tensors]
    # of which type the loader gets digits does not matter: it casts
    like = next(matrix for name, matrix in matrices.items() if name not in scales)
    base = min(_BASES.get(matrix.dtype, 256) for matrix in matrices.values())

    def passes(limit: int, index: Callable[[int], torch.Tensor]) -> Iterator[int]:
        """Load made-up tensors, a digit of `index(tensor)` at a time; yield the digit's value."""
        digit = 1
        while True:
            for matrix in matrices.values():
                matrix.fill_(_UNTOUCHED)
            load(
                (tensor.name, (index(i) // digit % base).to(like).expand(shapes[i]).reshape(tensor.shape))
                for i, tensor in enumerate(tensors)
            )
            yield digit
            digit *= base
            if digit > limit:
                return

    which = {name: torch.zeros(len(matrix), dtype=torch.int64) for name, matrix in matrices.items()}
    for digit in passes(len(tensors), lambda i: torch.full((1, 1), i + 1)):
        for name, matrix in matrices.items():
            which[name] += digit * _uniform(name, matrix, base, along=1)
    parts = {name: list(_parts(name, matrix, scales.get(name), which[name])) for name, matrix in matrices.items()}
    for digit in passes(max(rows for rows, _ in shapes), lambda i: torch.arange(shapes[i][0]).view(-1, 1)):
        for name, part in _each(parts):
            if part.tensor != _PADDING:
                _add_rows(name, part, base, digit)
    runs = {name: [run for part in found for run in _runs(name, part)] for name, found in parts.items()}
    for digit in passes(max(cols for _, cols in shapes), lambda i: torch.arange(shapes[i][1]).view(1, -1)):
        for name, run in _each(runs):
            run.cols += digit * _uniform(name, run.live, base, along=0)
    return [_view(name, run, tensors[run.tensor - 1]) for name, run in _each(runs)]


def _as_matrix(name: str, parameter: torch.Tensor) -> torch.Tensor:
    data = parameter.detach()
    if data.numel() == 0:
        raise UserError(f"engine: parameter {name} is empty: the engine has packed its values out of reach of ES")
    if not data.is_contiguous():
        raise UserError(
            f"engine: parameter {name} of shape {tuple(data.shape)} is not contiguous in memory: ES cannot perturb it. "
            f"For a model with latent attention (MLA), such as DeepSeek, set VLLM_MLA_DISABLE=1"
        )
    if data.dtype == torch.uint8:
        data = data.view(torch.int8)  # a byte is two numbers of int4, and has a digit like one of int8
    return data.view(-1, 1) if data.dim() < 2 else data.view(-1, data.shape[-1])


def _uniform(name: str, matrix: torch.Tensor, base: int, along: int) -> torch.Tensor:
    """Return the digits of each row (along 1) or column (along 0), which must be the same all along it."""
    digits = matrix[:, 0] if along == 1 else matrix[0]
    if not _equal(matrix, digits.unsqueeze(along)):
        raise UserError(f"engine: parameter {name} is put together from the checkpoint in no order that ES can follow")
    whole = digits.to("cpu", torch.int64)
    if not _equal(digits, whole.to(digits)) or bool((whole < _UNTOUCHED).any()) or bool((whole >= base).any()):
        raise UserError(f"engine: the loader changes the values of parameter {name}: ES needs them as they are stored")
    return whole


def _equal(matrix: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether a matrix is the same as another one, or as a row or column again and again."""
    if matrix.dtype == torch.float8_e4m3fn:  # a type that PyTorch compares no tensors of
        matrix, other = matrix.float(), other.float()
    return torch.equal(matrix, other.expand_as(matrix))


def _parts(name: str, matrix: torch.Tensor, scales: torch.Tensor | None, which: torch.Tensor) -> Iterator[_Part]:
    if bool((which < _PADDING).any()):
        raise UserError(f"engine: parameter {name} is not filled from the checkpoint: ES could not perturb it")
    for start, stop in _stretches(which[1:] == which[:-1]):
        live = matrix[start:stop]
        own = None if scales is None else scales[start:stop]
        yield _Part(int(which[start]), live, own, torch.zeros(len(live), dtype=torch.int64))


def _add_rows(name: str, part: _Part, base: int, digit: int) -> None:
    """Add a digit to the rows of a part, after finding out whether its tensor is transposed."""
    if part.turned is None:
        along_rows = _equal(part.live, part.live[:, :1])
        part.turned = not along_rows and _equal(part.live, part.live[:1])
        if part.turned:
            part.live = part.live.T
            part.row = torch.zeros(len(part.live), dtype=torch.int64)
    part.row += digit * _uniform(name, part.live, base, along=1)


def _runs(name: str, part: _Part) -> Iterator[_Run]:
    if part.tensor == _PADDING:
        return
    if part.turned and part.scales is not None:
        raise UserError(
            f"model.quantization: the engine holds the tensor of {name} transposed, so its rows have no scales: set "
            f"model.quantization=none"
        )
    whole, (row, repeats) = part.live, torch.unique_consecutive(part.row, return_counts=True)
    if len(row) < len(part.row) and len(set(repeats.tolist())) == 1 and whole.is_contiguous():
        whole = whole.view(len(row), -1)  # of a tensor of three dimensions, a row is several rows of the parameter
    else:
        row = part.row
    for start, stop in _stretches(row[1:] == row[:-1] + 1):
        live, scales = whole[start:stop], None if part.scales is None else part.scales[start:stop]
        yield _Run(part.tensor, int(row[start]), live, scales, torch.zeros(live.shape[1], dtype=torch.int64))


def _stretches(joined: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Yield from where to where elements belong together; `joined` says whether each belongs to the one before it."""
    cuts = [0, *(torch.nonzero(~joined)[:, 0] + 1).tolist(), len(joined) + 1]
    yield from itertools.pairwise(cuts)


def _each(found: Mapping[str, list[_T]]) -> Iterator[tuple[str, _T]]:
    for name, parts in found.items():
        for part in parts:
            yield name, part


def _view(name: str, run: _Run, tensor: StoredTensor) -> View:
    first, (num_rows, num_cols) = int(run.cols[0]), run.live.shape
    if not torch.equal(run.cols, torch.arange(first, first + num_cols)):
        raise UserError(f"engine: parameter {name} does not hold neighbouring columns of {tensor.name} side by side")
    rows, cols = (run.first_row, run.first_row + num_rows), (first, first + num_cols)
    if run.scales is None or run.scales.dim() == 1:
        return View(tensor.name, tensor.shape, rows, cols, run.live, run.scales)
    # of numbers that are packed, the loader writes no more than they have bytes, from the first column on
    whole = (0, matrix_shape(tensor.shape)[1])
    return View(tensor.name, tensor.shape, rows, whole, run.live.view(torch.uint8), run.scales)


def cut(view: View, rows: Iterable[int]) -> Iterator[View]:
    """Yield the parts of a view between these rows of its tensor."""
    first, last = view.rows
    edges = sorted({first, last, *(row for row in rows if first < row < last)})
    for start, stop in itertools.pairwise(edges):
        part = slice(start - first, stop - first)
        live, scales = (None if values is None else values[part] for values in (view.live, view.scales))
        yield View(view.name, view.shape, (start, stop), view.cols, live, scales)


def fingerprint(parameter: torch.Tensor) -> int:
    """Return a 64-bit sum over a parameter's bits that depends on their order; makes no copy of its size."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = parameter.detach().reshape(-1).view(integers[parameter.element_size()])
    at_once = 1 << (16 if bits.device.type == "cpu" else 20)  # in a processor's cache it is several times faster
    total = 0
    for start in range(0, len(bits), at_once):
        part = bits[start : start + at_once].to(torch.int64)
        odd = torch.arange(start, start + len(part), device=part.device) * 0x9E3779B97F4A7C1 + 1
        total += int((part * odd).sum())
    return total % 2**64
