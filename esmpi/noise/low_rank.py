"""CPU kernels of low-rank noise, version 2 of the noise format: eps = (B A) / sqrt(r) for a matrix.

B (rows, r) and A (r, columns) have normals by version 1's rules, under keys of their own. A block is described as in
`esmpi.noise.cpu`, with the width of the canonical matrix besides: element e is in row e // width and column e % width.
The arithmetic is that of docs/noise.md: no fast-math, each multiply and add rounds on its own.
"""

import math
import re
from dataclasses import dataclass

import numba as nb
import numpy as np

from esmpi.noise import cpu
from esmpi.noise.format import tensor_key

MEMBERS_AT_ONCE = 64
"""Members whose factors an update holds at the same time."""
_COLUMNS = 1024
"""Columns of a sum that stays in the first-level cache while all members are added."""
_NOT_LINEAR = re.compile(r"embed|\bwte\b|\bwpe\b|relative_attention_bias|\brotary")
"""What is in the names of matrices that are looked up, row by row, and not multiplied."""


@dataclass(frozen=True)
class LowRank:
    """Which noise of version 2."""

    rank: int
    names: frozenset[str]
    """Canonical names of the matrices that take part; the noise of all other tensors is 0."""


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor of a checkpoint is the matrix of a linear layer, by its canonical name and shape."""
    return len(shape) == 2 and not _NOT_LINEAR.search(name)


def factor_keys(name: str) -> tuple[int, int]:
    """Return the keys of a matrix's factors, B and A, from its canonical name."""
    return tensor_key(f"{name}/B"), tensor_key(f"{name}/A")


def normals(key: int, seed: int, first: int, count: int) -> np.ndarray:
    """Return elements first to first + count - 1 of a tensor's noise by version 1's rules, (count,) float32."""
    made = np.empty((1, count), np.float32)
    cpu.perturb(made, np.zeros((1, count), np.float32), first, 0, key, seed, 1.0)
    return made[0]


def factors(name: str, seed: int, rank: int, rows: tuple[int, int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return B of some rows, (rows, r), and A, (r, width), of a member's noise of a matrix, both float32."""
    key_b, key_a = factor_keys(name)
    b = normals(key_b, seed, rows[0] * rank, (rows[1] - rows[0]) * rank)
    return b.reshape(-1, rank), normals(key_a, seed, 0, rank * width).reshape(rank, width)


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
    rows = _rows(theta, first, stride, width)
    b, a = factors(name, seed, rank, rows, width)
    noise = np.empty(theta.shape, np.float32)
    _eps(noise, first - rows[0] * width, stride, b, a, _factor(rank))
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

    The sum is made in float32 from 0, members in the given order, unfused, and then added once.
    """
    rows = _rows(theta, first, stride, width)
    total = np.zeros(theta.shape, np.float32)
    for begin in range(0, len(seeds), MEMBERS_AT_ONCE):
        some = slice(begin, begin + MEMBERS_AT_ONCE)
        made = [factors(name, int(seed), rank, rows, width) for seed in seeds[some]]
        b, a = (np.stack(part) for part in zip(*made, strict=True))
        _add(total, first - rows[0] * width, stride, b, a, coefficients[some], _factor(rank))
    theta += total


def _rows(theta: np.ndarray, first: int, stride: int, width: int) -> tuple[int, int]:
    """Return the first row of the matrix that a block has a part of, and the one after the last."""
    last = first + (len(theta) - 1) * stride + theta.shape[1] - 1
    return first // width, last // width + 1


def _factor(rank: int) -> np.float32:
    return np.float32(1 / math.sqrt(rank))


@cpu.kernel
def _eps(noise, first, stride, b, a, factor):
    """Write eps of a block; `first` counts from the first element of the first row of b."""
    rank, width = a.shape
    for row in range(len(noise)):
        element, column = first + row * stride, 0
        while column < noise.shape[1]:
            m, n = element // width, element % width
            count = min(width - n, noise.shape[1] - column)
            out = noise[row, column : column + count]
            part = a[0, n : n + count]
            for i in range(count):
                out[i] = b[m, 0] * part[i]
            for k in range(1, rank):
                part = a[k, n : n + count]
                for i in range(count):
                    out[i] += b[m, k] * part[i]
            if rank > 1:
                for i in range(count):
                    out[i] *= factor
            element += count
            column += count


@cpu.kernel
def _add(total, first, stride, b, a, coefficients, factor):
    """Add the members' noise, times their coefficients, to a block's sum; b is (M, rows, r), a is (M, r, width)."""
    rank, width = a.shape[1:]
    noise = np.empty(_COLUMNS, np.float32)
    for row in range(len(total)):
        element, column = first + row * stride, 0
        while column < total.shape[1]:
            m, n = element // width, element % width
            count = min(width - n, total.shape[1] - column, _COLUMNS)
            out = total[row, column : column + count]
            if rank == 1:
                _add_rank_1(out, b, a, m, n, coefficients)
            else:
                for member in range(len(coefficients)):
                    _add_member(out, b[member, m], a[member], n, coefficients[member], factor, noise)
            element += count
            column += count


@nb.njit
def _add_rank_1(out, b, a, m, n, coefficients):
    """Add the noise of rank 1 of all members to a part of a row: four members in a pass, one after the other."""
    whole = len(coefficients) // 4 * 4
    stop = n + out.size
    for j in range(0, whole, 4):
        a0, a1, a2, a3 = a[j, 0, n:stop], a[j + 1, 0, n:stop], a[j + 2, 0, n:stop], a[j + 3, 0, n:stop]
        b0, b1, b2, b3 = b[j, m, 0], b[j + 1, m, 0], b[j + 2, m, 0], b[j + 3, m, 0]
        c0, c1, c2, c3 = coefficients[j], coefficients[j + 1], coefficients[j + 2], coefficients[j + 3]
        for i in range(out.size):
            value = out[i] + c0 * (b0 * a0[i])
            value = value + c1 * (b1 * a1[i])
            value = value + c2 * (b2 * a2[i])
            out[i] = value + c3 * (b3 * a3[i])
    for j in range(whole, len(coefficients)):
        part, first_b, coefficient = a[j, 0, n:stop], b[j, m, 0], coefficients[j]
        for i in range(out.size):
            out[i] += coefficient * (first_b * part[i])


@nb.njit
def _add_member(out, b, a, n, coefficient, factor, noise):
    """Add a member's noise of any rank to a part of a row; `noise` is scratch."""
    part, next_b = a[0, n : n + out.size], b[0]
    for i in range(out.size):
        noise[i] = next_b * part[i]
    for k in range(1, len(b)):
        part, next_b = a[k, n : n + out.size], b[k]
        for i in range(out.size):
            noise[i] += next_b * part[i]
    for i in range(out.size):
        out[i] += coefficient * (noise[i] * factor)


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
