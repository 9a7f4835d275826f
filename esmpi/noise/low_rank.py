"""CPU kernels of low-rank noise, version 2 of the noise format: eps = (B A) / sqrt(r) for a matrix.

B (rows, r) and A (r, columns) have normals by version 1's rules, under keys of their own. A block is described as in
`esmpi.noise.cpu`, with the width of the canonical matrix besides: element e is in row e // width and column e % width.
The arithmetic is that of docs/noise.md: an update fuses each multiply with its add, everything else rounds by itself.
"""

import math
from collections.abc import Iterator
from typing import Any

import numba as nb
import numpy as np
from numba.extending import intrinsic

from esmpi.noise import cpu
from esmpi.noise.format import tensor_key

TERMS_AT_ONCE = 64
"""Columns of B, of all members together, that an update holds at the same time."""
_COLUMNS = 512
"""Columns of a sum for which the rows of A stay in the second-level cache while all rows of the sum pass."""


def factor_keys(name: str) -> tuple[int, int]:
    """Return the keys of a matrix's factors, B and A, from its canonical name."""
    return tensor_key(f"{name}/B"), tensor_key(f"{name}/A")


def factors(
    name: str, seeds: np.ndarray, rank: int, width: int, rows: tuple[int, int], cols: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return some rows of B, (M, rows, r), and columns of A, (M, r, columns), of members' noise of a matrix.

    Parameters
    ----------
    name : str
        Canonical name of the matrix.
    seeds : (M,) uint64
    rank : int
    width : int
        Columns of the whole matrix.
    rows, cols : (int, int)
        The first, and the one after the last.
    """
    key_b, key_a = factor_keys(name)
    b = np.empty((len(seeds), 1, (rows[1] - rows[0]) * rank), np.float32)
    a = np.empty((len(seeds), rank, cols[1] - cols[0]), np.float32)
    cpu.normals(b, rows[0] * rank, 0, key_b, seeds)
    cpu.normals(a, cols[0], width, key_a, seeds)
    return b.reshape(len(seeds), -1, rank), a


def rectangles(block: Any, first: int, stride: int, width: int) -> Iterator[tuple[Any, int, int]]:
    """Yield the rectangles of a matrix that a block consists of, each with its first row and column.

    Parameters
    ----------
    block : (R, C) array or tensor
    first, stride : int
        As for `esmpi.noise.cpu.perturb`.
    width : int
        Columns of the matrix.
    """
    row, column = divmod(first, width)
    if len(block) > 1:  # the same columns of neighbouring rows
        yield block, row, column
        return
    begin, size = 0, block.shape[1]
    while begin < size:  # the rest of a row, whole rows, the beginning of a row
        num_rows = 1 if column else max(1, (size - begin) // width)
        num_columns = min(width - column, size - begin)
        end = begin + num_rows * num_columns
        yield block[0, begin:end].reshape(num_rows, num_columns), row, column
        begin, row, column = end, row + num_rows, 0


def weighted(b: Any, coefficients: Any) -> Any:
    """Return what an update multiplies A by, (rows, M * r): B times coefficient / sqrt(r).

    `b` is (M, rows, r) and `coefficients` (M,), both float32 arrays or both tensors.
    """
    members, rows, rank = b.shape
    if rank > 1:
        coefficients = coefficients * np.float32(1 / math.sqrt(rank))
    return (b * coefficients[:, None, None]).swapaxes(0, 1).reshape(rows, members * rank)


def perturb(
    live: np.ndarray,
    theta: np.ndarray,
    first: int,
    stride: int,
    name: str,
    width: int,
    rank: int,
    seed: int,
    scale: float,
) -> None:
    """Write live = cast(theta + scale * eps), as `esmpi.noise.cpu.perturb` does for version 1.

    Parameters
    ----------
    live : (R, C) float32 or float16, or uint16 for the bits of bfloat16
        Overwritten.
    theta : (R, C) float32
    first, stride : int
        As for `esmpi.noise.cpu.perturb`.
    name : str
        Canonical name of the matrix.
    width : int
        Its columns.
    rank : int
    seed : int
    scale : float
        sign * sigma, rounded to float32.
    """
    noise = np.empty(theta.shape, np.float32)
    for part, row, column in rectangles(noise, first, stride, width):
        place = (row, row + len(part)), (column, column + part.shape[1])
        b, a = factors(name, np.array([seed], np.uint64), rank, width, *place)
        _eps(part, b[0], a[0], np.float32(1 / math.sqrt(rank)))
    if live.dtype == np.float32:
        _cast_float32(live, theta, noise, np.float32(scale))
    else:
        _cast_half(live.view(np.uint16), theta, noise, np.float32(scale), live.dtype == np.float16)


def update(
    theta: np.ndarray,
    first: int,
    stride: int,
    name: str,
    width: int,
    rank: int,
    seeds: np.ndarray,
    coefficients: np.ndarray,
) -> None:
    """Add sum_i coefficient_i * eps_i to theta; `seeds` (M,) uint64, `coefficients` (M,) float32.

    The sum is a product of two matrices: made in float32 from 0, a term after the other, members in the given order
    and each one's columns of B in theirs. It is added to theta once.
    """
    members = max(1, TERMS_AT_ONCE // rank)
    for part, row, column in rectangles(theta, first, stride, width):
        total = np.zeros(part.shape, np.float32)
        place = (row, row + len(part)), (column, column + part.shape[1])
        for begin in range(0, len(seeds), members):
            some = slice(begin, begin + members)
            b, a = factors(name, seeds[some], rank, width, *place)
            left = np.ascontiguousarray(weighted(b, coefficients[some]))
            _add_product(total, left, a.reshape(-1, a.shape[2]))
        part[:] += total


@cpu.kernel
def _eps(noise, b, a, factor):
    """Write eps of a rectangle; b is (rows, r), a is (r, columns)."""
    rank = len(a)
    for m in range(len(noise)):
        out, part, value = noise[m], a[0], b[m, 0]
        for i in range(out.size):
            out[i] = value * part[i]
        for k in range(1, rank):
            part, value = a[k], b[m, k]
            for i in range(out.size):
                out[i] += value * part[i]
        if rank > 1:
            for i in range(out.size):
                out[i] *= factor


@intrinsic
def _fused(context, x, y, z):
    """Return x * y + z of float32, rounded once."""
    float32 = nb.types.float32
    return float32(float32, float32, float32), lambda _context, builder, _signature, values: builder.fma(*values)


@cpu.kernel
def _add_product(total, b, a):
    """Add b @ a to a sum, in the order of the format; b is (rows, K), a is (K, columns)."""
    rows, columns = total.shape
    by_four, terms = rows // 4 * 4, len(a) // 4 * 4
    for left in range(0, columns, _COLUMNS):
        right = min(left + _COLUMNS, columns)
        # four rows and four terms in a pass: sixteen products for each four numbers that are read of a
        for m in range(0, by_four, 4):
            out0, out1 = total[m, left:right], total[m + 1, left:right]
            out2, out3 = total[m + 2, left:right], total[m + 3, left:right]
            for k in range(0, terms, 4):
                a0, a1, a2, a3 = a[k, left:right], a[k + 1, left:right], a[k + 2, left:right], a[k + 3, left:right]
                b00, b01, b02, b03 = b[m, k], b[m, k + 1], b[m, k + 2], b[m, k + 3]
                b10, b11, b12, b13 = b[m + 1, k], b[m + 1, k + 1], b[m + 1, k + 2], b[m + 1, k + 3]
                b20, b21, b22, b23 = b[m + 2, k], b[m + 2, k + 1], b[m + 2, k + 2], b[m + 2, k + 3]
                b30, b31, b32, b33 = b[m + 3, k], b[m + 3, k + 1], b[m + 3, k + 2], b[m + 3, k + 3]
                for i in range(out0.size):
                    x0, x1, x2, x3 = a0[i], a1[i], a2[i], a3[i]
                    out0[i] = _fused(b03, x3, _fused(b02, x2, _fused(b01, x1, _fused(b00, x0, out0[i]))))
                    out1[i] = _fused(b13, x3, _fused(b12, x2, _fused(b11, x1, _fused(b10, x0, out1[i]))))
                    out2[i] = _fused(b23, x3, _fused(b22, x2, _fused(b21, x1, _fused(b20, x0, out2[i]))))
                    out3[i] = _fused(b33, x3, _fused(b32, x2, _fused(b31, x1, _fused(b30, x0, out3[i]))))
            for k in range(terms, len(a)):
                for row in range(m, m + 4):
                    _add_term(total[row, left:right], b[row, k], a[k, left:right])
        for row in range(by_four, rows):
            for k in range(len(a)):
                _add_term(total[row, left:right], b[row, k], a[k, left:right])


@nb.njit
def _add_term(out, value, part):
    for i in range(out.size):
        out[i] = _fused(value, part[i], out[i])


@cpu.kernel
def _cast_float32(live, theta, noise, scale):
    for row in range(len(theta)):
        out, source, eps = live[row], theta[row], noise[row]
        for i in range(out.size):
            out[i] = source[i] + scale * eps[i]


@cpu.kernel
def _cast_half(live, theta, noise, scale, is_float16):
    """As `_cast_float32`, to the bits of float16 or bfloat16; overwrites `noise`."""
    for row in range(len(theta)):
        out, source, eps = live[row], theta[row], noise[row]
        for i in range(out.size):
            eps[i] = source[i] + scale * eps[i]
        bits = eps.view(np.uint32)
        if is_float16:
            for i in range(out.size):
                out[i] = cpu.to_float16(bits[i])
        else:
            for i in range(out.size):
                out[i] = cpu.to_bfloat16(bits[i])
