"""GPU kernels of the noise format, in Triton: the same bits as `esmpi.noise.cpu` makes.

All blocks of a model go into one launch: a table on the device has a line of addresses and positions for each
block, and a map says which block a program works on. So a perturbation costs one launch, not one a tensor.

A program takes some neighbouring tiles of one row. Its lanes are laid out as the format's are, so that a warp reads
and writes 32 neighbouring elements at a time, and the 16 kB table of normals stays in the first-level cache.

With TRITON_INTERPRET=1 the kernels run on host memory without a GPU, slowly: that is how tests compare the bits.
"""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from esmpi.noise.format import TILE, normal_table_bits

_TILES = 4
"""Tiles that a program makes at once: 128 Philox blocks, one for each thread of four warps."""
_STEPS = 8
"""How often it does so, one stretch after another."""
_CHUNK = _TILES * _STEPS * TILE
_MAX_PROGRAMS = 2**31 - 1

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Numbers by which kernels know types of live weights."""

# Columns of the table.
_THETA, _LIVE, _FIRST, _STRIDE, _COLS, _KEY, _THETA_STRIDE, _LIVE_STRIDE, _PROGRAM, _CHUNKS, _WIDTH = range(11)
(
    THETA,
    LIVE,
    FIRST,
    STRIDE,
    COLS,
    KEY,
    THETA_STRIDE,
    LIVE_STRIDE,
    PROGRAM,
    CHUNKS,
    WIDTH,
    TILES,
    STEPS,
) = (tl.constexpr(number) for number in (*range(11), _TILES, _STEPS))
FLOAT32, BFLOAT16, FLOAT16 = (tl.constexpr(number) for number in KINDS.values())
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@dataclass(frozen=True)
class DeviceBlock:
    """A block, as `esmpi.noise.cpu` describes it, in the memory of one device."""

    theta: torch.Tensor
    """(R, C) float32, or bfloat16 where that stands for theta; neighbours in a row are neighbours in memory."""
    live: torch.Tensor | None
    """(R, C) float32, bfloat16 or float16, or None where only theta is worked on."""
    first: int
    stride: int
    key: int


class DeviceBlocks:
    """Blocks with the same types, worked on by one launch of each kernel.

    Parameters
    ----------
    blocks : sequence of DeviceBlock
        All on one device; the tensors must stay where they are.
    """

    def __init__(self, blocks: Sequence[DeviceBlock]):
        blocks = [block for block in blocks if block.theta.numel()]
        self._device = blocks[0].theta.device
        self._theta_is_bfloat16 = blocks[0].theta.dtype == torch.bfloat16
        self._live_kind = KINDS[torch.float32 if blocks[0].live is None else blocks[0].live.dtype]
        self._blocks = blocks  # keeps the memory behind the addresses alive
        lines = np.zeros((len(blocks), _WIDTH), np.int64)
        for line, block in zip(lines, blocks, strict=True):
            cols = block.theta.shape[1]
            line[_THETA], line[_THETA_STRIDE] = block.theta.data_ptr(), block.theta.stride(0)
            if block.live is not None:
                line[_LIVE], line[_LIVE_STRIDE] = block.live.data_ptr(), block.live.stride(0)
            line[_FIRST], line[_STRIDE], line[_COLS] = block.first, block.stride, cols
            line[_KEY] = np.uint64(block.key).astype(np.int64)
            # a row need not begin where a tile does
            line[_CHUNKS] = -(-(cols + TILE - 1) // _CHUNK)
        counts = lines[:, _CHUNKS] * np.array([len(block.theta) for block in blocks])
        lines[:, _PROGRAM] = np.cumsum(counts) - counts
        self._num_programs = int(counts.sum())
        if self._num_programs > _MAX_PROGRAMS:
            raise ValueError(f"{self._num_programs} programs are more than a launch can have")
        self._lines = torch.from_numpy(lines).to(self._device)
        which = np.repeat(np.arange(len(blocks), dtype=np.int32), counts)
        self._which = torch.from_numpy(which).to(self._device)
        self._normals = normals_on(self._device)

    def perturb(self, seeds: torch.Tensor, scales: torch.Tensor) -> None:
        """Write live = cast(theta + scale * eps); `seeds` (1,) int64 and `scales` (1,) float32 are on the device."""
        types = (self._theta_is_bfloat16, self._live_kind)
        self._launch(_perturb, self._normals, seeds, scales, *types)

    def update(self, seeds: torch.Tensor, coefficients: torch.Tensor) -> None:
        """Add sum_i coefficient_i * eps_i to theta; `seeds` (M,) int64, `coefficients` (M,) float32, on the device."""
        self._launch(_update, self._normals, seeds, coefficients, len(seeds))

    def digest(self) -> int:
        """Return the blocks' share of the digest, modulo 2^64."""
        shares = torch.empty(self._num_programs, dtype=torch.int64, device=self._device)
        self._launch(_digest, shares)
        return int(shares.sum().item()) % 2**64

    def _launch(self, kernel: Any, *arguments: Any) -> None:
        # Triton launches on the current device, wherever the memory is.
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            # the format demands that each multiply and add rounds on its own: no fusion
            kernel[(self._num_programs,)](self._lines, self._which, *arguments, enable_fp_fusion=False)


@cache
def normals_on(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(normal_table_bits().view(np.int32)).to(device)


def to_device(seeds: np.ndarray, coefficients: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return seeds (M,) uint64 and coefficients (M,) float32 as `DeviceBlocks` takes them."""
    return (
        torch.from_numpy(seeds.astype(np.uint64).view(np.int64)).to(device),
        torch.from_numpy(coefficients.astype(np.float32)).to(device),
    )


@triton.jit
def _place(lines, which):
    """Return this program's line of the table, its row, the position where the row begins, and its tiles."""
    program = tl.program_id(0)
    line = lines + tl.load(which + program) * WIDTH
    number = program - tl.load(line + PROGRAM)
    chunks = tl.load(line + CHUNKS)
    row = number // chunks
    begin = tl.load(line + FIRST) + row * tl.load(line + STRIDE)
    tile = begin // 256 + (number % chunks) * (TILES * STEPS)
    last = (begin + tl.load(line + COLS) - 1) // 256
    # the last program of a row has fewer steps
    steps = tl.minimum((last - tile) // TILES + 1, STEPS).to(tl.int32)
    return line, row, begin, tile, steps


@triton.jit
def words(tile, key, seed):
    """Return the four words of the Philox blocks of TILES tiles, (TILES * 32,) uint32 each."""
    lane = tl.arange(0, TILES * 32)
    block = tile.to(tl.uint64) * 32 + lane.to(tl.uint64)
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    key_low = tl.zeros_like(low) + key.to(tl.uint32)
    key_high = tl.zeros_like(low) + (key >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, key_low, key_high, 10)


@triton.jit
def normals_of(word, normals):
    """Return the two normals of a word, the low half's and the high half's."""
    first, second = word & 0xFFFF, word >> 16
    low = tl.load(normals + (first >> 4)).to(tl.uint32, bitcast=True) ^ (first << 31)
    high = tl.load(normals + (second >> 4)).to(tl.uint32, bitcast=True) ^ (second << 31)
    return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)


@triton.jit
def product(a, b):
    """Return a * b, rounded. In assembly: some compilers fuse a plain product with the sum that follows it."""
    if INTERPRETED:
        return a * b
    else:
        return tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], tl.float32, True, 1)


@triton.jit
def stretch(tile, begin, cols):
    """Return where TILES tiles begin in a row, and from which to which of their elements they are inside of it."""
    start = tile * 256 - begin
    low = tl.maximum(-start, 0).to(tl.int32)
    high = tl.minimum(cols - start, TILES * 256).to(tl.int32)
    return start, low, high


@triton.jit
def _offsets(h: tl.constexpr):
    """Return which elements of TILES tiles their h-th ones of each lane are, (TILES * 32,) int32."""
    lane = tl.arange(0, TILES * 32)
    return (lane // 32) * 256 + 32 * h + lane % 32


@triton.jit
def _load(row, start, low, high, h: tl.constexpr, bf16: tl.constexpr):
    offsets = _offsets(h)
    inside = (offsets >= low) & (offsets < high)
    if bf16:
        bits = tl.load(row.to(tl.pointer_type(tl.int16)) + start + offsets, mask=inside, other=0)
        return ((bits.to(tl.int32) & 0xFFFF) << 16).to(tl.float32, bitcast=True)
    else:
        return tl.load(row.to(tl.pointer_type(tl.float32)) + start + offsets, mask=inside, other=0.0)


@triton.jit
def to_half(value, kind: tl.constexpr):
    """Return the bits of float32 values rounded to 16 bits, to nearest even, as `esmpi.noise.cpu` does."""
    bits = value.to(tl.uint32, bitcast=True)
    if kind == BFLOAT16:
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.int16)
    else:
        magnitude = bits & 0x7FFFFFFF
        large = magnitude - (112 << 23)
        large = (large + 0xFFF + ((large >> 13) & 1)) >> 13
        large = tl.where(magnitude >= 0x47800000, 0x7C00, large)
        # Less than 2^-14: added to 0.5, the sum's last bit is 2^-24, and the addition rounds to nearest even.
        small = (magnitude.to(tl.float32, bitcast=True) + 0.5).to(tl.uint32, bitcast=True) - 0x3F000000
        rounded = tl.where(magnitude >= 0x38800000, large, small)
        rounded = tl.where(magnitude > 0x7F800000, 0x7E00, rounded)
        return (rounded | ((bits >> 16) & 0x8000)).to(tl.int16)


@triton.jit
def store(row, start, low, high, h: tl.constexpr, value, kind: tl.constexpr):
    offsets = _offsets(h)
    inside = (offsets >= low) & (offsets < high)
    if kind == FLOAT32:
        tl.store(row.to(tl.pointer_type(tl.float32)) + start + offsets, value, mask=inside)
    else:
        tl.store(row.to(tl.pointer_type(tl.int16)) + start + offsets, to_half(value, kind), mask=inside)


@triton.jit
def _perturb(lines, which, normals, seeds, scales, theta_bf16: tl.constexpr, live_kind: tl.constexpr):
    line, row, begin, tile, steps = _place(lines, which)
    cols = tl.load(line + COLS)
    theta = tl.load(line + THETA) + row * tl.load(line + THETA_STRIDE) * (2 if theta_bf16 else 4)
    live = tl.load(line + LIVE) + row * tl.load(line + LIVE_STRIDE) * (4 if live_kind == FLOAT32 else 2)
    key = tl.load(line + KEY).to(tl.uint64, bitcast=True)
    seed = tl.load(seeds).to(tl.uint64, bitcast=True)
    scale = tl.load(scales)
    for _ in range(0, steps):
        # Written out, because Triton has no lists of tensors to loop over. All loads come first: the compiler cannot
        # know that live weights are elsewhere than theta, and would let each load wait for the store before it.
        start, low, high = stretch(tile, begin, cols)
        v0 = _load(theta, start, low, high, 0, theta_bf16)
        v1 = _load(theta, start, low, high, 1, theta_bf16)
        v2 = _load(theta, start, low, high, 2, theta_bf16)
        v3 = _load(theta, start, low, high, 3, theta_bf16)
        v4 = _load(theta, start, low, high, 4, theta_bf16)
        v5 = _load(theta, start, low, high, 5, theta_bf16)
        v6 = _load(theta, start, low, high, 6, theta_bf16)
        v7 = _load(theta, start, low, high, 7, theta_bf16)
        w0, w1, w2, w3 = words(tile, key, seed)
        e0, e1 = normals_of(w0, normals)
        e2, e3 = normals_of(w1, normals)
        e4, e5 = normals_of(w2, normals)
        e6, e7 = normals_of(w3, normals)
        store(live, start, low, high, 0, v0 + product(scale, e0), live_kind)
        store(live, start, low, high, 1, v1 + product(scale, e1), live_kind)
        store(live, start, low, high, 2, v2 + product(scale, e2), live_kind)
        store(live, start, low, high, 3, v3 + product(scale, e3), live_kind)
        store(live, start, low, high, 4, v4 + product(scale, e4), live_kind)
        store(live, start, low, high, 5, v5 + product(scale, e5), live_kind)
        store(live, start, low, high, 6, v6 + product(scale, e6), live_kind)
        store(live, start, low, high, 7, v7 + product(scale, e7), live_kind)
        tile += TILES


@triton.jit
def _update(lines, which, normals, seeds, coefficients, num_members):
    line, row, begin, tile, steps = _place(lines, which)
    cols = tl.load(line + COLS)
    theta = tl.load(line + THETA) + row * tl.load(line + THETA_STRIDE) * 4
    key = tl.load(line + KEY).to(tl.uint64, bitcast=True)
    for _ in range(0, steps):
        zero = tl.zeros([TILES * 32], tl.float32)
        t0, t1, t2, t3, t4, t5, t6, t7 = zero, zero, zero, zero, zero, zero, zero, zero
        for member in range(0, num_members):
            coefficient = tl.load(coefficients + member)
            w0, w1, w2, w3 = words(tile, key, tl.load(seeds + member).to(tl.uint64, bitcast=True))
            e0, e1 = normals_of(w0, normals)
            e2, e3 = normals_of(w1, normals)
            e4, e5 = normals_of(w2, normals)
            e6, e7 = normals_of(w3, normals)
            t0 += product(coefficient, e0)
            t1 += product(coefficient, e1)
            t2 += product(coefficient, e2)
            t3 += product(coefficient, e3)
            t4 += product(coefficient, e4)
            t5 += product(coefficient, e5)
            t6 += product(coefficient, e6)
            t7 += product(coefficient, e7)
        start, low, high = stretch(tile, begin, cols)
        t0 += _load(theta, start, low, high, 0, False)
        t1 += _load(theta, start, low, high, 1, False)
        t2 += _load(theta, start, low, high, 2, False)
        t3 += _load(theta, start, low, high, 3, False)
        t4 += _load(theta, start, low, high, 4, False)
        t5 += _load(theta, start, low, high, 5, False)
        t6 += _load(theta, start, low, high, 6, False)
        t7 += _load(theta, start, low, high, 7, False)
        store(theta, start, low, high, 0, t0, FLOAT32)
        store(theta, start, low, high, 1, t1, FLOAT32)
        store(theta, start, low, high, 2, t2, FLOAT32)
        store(theta, start, low, high, 3, t3, FLOAT32)
        store(theta, start, low, high, 4, t4, FLOAT32)
        store(theta, start, low, high, 5, t5, FLOAT32)
        store(theta, start, low, high, 6, t6, FLOAT32)
        store(theta, start, low, high, 7, t7, FLOAT32)
        tile += TILES


@triton.jit
def _digest(lines, which, shares):
    line, row, begin, tile, steps = _place(lines, which)
    cols = tl.load(line + COLS)
    theta = tl.load(line + THETA) + row * tl.load(line + THETA_STRIDE) * 4
    key = tl.load(line + KEY).to(tl.uint64, bitcast=True)
    total = tl.zeros([TILES * 256], tl.uint64)
    for _ in range(0, steps):
        col = tile * 256 + tl.arange(0, TILES * 256) - begin
        inside = (col >= 0) & (col < cols)
        bits = tl.load(theta.to(tl.pointer_type(tl.int32)) + col, mask=inside, other=0).to(tl.uint32, bitcast=True)
        x = (key + (begin + col).to(tl.uint64) * 0x9E3779B97F4A7C15) ^ bits.to(tl.uint64)
        x = (x ^ (x >> 33)) * 0xFF51AFD7ED558CCD
        x = (x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53
        total += tl.where(inside, x ^ (x >> 33), 0)
        tile += TILES
    tl.store(shares + tl.program_id(0), tl.sum(total.to(tl.int64, bitcast=True), axis=0))
