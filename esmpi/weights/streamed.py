"""Weights whose live part is on a GPU, with theta in host memory and streamed. The bits are those of a CPU."""

import mmap
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from esmpi.errors import UserError
from esmpi.noise.format import FULL, Noise
from esmpi.noise.gpu import to_device
from esmpi.weights.device import ALL, Grouped, device_of, scratch_for
from esmpi.weights.host import Weights
from esmpi.weights.placement import size
from esmpi.weights.views import Block, split, write

_STAGING_ELEMENTS = 1 << 24
"""Float32 elements of each of the two buffers on the device that theta passes through: 64 MiB, some 1.3 ms of PCIe,
so that starting copies and kernels takes little time beside them."""


@dataclass(frozen=True)
class _Chunk:
    """Blocks that fit into a staging buffer together."""

    blocks: list[Block]
    """With theta on the host."""
    staged: list[torch.Tensor]
    """The parts of the buffer that take their theta."""
    grouped: Grouped
    """The blocks with theta in the buffer, for the kernels."""
    base: list[torch.Tensor]
    """With `bf16_base`: what stands for these blocks' theta on the device."""


class StreamedWeights(Weights):
    """Theta in pinned host memory, streamed through two buffers on the GPU, so that copies and kernels overlap.

    With `bf16_base` only an update streams: live weights are written from a bfloat16 copy on the device.
    """

    _held = 0
    """Elements of theta that are in place."""

    def _hold(self, values: torch.Tensor) -> torch.Tensor:
        # All of theta in one piece: torch's own pinned memory takes a power of two for each tensor.
        if not self._held:
            num_elements = sum(view.num_elements for view in self.views if view.live is not None)
            own = None if self._memory is None else self._memory.take(num_elements)
            self._locked = page_locked(num_elements, own)
            weakref.finalize(self, _unlock, self._locked.data_ptr()).atexit = False
        part = self._locked[self._held : self._held + values.numel()].view(values.shape)
        self._held += values.numel()
        return part.copy_(values)

    def _prepare(self) -> None:
        device = device_of(self.views)
        self._base = [theta.to(device, torch.bfloat16) for theta in self._theta] if self._bf16_base else []
        blocks = self._split(_STAGING_ELEMENTS)
        based = [
            block.theta
            for number, (view, base) in enumerate(zip(self.views, self._base, strict=False))
            for block in split(number, view, base, _STAGING_ELEMENTS)
        ]
        size = max([_STAGING_ELEMENTS, *(block.theta.numel() for block in blocks)])
        buffers = [torch.empty(size, device=device) for _ in range(2)]
        scratch = [scratch_for(blocks, device) for _ in buffers]
        self._streams = [torch.cuda.Stream(device) for _ in buffers] if device.type == "cuda" else []
        self._chunks: list[_Chunk] = []
        for number, members in enumerate(_pack(blocks, size)):
            buffer, staged, used = buffers[number % 2], [], 0
            for i in members:
                count = blocks[i].theta.numel()
                staged.append(buffer[used : used + count].view(blocks[i].theta.shape))
                used += count
            chosen = [blocks[i] for i in members]
            moved = [replace(block, theta=part) for block, part in zip(chosen, staged, strict=True)]
            base = [based[i] for i in members] if self._bf16_base else []
            grouped = Grouped(moved, self.views, scratch[number % 2])
            self._chunks.append(_Chunk(chosen, staged, grouped, base))
        self._base_blocks = [
            block
            for number, (view, base) in enumerate(zip(self.views, self._base, strict=False))
            for block in split(number, view, base, ALL)
        ]
        self._based = Grouped(self._base_blocks, self.views, None)

    def perturb(self, seed: int, scale: float, only: Collection[str] | None = None, noise: Noise = FULL) -> None:
        # Before streaming: copies of a member's numbers from here would wait for the copies of theta.
        member = to_device(np.array([seed], np.uint64), np.array([scale], np.float32), device_of(self.views))
        if self._bf16_base:
            based = self._based if only is None else self._based.only(only)
            based.perturb(noise, *member)
            return

        def work(chunk: _Chunk) -> None:
            grouped = chunk.grouped if only is None else chunk.grouped.only(only)
            grouped.perturb(noise, *member)

        self._stream(work)

    def restore(self) -> None:
        with torch.no_grad():
            if self._bf16_base:
                for view, base in zip(self.views, self._base, strict=True):
                    assert view.live is not None
                    view.live.copy_(base)
            else:
                self._stream(_write_live)

    def _loaded(self) -> None:
        for base, theta in zip(self._base, self._theta, strict=False):
            base.copy_(theta)

    def _update(self, seeds: np.ndarray, coefficients: np.ndarray, noise: Noise) -> None:
        members = to_device(seeds, coefficients, device_of(self.views))

        def work(chunk: _Chunk) -> None:
            chunk.grouped.update(noise, *members)
            for block, part in zip(chunk.blocks, chunk.staged, strict=True):
                block.theta.copy_(part, non_blocking=True)
            for base, part in zip(chunk.base, chunk.staged, strict=False):
                base.copy_(part)

        self._stream(work, self._own(list(enumerate(self._chunks))))

    def _stream(self, work: Callable[[_Chunk], None], chunks: Sequence[tuple[int, _Chunk]] | None = None) -> None:
        """Bring theta to the device a chunk at a time and work on it there; return when all is done."""
        device = device_of(self.views)
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(device))
        for number, chunk in enumerate(self._chunks) if chunks is None else chunks:
            # A buffer has a stream of its own: what happens to it stays in order, and the two overlap.
            with _on(self._streams[number % 2] if self._streams else None):
                for block, part in zip(chunk.blocks, chunk.staged, strict=True):
                    part.copy_(block.theta, non_blocking=True)
                work(chunk)
        for stream in self._streams:
            stream.synchronize()


def page_locked(num_elements: int, memory: torch.Tensor | None = None) -> torch.Tensor:
    """Return float32 host memory that a GPU can copy from and to by itself; plain memory where there is no GPU.

    It is `memory`, if that is given.

    Raises
    ------
    UserError
        If the memory is not there, or the operating system does not let this process lock that much.
    """
    num_bytes = max(4 * num_elements, mmap.PAGESIZE)
    try:
        mapped = None if memory is not None else mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise UserError(f"engine: no host memory of {size(num_bytes)} for theta: {error.strerror}") from error
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTFORK)  # a fork would have to copy locked memory
        memory = torch.frombuffer(mapped, dtype=torch.float32)
    assert memory is not None
    if torch.cuda.is_available():
        code = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), num_bytes, 0))
        if code != 0:
            raise UserError(
                f"engine: host memory of {size(num_bytes)} for theta cannot be locked (CUDA error {code}): is there "
                f"that much, and does `ulimit -l` allow it?"
            )
    return memory[:num_elements]


def _unlock(address: int) -> None:
    """Let CUDA forget memory that `page_locked` has returned, so that other memory may have its address."""
    if torch.cuda.is_available():
        torch.cuda.cudart().cudaHostUnregister(address)


def _write_live(chunk: _Chunk) -> None:
    for block, part in zip(chunk.blocks, chunk.staged, strict=True):
        assert block.live is not None
        write(block.live, block.scales, part)


@contextmanager
def _on(stream: "torch.cuda.Stream | None") -> Iterator[None]:
    if stream is None:
        yield
    else:
        with torch.cuda.stream(stream):
            yield


def _pack(blocks: Sequence[Block], size: int) -> Iterator[list[int]]:
    """Group blocks, by number, that fit into `size` elements together."""
    group: list[int] = []
    used = 0
    for number, block in enumerate(blocks):
        if group and used + block.theta.numel() > size:
            yield group
            group, used = [], 0
        group.append(number)
        used += block.theta.numel()
    if group:
        yield group
