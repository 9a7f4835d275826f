"""Philox alone on a GPU, for the rate of its integer operations: see bench_kernels.py."""

from typing import Any

import triton
import triton.language as tl

TILES = 32
"""Tiles of a program; with four warps a thread makes a block at a time, as in `esmpi.noise.gpu`."""
_STEPS = tl.constexpr(TILES // 4)


@triton.jit
def _philox_words(out, seed):  # type: ignore[no-untyped-def]  # Triton's own types
    lane = tl.arange(0, 128)
    total = tl.zeros([128], tl.uint32)
    for step in range(0, _STEPS):
        low = (tl.program_id(0) * _STEPS + step) * 128 + lane
        zero = tl.zeros_like(low).to(tl.uint32)
        a, b, c, d = tl.philox(seed, low.to(tl.uint32), zero, zero + 7, zero + 9, 10)
        total ^= a ^ b ^ c ^ d
    tl.store(out + tl.program_id(0), tl.sum(total.to(tl.int32, bitcast=True), axis=0))


philox_words: Any = _philox_words
