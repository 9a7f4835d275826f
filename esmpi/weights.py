"""Weights: views of an engine's live tensors, theta behind them, and what ES does to both."""

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from esmpi.noise import cpu, tensor_key

_BLOCK_ELEMENTS = 1 << 19
"""About what one kernel call gets: big enough to hide Python, small enough to share out evenly."""


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
    """(rows, columns) held here, float32 or bfloat16, on any device; neighbours in a row are neighbours in memory.
    None where only theta is wanted, as in replay."""

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
        if self.live.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"{self.name}: dtype {self.live.dtype} cannot be perturbed, only float32 and bfloat16")
        if self.live.stride(1) != 1 and held[1] > 1:
            raise ValueError(f"{self.name}: the elements of a row must be neighbours in memory")


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of a tensor seen as a matrix; a scalar is 1 x 1."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


@dataclass(frozen=True)
class _Block:
    """A part of a view as the kernels take it; see `esmpi.noise.cpu`."""

    view: int
    """Which of the views it belongs to."""
    theta: np.ndarray
    live: torch.Tensor | None
    first: int
    stride: int
    key: int


class Weights:
    """Theta, float32 in host memory, and the live weights that are written from it.

    Live weights are only ever a cast of theta or of theta + sigma * eps: nothing is restored by
    subtraction, so nothing drifts. The work runs on `num_threads` threads and needs no temporary
    larger than a block.

    Parameters
    ----------
    views : sequence of View
        All that this process holds.
    read : callable
        `read(view)` returns theta's first values for a view: float32, shape of `view.live`, on the CPU.
    num_threads : int
    cores : set of int, optional
        Processors for the threads, where they would otherwise inherit a narrower choice.
    """

    def __init__(
        self,
        views: Sequence[View],
        read: Callable[[View], torch.Tensor],
        num_threads: int,
        cores: set[int] | None = None,
    ):
        self.views = list(views)
        self._theta = [read(view).to(torch.float32).contiguous() for view in self.views]
        self._blocks = [
            block
            for number, (view, theta) in enumerate(zip(self.views, self._theta, strict=True))
            for block in _split(number, view, theta.numpy())
        ]

        def settle() -> None:
            if cores:
                os.sched_setaffinity(0, cores)  # of this thread alone

        self._pool = ThreadPoolExecutor(num_threads, "esmpi-weights", initializer=settle)
        cpu.warm_up()
        self.restore()

    @property
    def num_weights(self) -> int:
        """Weights held here."""
        return sum(theta.numel() for theta in self._theta)

    def theta(self) -> Iterator[tuple[View, torch.Tensor]]:
        """Yield each view with its part of theta (float32, the shape of `view.live`, not a copy)."""
        yield from zip(self.views, self._theta, strict=True)

    def perturb(self, seed: int, scale: float, only: Collection[str] | None = None) -> None:
        """Write live = cast(theta + scale * eps(seed)); `scale` is sign * sigma.

        With `only`, a collection of canonical names, no other tensors are touched.
        """

        def work(block: _Block) -> None:
            assert block.live is not None
            # The kernels write host memory; for a GPU they write a block there, which is then copied.
            target = block.live if block.live.device.type == "cpu" else torch.empty_like(block.live, device="cpu")
            cpu.perturb(_numpy(target), block.theta, block.first, block.stride, block.key, seed, scale)
            if target is not block.live:
                block.live.copy_(target)

        self._each(work, [b for b in self._blocks if only is None or self.views[b.view].name in only])

    def restore(self) -> None:
        """Write live = cast(theta)."""
        with torch.no_grad():
            for view, theta in self.theta():
                if view.live is not None:
                    view.live.copy_(theta)

    def update(self, seeds: np.ndarray, coefficients: np.ndarray) -> None:
        """Add the members' noise, times their coefficients, to theta; the live weights are not touched.

        `seeds` is (N,) uint64, `coefficients` (N,) float32; members count in the order given.
        One with coefficient 0 costs nothing: it would not change a bit.
        """
        used = np.flatnonzero(coefficients)
        seeds, factors = seeds[used].astype(np.uint64), coefficients[used].astype(np.float32)

        def work(block: _Block) -> None:
            cpu.update(block.theta, block.first, block.stride, block.key, seeds, factors)

        if used.size:
            self._each(work, self._blocks)

    def digest(self, counted: Collection[int] | None = None) -> int:
        """Return the 64-bit digest of theta: equal for equal bits, whatever the layout.

        The digest of a model whose tensors lie in several processes is the sum of theirs, modulo 2^64. What
        several of them hold must count in one only: `counted` are the numbers of the views that do.
        """
        blocks = [block for block in self._blocks if counted is None or block.view in counted]
        shares = self._pool.map(lambda block: cpu.digest(block.theta, block.first, block.stride, block.key), blocks)
        return sum(shares) % 2**64

    def _each(self, work: Callable[[_Block], None], blocks: Sequence[_Block]) -> None:
        for _ in self._pool.map(work, blocks):
            pass


def _split(number: int, view: View, theta: np.ndarray) -> Iterator[_Block]:
    """Cut a view into blocks: stretches of one long row if it holds whole rows, else groups of rows."""
    key = tensor_key(view.name)
    stride = matrix_shape(view.shape)[1]
    first = view.rows[0] * stride + view.cols[0]
    live = view.live
    if view.cols == (0, stride) and (live is None or live.is_contiguous()):
        theta = theta.reshape(1, -1)
        live = None if live is None else live.view(1, -1)
        for start in range(0, theta.shape[1], _BLOCK_ELEMENTS):
            part = slice(start, start + _BLOCK_ELEMENTS)
            yield _Block(number, theta[:, part], None if live is None else live[:, part], first + start, 0, key)
    else:
        num_rows = max(1, _BLOCK_ELEMENTS // max(1, theta.shape[1]))
        for start in range(0, theta.shape[0], num_rows):
            part = slice(start, start + num_rows)
            yield _Block(number, theta[part], None if live is None else live[part], first + start * stride, stride, key)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a host tensor's memory as the kernels want it: float32, or the bits of bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
