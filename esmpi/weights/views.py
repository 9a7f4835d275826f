"""Weights: views of an engine's live tensors, theta behind them, and what ES does to both."""

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from esmpi.model.base_model import matrix_shape
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


Placement = Literal["device", "host", "host+bf16"]
"""Where theta is: beside the live weights; in host memory; there, with a bfloat16 copy that stands for theta on the
device while members are evaluated (live = cast(bf16(theta) + sigma * eps)). Theta has the same bits in any case."""

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


class Weights:
    """Theta, float32 in host memory, and the live weights, there as well, that are written from it.

    Live weights are only ever a cast of theta or of theta + sigma * eps: nothing is restored by
    subtraction, so nothing drifts. The work runs on `num_threads` threads and needs no temporary
    larger than a block. `open_weights` chooses between this and its subclasses for a GPU.

    Parameters
    ----------
    views : sequence of View
        All that this process holds.
    read : callable
        See `Read`.
    num_threads : int
    cores : set of int, optional
        Processors for the threads, where they would otherwise inherit a narrower choice.
    bf16_base : bool
        Whether bf16(theta) stands for theta in the live weights, as in placement `host+bf16`.
    """

    def __init__(
        self,
        views: Sequence[View],
        read: Read,
        num_threads: int,
        cores: set[int] | None = None,
        bf16_base: bool = False,
    ):
        self.views = list(views)
        self._bf16_base = bf16_base
        self._theta = [self._hold(read(view).to(torch.float32).contiguous()) for view in self.views]
        self._blocks = self._split(_BLOCK_ELEMENTS)

        def settle() -> None:
            if cores:
                os.sched_setaffinity(0, cores)  # of this thread alone

        self._pool = ThreadPoolExecutor(num_threads, "esmpi-weights", initializer=settle)
        cpu.warm_up()
        self._prepare()
        self.restore()

    def _hold(self, values: torch.Tensor) -> torch.Tensor:
        """Return a part of theta, moved to where theta is to be."""
        return values

    def _prepare(self) -> None:
        """Make ready what a placement needs, once theta is in place."""

    @property
    def num_weights(self) -> int:
        """Weights held here."""
        return sum(theta.numel() for theta in self._theta)

    def theta(self) -> Iterator[tuple[View, torch.Tensor]]:
        """Yield each view with its part of theta (float32, the shape of `view.live`, not a copy)."""
        yield from zip(self.views, self._theta, strict=True)

    def load(self, read: Read) -> None:
        """Replace theta by what `read(view)` returns, as at the start; the live weights are not touched."""
        for view, theta in self.theta():
            theta.copy_(read(view))
        self._loaded()

    def show(self, read: Read) -> None:
        """Write live = cast(what `read(view)` returns), as if it were theta; theta is not touched."""
        with torch.no_grad():
            for view in self.views:
                if view.live is not None:
                    values = read(view)
                    # cast before it moves: a GPU may have no room for a tensor more
                    view.live.copy_((values.bfloat16() if self._bf16_base else values).to(view.live.dtype))

    def squared_distance(self, read: Read, counted: Collection[int] | None = None) -> float:
        """Return the squared Euclidean norm of theta minus what `read(view)` returns; `counted` is as in `digest`."""
        total = []
        for number, (view, theta) in enumerate(self.theta()):
            if counted is None or number in counted:
                num_rows = max(1, _BLOCK_ELEMENTS // max(1, theta.shape[1]))
                pairs = zip(theta.split(num_rows), read(view).split(num_rows), strict=True)
                total += [float((mine.cpu().double() - other.double()).square().sum()) for mine, other in pairs]
        return math.fsum(total)

    def _loaded(self) -> None:
        """Bring up to date what a placement derives from theta."""

    def perturb(self, seed: int, scale: float, only: Collection[str] | None = None) -> None:
        """Write live = cast(theta + scale * eps(seed)); `scale` is sign * sigma.

        With `only`, a collection of canonical names, no other tensors are touched.
        """

        def work(block: Block) -> None:
            assert block.live is not None
            theta = block.theta.bfloat16().float() if self._bf16_base else block.theta
            cpu.perturb(_numpy(block.live), theta.numpy(), block.first, block.stride, block.key, seed, scale)

        self._each(work, [b for b in self._blocks if only is None or self.views[b.view].name in only])

    def restore(self) -> None:
        """Write live = cast(theta)."""
        with torch.no_grad():
            for view, theta in self.theta():
                if view.live is not None:
                    view.live.copy_(theta.bfloat16() if self._bf16_base else theta)

    def update(self, seeds: np.ndarray, coefficients: np.ndarray) -> None:
        """Add the members' noise, times their coefficients, to theta; the live weights are not touched.

        `seeds` is (N,) uint64, `coefficients` (N,) float32; members count in the order given.
        One with coefficient 0 costs nothing: it would not change a bit.
        """
        used = np.flatnonzero(coefficients)
        if used.size:
            self._update(seeds[used].astype(np.uint64), coefficients[used].astype(np.float32))

    def _update(self, seeds: np.ndarray, coefficients: np.ndarray) -> None:
        def work(block: Block) -> None:
            cpu.update(block.theta.numpy(), block.first, block.stride, block.key, seeds, coefficients)

        self._each(work, self._blocks)

    def digest(self, counted: Collection[int] | None = None) -> int:
        """Return the 64-bit digest of theta: equal for equal bits, whatever the layout.

        The digest of a model whose tensors lie in several processes is the sum of theirs, modulo 2^64. What
        several of them hold must count in one only: `counted` are the numbers of the views that do.
        """
        blocks = [block for block in self._blocks if counted is None or block.view in counted]
        shares = self._pool.map(
            lambda block: cpu.digest(block.theta.numpy(), block.first, block.stride, block.key), blocks
        )
        return sum(shares) % 2**64

    def _each(self, work: Callable[[Block], None], blocks: Sequence[Block]) -> None:
        for _ in self._pool.map(work, blocks):
            pass

    def _split(self, num_elements: int) -> list[Block]:
        """Return theta and the live weights cut into blocks of about so many elements."""
        return [
            block
            for number, (view, theta) in enumerate(zip(self.views, self._theta, strict=True))
            for block in split(number, view, theta, num_elements)
        ]


def open_weights(
    views: Sequence[View], read: Read, num_threads: int, placement: Placement, cores: set[int] | None = None
) -> Weights:
    """Return weights with theta where it is wanted; on a CPU all places are the same memory."""
    kind: type[Weights] = Weights
    if any(view.live is not None and view.live.device.type == "cuda" for view in views):
        from esmpi.weights.device import DeviceWeights, StreamedWeights

        kind = DeviceWeights if placement == "device" else StreamedWeights
    return kind(views, read, num_threads, cores, bf16_base=placement == "host+bf16")


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


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a host tensor's memory as the kernels want it: float32, or the bits of bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
