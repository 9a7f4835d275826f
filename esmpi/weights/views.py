"""Views of an engine's live tensors, by canonical name, and the blocks that the kernels take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from esmpi.model.base_model import matrix_shape
from esmpi.noise import tensor_key
from esmpi.noise.quantization import LARGEST, dequantize, quantize, shapes

QUANTIZED_AT_ONCE = 1 << 24
"""Most elements of a block of quantized live weights, unless a row has more: they are float32 before."""


@dataclass(frozen=True)
class View:
    """A rectangle of one canonical tensor, and the live memory that holds it.

    A tensor of shape (n0, n1, ...) counts as a matrix of n0 rows and n1 * ... columns.
    """

    name: str
    """Canonical name: the tensor's name in the Hugging Face checkpoint."""
    shape: tuple[int, ...]
    """Shape of the whole canonical tensor."""
    rows: tuple[int, int]
    """First row held here, and the one after the last."""
    cols: tuple[int, int]
    """First column held here, and the one after the last."""
    live: torch.Tensor | None
    """(rows, columns) held here, float32, bfloat16 or float16, on any device; neighbours in a row are neighbours in
    memory, or neighbours in a column if the engine holds the tensor transposed. With `scales` int8, float8_e4m3fn, or
    uint8 with fewer columns, which are packed. None where only theta is wanted, as in replay."""
    scales: torch.Tensor | None = None
    """(rows,) or (rows, groups) float32, on the same device: the scales of quantized live weights
    (`esmpi.noise.quantization`), which must be whole rows without gaps. None if the live weights are not quantized."""

    @classmethod
    def whole(
        cls, name: str, tensor: torch.Tensor, scales: torch.Tensor | None = None, shape: tuple[int, ...] | None = None
    ) -> "View":
        """Return the view of a tensor that is all here; `shape` is the canonical one, unless `tensor` has it."""
        shape = tuple(tensor.shape) if shape is None else shape
        rows, cols = matrix_shape(shape)
        return cls(name, shape, (0, rows), (0, cols), tensor.detach().view(rows, -1 if rows else cols), scales)

    @property
    def num_elements(self) -> int:
        """Elements of the tensor that are held here."""
        return (self.rows[1] - self.rows[0]) * (self.cols[1] - self.cols[0])

    def __post_init__(self) -> None:
        if self.live is None:
            return
        held = (self.rows[1] - self.rows[0], self.cols[1] - self.cols[0])
        numbers, scales = shapes(self.live.dtype, *held) if self.scales is not None else (held, ())
        if tuple(self.live.shape) != numbers:
            raise ValueError(f"{self.name}: live has shape {tuple(self.live.shape)}, the view says {numbers}")
        if self.scales is not None:
            if self.live.dtype not in LARGEST or self.cols != (0, matrix_shape(self.shape)[1]):
                raise ValueError(
                    f"{self.name}: only whole rows can be quantized, to int8, float8_e4m3fn or packed int4"
                )
            if tuple(self.scales.shape) != scales or self.scales.dtype != torch.float32:
                raise ValueError(f"{self.name}: quantized rows must have float32 scales of shape {scales}")
            if not self.live.is_contiguous():
                raise ValueError(f"{self.name}: quantized rows must be contiguous")
        elif self.live.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"{self.name}: dtype {self.live.dtype} cannot be perturbed, only float32, bfloat16, float16"
            )
        if not rows_are_stretches(self.live) and self.live.stride(0) != 1:
            raise ValueError(f"{self.name}: the elements of a row, or those of a column, must be neighbours in memory")

    def write(self, values: torch.Tensor) -> None:
        """Write live = cast(values), or their quantized form; `values` is (rows, columns) of any type or device."""
        assert self.live is not None
        write(self.live, self.scales, values)

    def shown(self) -> torch.Tensor | None:
        """Return the live weights; of quantized ones the float32 values that they stand for."""
        if self.live is None or self.scales is None:
            return self.live
        return dequantize(self.live, self.scales, torch.float32, self.cols[1])


def write(live: torch.Tensor, scales: torch.Tensor | None, values: torch.Tensor) -> None:
    """Write live = cast(values); with the scales of its rows, the quantized form of values.

    Parameters
    ----------
    live : (R, C) Tensor
        Overwritten. With scales it may also be (1, n): whole rows side by side.
    scales : (R,) or (R, groups) float32, optional
        Overwritten.
    values : Tensor
        Of the shape of `live`, or of what it stands for.
    """
    if scales is None:
        live.copy_(values)
    elif live.numel():
        rows = (len(scales), -1)
        values = values.to(torch.float32).reshape(rows).contiguous()
        live = live.view(rows)
        if values.device == live.device:
            quantize(live, scales, values)
            return
        # quantized before it moves: a GPU may have no room for a tensor more
        numbers = torch.empty(live.shape, dtype=live.dtype, device=values.device)
        quantize(numbers, made := values.new_empty(scales.shape), values)
        live.copy_(numbers)
        scales.copy_(made)


def rows_are_stretches(live: torch.Tensor | None) -> bool:
    """Return whether neighbours in a row are neighbours in memory; also if there are no live weights."""
    return live is None or live.stride(1) == 1 or live.shape[1] == 1


@contextmanager
def by_rows(live: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give memory for live weights in which neighbours in a row are neighbours, as the kernels want it.

    That is `live` itself, or, if the engine holds the tensor transposed, memory that is copied there at the end.
    """
    if rows_are_stretches(live):
        yield live
        return
    made = torch.empty(live.shape, dtype=live.dtype, device=live.device)
    yield made
    live.copy_(made)


Read = Callable[[View], torch.Tensor]
"""Returns theta's values for a view: float32, shape of `view.live`, on the CPU."""


@dataclass(frozen=True)
class Block:
    """A part of a view as the kernels take it; see `esmpi.noise.cpu`."""

    view: int
    """Which of the views it belongs to."""
    theta: torch.Tensor
    live: torch.Tensor | None
    first: int
    stride: int
    key: int
    scales: torch.Tensor | None = None
    """Those of quantized live weights, which are whole rows, even where they are one long one."""


@contextmanager
def in_float32(block: Block, memory: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """Give float32 memory of a block's shape, the content of which is quantized into its live weights at the end.

    It is the beginning of `memory`, if there is any.
    """
    assert block.live is not None
    shape = block.theta.shape
    made = torch.empty(shape, dtype=torch.float32) if memory is None else memory[: block.theta.numel()].view(shape)
    yield made
    write(block.live, block.scales, made)


def split(number: int, view: View, theta: torch.Tensor, num_elements: int) -> Iterator[Block]:
    """Cut a view into blocks: stretches of one long row if it holds whole rows, else groups of rows.

    Blocks of quantized live weights are whole rows.
    """
    key = tensor_key(view.name)
    stride = matrix_shape(view.shape)[1]
    first = view.rows[0] * stride + view.cols[0]
    live = view.live
    if view.scales is not None:
        assert live is not None
        num_rows = max(1, min(num_elements, QUANTIZED_AT_ONCE) // max(1, stride))
        for row in range(0, len(view.scales), num_rows):
            held, numbers, scales = (values[row : row + num_rows] for values in (theta, live, view.scales))
            yield Block(number, held.view(1, -1), numbers.view(1, -1), first + row * stride, 0, key, scales)
    elif view.cols == (0, stride) and (live is None or live.is_contiguous()):
        theta = theta.view(1, -1)
        live = None if live is None else live.view(1, -1)
        for start in range(0, theta.shape[1], num_elements):
            part = slice(start, start + num_elements)
            yield Block(number, theta[:, part], None if live is None else live[:, part], first + start, 0, key)
    else:
        num_rows = max(1, num_elements // max(1, theta.shape[1]))
        for start in range(0, theta.shape[0], num_rows):
            part = slice(start, start + num_rows)
            yield Block(number, theta[part], None if live is None else live[part], first + start * stride, stride, key)
