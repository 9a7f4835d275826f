"""Views of an engine's live tensors, by canonical name, and the blocks that the kernels take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from esmpi.model.base_model import matrix_shape
from esmpi.noise import tensor_key


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
    memory, or neighbours in a column if the engine holds the tensor transposed. None where only theta is wanted, as in
    replay."""

    @classmethod
    def whole(cls, name: str, tensor: torch.Tensor) -> "View":
        """Return the view of a tensor that is all here."""
        rows, cols = matrix_shape(tuple(tensor.shape))
        return cls(name, tuple(tensor.shape), (0, rows), (0, cols), tensor.detach().view(rows, cols))

    def __post_init__(self) -> None:
        if self.live is None:
            return
        held = (self.rows[1] - self.rows[0], self.cols[1] - self.cols[0])
        if tuple(self.live.shape) != held:
            raise ValueError(f"{self.name}: live has shape {tuple(self.live.shape)}, the view says {held}")
        if self.live.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"{self.name}: dtype {self.live.dtype} cannot be perturbed, only float32, bfloat16, float16"
            )
        if not rows_are_stretches(self.live) and self.live.stride(0) != 1:
            raise ValueError(f"{self.name}: the elements of a row, or those of a column, must be neighbours in memory")


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


def split(number: int, view: View, theta: torch.Tensor, num_elements: int) -> Iterator[Block]:
    """Cut a view into blocks: stretches of one long row if it holds whole rows, else groups of rows."""
    key = tensor_key(view.name)
    stride = matrix_shape(view.shape)[1]
    first = view.rows[0] * stride + view.cols[0]
    live = view.live
    if view.cols == (0, stride) and (live is None or live.is_contiguous()):
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
