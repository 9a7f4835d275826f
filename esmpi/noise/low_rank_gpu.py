"""GPU kernels of low-rank noise, in Triton: the same bits as `esmpi.noise.low_rank` makes.

A matrix is worked on in rectangles, each with the rows of B and the columns of A that belong to it.
"""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from esmpi.noise.format import TILE
from esmpi.noise.gpu import (
    FLOAT32,
    KINDS,
    TILES,
    normals_of,
    normals_on,
    product,
    store,
    stretch,
    to_half,
    words,
)
from esmpi.noise.low_rank import factor_keys, weighted

_PANEL_ELEMENTS = 1 << 23
"""Elements of a sum that an update holds at a time: 32 MiB."""
_FACTOR_ELEMENTS = 1 << 22
"""Elements of B and A, of several members, that it holds beside it."""
_ROWS, _COLUMNS = 64, 64
ROWS, COLUMNS = tl.constexpr(_ROWS), tl.constexpr(_COLUMNS)


def factors(
    name: str, seeds: torch.Tensor, rank: int, width: int, rows: tuple[int, int], cols: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return some rows of B, (M, rows, r), and columns of A, (M, r, columns); see `esmpi.noise.low_rank.factors`.

    `seeds` is (M,) int64 on the device where they are wanted.
    """
    key_b, key_a = factor_keys(name)
    b = _normals(seeds, key_b, rows[0] * rank, 0, 1, (rows[1] - rows[0]) * rank)
    return b.view(len(seeds), -1, rank), _normals(seeds, key_a, cols[0], width, rank, cols[1] - cols[0])


def perturb(
    live: torch.Tensor, theta: torch.Tensor, row: int, column: int, name: str, width: int, rank: int, member: Any
) -> None:
    """Write live = cast(theta + scale * eps) of a rectangle.

    Parameters
    ----------
    live : (R, C) float32, bfloat16 or float16
    theta : (R, C) float32, or bfloat16 where that stands for theta
    row, column : int
        Where in the matrix they begin.
    name, width, rank
        As for `factors`.
    member : ((1,) int64, (1,) float32)
        Seed and scale, on the device.
    """
    seed, scale = member
    b, a = factors(name, seed, rank, width, (row, row + len(live)), (column, column + live.shape[1]))
    kind = KINDS[live.dtype]
    out = live if live.dtype == torch.float32 else live.view(torch.int16)
    _launch(
        _perturb,
        live,
        (out, live.stride(0), theta, theta.stride(0), b, a, *live.shape, rank, scale, 1 / math.sqrt(rank), kind),
    )


def update(
    theta: torch.Tensor,
    row: int,
    column: int,
    name: str,
    width: int,
    rank: int,
    seeds: torch.Tensor,
    coefficients: torch.Tensor,
) -> None:
    """Add sum_i coefficient_i * eps_i to a rectangle of theta, (R, C) float32.

    `seeds` is (M,) int64 and `coefficients` (M,) float32, on the device; the rest is as in `perturb`.
    """
    num_columns = theta.shape[1]
    for panel in theta.split(max(1, _PANEL_ELEMENTS // num_columns)):
        total = torch.zeros(panel.shape, device=panel.device)
        members = max(1, _FACTOR_ELEMENTS // (rank * (len(panel) + num_columns)))
        place = (row, row + len(panel)), (column, column + num_columns)
        for some, factor in zip(seeds.split(members), coefficients.split(members), strict=True):
            b, a = factors(name, some, rank, width, *place)
            left, a = weighted(b, factor), a.view(-1, num_columns)
            _launch(_add_product, total, (total, left, left.stride(0), left.stride(1), a, *total.shape, len(a)))
        panel[:] += total
        row += len(panel)


def _normals(seeds: torch.Tensor, key: int, first: int, stride: int, rows: int, cols: int) -> torch.Tensor:
    """Return eps of some members, (M, rows, cols) float32; see `esmpi.noise.cpu.normals`."""
    out = torch.empty((len(seeds), rows, cols), device=seeds.device)
    chunks = -(-(cols + TILE - 1) // (TILE * TILES.value))
    signed = int(np.uint64(key).astype(np.int64))
    arguments = (out, seeds, normals_on(seeds.device), signed, first, stride, rows, cols, chunks)
    with _current(out):
        _fill[(len(seeds) * rows * chunks,)](*arguments, enable_fp_fusion=False)
    return out


def _launch(kernel: Any, matrix: torch.Tensor, arguments: tuple[Any, ...]) -> None:
    rows, columns = matrix.shape
    if rows and columns:
        with _current(matrix):
            kernel[(triton.cdiv(columns, _COLUMNS) * triton.cdiv(rows, _ROWS),)](*arguments, enable_fp_fusion=False)


def _current(tensor: torch.Tensor) -> Any:
    """Return a context in which Triton launches where a tensor is."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


@triton.jit
def _fill(out, seeds, normals, key: tl.int64, first: tl.int64, stride: tl.int64, rows, cols, chunks):
    program = tl.program_id(0)
    row = program // chunks
    begin = first + (row % rows) * stride
    tile = begin // 256 + (program % chunks) * TILES
    start, low, high = stretch(tile, begin, cols)
    seed = tl.load(seeds + row // rows).to(tl.uint64, bitcast=True)
    w0, w1, w2, w3 = words(tile, key.to(tl.uint64), seed)
    e0, e1 = normals_of(w0, normals)
    e2, e3 = normals_of(w1, normals)
    e4, e5 = normals_of(w2, normals)
    e6, e7 = normals_of(w3, normals)
    target = out + row.to(tl.int64) * cols
    store(target, start, low, high, 0, e0, FLOAT32)
    store(target, start, low, high, 1, e1, FLOAT32)
    store(target, start, low, high, 2, e2, FLOAT32)
    store(target, start, low, high, 3, e3, FLOAT32)
    store(target, start, low, high, 4, e4, FLOAT32)
    store(target, start, low, high, 5, e5, FLOAT32)
    store(target, start, low, high, 6, e6, FLOAT32)
    store(target, start, low, high, 7, e7, FLOAT32)


@triton.jit
def _tile(rows, columns):
    """Return this program's rows and columns of a matrix, int64, and which of them there are."""
    program = tl.program_id(0)
    across = (columns + COLUMNS - 1) // COLUMNS
    m = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = (program % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    return m, n, m < rows, n < columns


@triton.jit
def _perturb(live, live_stride, theta, theta_stride, b, a, rows, columns, rank, scales, factor, kind: tl.constexpr):
    m, n, m_inside, n_inside = _tile(rows, columns)
    inside = m_inside[:, None] & n_inside[None, :]
    value = tl.load(theta + m[:, None] * theta_stride + n[None, :], mask=inside, other=0).to(tl.float32)
    zero = tl.zeros([ROWS, COLUMNS], tl.float32)
    eps = zero
    for k in range(0, rank):
        x = tl.load(b + m * rank + k, mask=m_inside, other=0.0)[:, None] + zero
        y = tl.load(a + k * columns + n, mask=n_inside, other=0.0)[None, :] + zero
        # not 0 + x * y: that is 0 where the product is -0
        eps = product(x, y) if k == 0 else eps + product(x, y)
    if rank > 1:
        eps = product(eps, zero + factor)
    value += product(zero + tl.load(scales), eps)
    target = live + m[:, None] * live_stride + n[None, :]
    if kind == FLOAT32:
        tl.store(target, value, mask=inside)
    else:
        tl.store(target, to_half(value, kind), mask=inside)


@triton.jit
def _add_product(total, b, b_row_stride, b_stride, a, rows, columns, terms):
    m, n, m_inside, n_inside = _tile(rows, columns)
    inside = m_inside[:, None] & n_inside[None, :]
    target = total + m[:, None] * columns + n[None, :]
    result = tl.load(target, mask=inside, other=0.0)
    b += m * b_row_stride
    a += n
    for _ in range(0, terms):
        x = tl.load(b, mask=m_inside, other=0.0)
        y = tl.load(a, mask=n_inside, other=0.0)
        result = tl.fma(x[:, None], y[None, :], result)
        b += b_stride
        a += columns
    tl.store(target, result, mask=inside)
