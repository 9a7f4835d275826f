"""Weights in host memory: theta, and the live weights that are written from it. The base of those on a GPU."""

import hashlib
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from esmpi.mpi.node_memory import NodeMemory
from esmpi.noise import cpu, low_rank
from esmpi.noise.format import FULL, Noise
from esmpi.weights.views import Block, Read, View, by_rows, in_float32, split, write

_T = TypeVar("_T")

_BLOCK_ELEMENTS = 1 << 19
"""Approximate number of elements of a kernel call: enough to hide Python's overhead, few enough to balance threads."""


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
    memory : NodeMemory, optional
        Where theta is if the ranks of a node share one. All of them must call what changes theta, and each changes its
        part; what only reads it is each one's own.
    """

    def __init__(
        self,
        views: Sequence[View],
        read: Read,
        num_threads: int,
        cores: set[int] | None = None,
        bf16_base: bool = False,
        memory: NodeMemory | None = None,
    ):
        self.views = list(views)
        self._memory = memory
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
        """Return a part of theta, moved to where this placement keeps it."""
        if self._memory is None:
            return values
        # by each rank, as none of them may wait here for one that has failed
        return self._memory.take(values.numel()).view(values.shape).copy_(values)

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
                    values = values.bfloat16() if self._bf16_base else values
                    # cast before it moves: a GPU may have no room for a tensor more
                    view.write(values if view.scales is not None else values.to(view.live.dtype))

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

    def perturb(self, seed: int, scale: float, only: Collection[str] | None = None, noise: Noise = FULL) -> None:
        """Write live = cast(theta + scale * eps(seed)); `scale` is sign * sigma.

        With `only`, a collection of canonical names, no other tensors are touched. Of tensors without noise
        live = cast(theta).
        """

        def work(block: Block) -> None:
            assert block.live is not None
            view = self.views[block.view]
            theta = block.theta.bfloat16().float() if self._bf16_base else block.theta
            factor = noise.scale(view.name, view.shape)
            scaled = float(np.float32(scale) * np.float32(factor))
            if factor == 0:
                write(block.live, block.scales, theta)
                return
            with in_float32(block) if block.scales is not None else by_rows(block.live) as live:
                if noise.rank == 0:
                    cpu.perturb(_numpy(live), theta.numpy(), block.first, block.stride, block.key, seed, scaled)
                else:
                    place = (block.first, block.stride, view.name, view.shape[1], noise.rank)
                    low_rank.perturb(_numpy(live), theta.numpy(), *place, seed, scaled)

        self._each(work, [b for b in self._blocks if only is None or self.views[b.view].name in only])

    def restore(self) -> None:
        """Write live = cast(theta)."""
        with torch.no_grad():
            for view, theta in self.theta():
                if view.live is not None:
                    view.write(theta.bfloat16() if self._bf16_base else theta)

    def update(self, seeds: np.ndarray, coefficients: np.ndarray, noise: Noise = FULL) -> None:
        """Add the members' noise, times their coefficients, to theta; the live weights are not touched.

        `seeds` is (N,) uint64, `coefficients` (N,) float32; members count in the order given.
        One with coefficient 0 costs nothing: it would not change a bit.
        """
        used = np.flatnonzero(coefficients)
        if used.size:
            members = seeds[used].astype(np.uint64), coefficients[used].astype(np.float32)
            with self.alone(*members):
                self._update(*members, noise)
            if self._memory is not None:
                self._loaded()  # what other ranks have changed

    def _update(self, seeds: np.ndarray, coefficients: np.ndarray, noise: Noise) -> None:
        def work(block: Block) -> None:
            view = self.views[block.view]
            factor = noise.scale(view.name, view.shape)
            scaled = coefficients * np.float32(factor)
            if factor == 0:
                return
            if noise.rank == 0:
                cpu.update(block.theta.numpy(), block.first, block.stride, block.key, seeds, scaled)
            else:
                place = (block.first, block.stride, view.name, view.shape[1], noise.rank)
                low_rank.update(block.theta.numpy(), *place, seeds, scaled)

        self._each(work, self._own(self._blocks))

    @contextmanager
    def alone(self, *arguments: np.ndarray) -> Iterator[None]:
        """Change theta in the block. Collective over ranks that share it, all with the same `arguments`.

        None of them begins while another one may still read theta, and none returns while another one changes it.
        """
        if self._memory is None:
            yield
            return
        # all that says what is done, and to which tensors: a rank that disagrees would make a theta that nobody knows
        told = [argument.tobytes() for argument in arguments]
        told += [f"{view.name} {view.rows} {view.cols}".encode() for view in self.views]
        token = int.from_bytes(hashlib.blake2b(b"\0".join(told), digest_size=8).digest(), "little")
        self._memory.meet(token)
        try:
            yield
        finally:  # also after an error: the others wait
            self._memory.meet(token)

    def _own(self, parts: Sequence[_T]) -> Sequence[_T]:
        """Return those of all parts of theta that this rank changes."""
        return parts if self._memory is None else parts[self._memory.rank :: self._memory.size]

    def shrink(self, read: Read, factor: float, noise: Noise = FULL) -> None:
        """Write theta = base + factor * (theta - base), of the tensors that have noise; `read(view)` is the base.

        Each operation is rounded to float32, so the bits are the same wherever theta is.
        """
        with self.alone(np.array([factor])):
            for view, theta in self.theta():
                if noise.scale(view.name, view.shape):
                    num_rows = max(1, _BLOCK_ELEMENTS // max(1, theta.shape[1]))
                    pairs = list(zip(theta.split(num_rows), read(view).split(num_rows), strict=True))
                    for part, base in self._own(pairs):
                        there = base.to(part.device)
                        part.sub_(there).mul_(factor).add_(there)
        self._loaded()

    def digest(self, counted: Collection[int] | None = None) -> int:
        """Return the 64-bit digest of theta: equal for equal bits, whatever the layout.

        The digest of a model whose tensors are in several processes is the sum of theirs, modulo 2^64. What
        several of them hold must count in one only: `counted` are the numbers of the views that do.
        """
        blocks = [block for block in self._blocks if counted is None or block.view in counted]
        shares = self._pool.map(
            lambda block: cpu.digest(block.theta.numpy(), block.first, block.stride, block.key), blocks
        )
        return sum(shares) % 2**64

    def close(self) -> None:
        """End the threads; nothing else may be called afterwards."""
        self._pool.shutdown()

    def _each(self, work: Callable[[Block], None], blocks: Sequence[Block]) -> None:
        for _ in self._pool.map(work, blocks):
            pass

    def _split(self, num_elements: int) -> list[Block]:
        """Return theta and the live weights cut into blocks of about `num_elements` elements."""
        return [
            block
            for number, (view, theta) in enumerate(zip(self.views, self._theta, strict=True))
            for block in split(number, view, theta, num_elements)
        ]


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a host tensor's memory as the kernels take it: float32, or the bits of bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
