"""CPU kernels of the noise format: perturb, quantize, update, digest.

Every kernel works on a block: `theta` of shape (R, C) float32 whose row r holds the C neighbouring elements
`first + r * stride`, ... of one canonical tensor (row-major). A whole tensor is a block of one row; a column
shard has a row for each of the tensor's. Kernels release the GIL and write only to the block, so threads may
run blocks side by side. No fast-math: each multiply and add rounds on its own, as the format demands.

The 32 lanes of a tile are a loop that LLVM turns into SIMD code; that is why the rounds are written out.
"""

import numba as nb
import numpy as np

from esmpi.noise.format import TILE, normal_table_bits

_TILE = TILE
_LOW16 = np.uint32(0xFFFF)
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
# The ten round keys are the seed's halves plus multiples of Philox's two Weyl constants.
_WEYL_0 = [np.uint32(r * 0x9E3779B9 & 0xFFFFFFFF) for r in range(10)]
_WEYL_1 = [np.uint32(r * 0xBB67AE85 & 0xFFFFFFFF) for r in range(10)]
_A0, _A1, _A2, _A3, _A4, _A5, _A6, _A7, _A8, _A9 = _WEYL_0
_B0, _B1, _B2, _B3, _B4, _B5, _B6, _B7, _B8, _B9 = _WEYL_1


def kernel(function):
    """Compile, keep what was compiled for the next start where there is a place to keep it, and release the GIL.

    A division by zero is one of floating point, not an exception.
    """
    try:
        return nb.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return nb.njit(nogil=True, error_model="numpy")(function)


@nb.njit(inline="always")
def _round(x0, x1, x2, x3, key0, key1):
    product0 = nb.uint64(x0) * _MULTIPLIER_0
    product1 = nb.uint64(x2) * _MULTIPLIER_1
    return (
        nb.uint32(product1 >> np.uint64(32)) ^ x1 ^ nb.uint32(key0),
        nb.uint32(product1),
        nb.uint32(product0 >> np.uint64(32)) ^ x3 ^ nb.uint32(key1),
        nb.uint32(product0),
    )


@nb.njit(inline="always")
def _fill_tile(tile, key, seed, table, words, eps_bits):
    """Write the 256 elements of a tile, as float32 bits, into `eps_bits`; `words` (128,) is scratch."""
    block = nb.uint64(tile) * np.uint64(32)
    low, high = nb.uint32(block), nb.uint32(block >> np.uint64(32))
    key_low, key_high = nb.uint32(key), nb.uint32(key >> np.uint64(32))
    s0, s1 = nb.uint32(seed), nb.uint32(seed >> np.uint64(32))
    for lane in range(32):
        x0, x1, x2, x3 = nb.uint32(low + nb.uint32(lane)), high, key_low, key_high
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, s0 + _A0, s1 + _B0)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, s0 + _A1, s1 + _B1)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, s0 + _A2, s1 + _B2)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, s0 + _A3, s1 + _B3)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, s0 + _A4, s1 + _B4)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, s0 + _A5, s1 + _B5)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, s0 + _A6, s1 + _B6)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, s0 + _A7, s1 + _B7)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, s0 + _A8, s1 + _B8)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, s0 + _A9, s1 + _B9)
        words[lane] = x0
        words[32 + lane] = x1
        words[64 + lane] = x2
        words[96 + lane] = x3
    for word in range(4):
        for lane in range(32):
            both = words[32 * word + lane]
            first, second = both & _LOW16, both >> np.uint32(16)
            # the lowest of the 16 bits becomes the sign bit of the float
            eps_bits[64 * word + lane] = table[first >> np.uint32(4)] ^ (first << np.uint32(31))
            eps_bits[64 * word + 32 + lane] = table[second >> np.uint32(4)] ^ (second << np.uint32(31))


@nb.njit(inline="always")
def _overlap(tile, begin, cols):
    """Return where a tile and a row overlap: a slice of the row and the slice of the tile."""
    # Loops run over slices from 0: numba checks any other index for being negative, and SIMD is lost.
    shift = tile * _TILE - begin
    start, stop = max(0, -shift), min(_TILE, cols - shift)
    return slice(shift + start, shift + stop), slice(start, stop)


@kernel
def _perturb_float32(live, theta, first, stride, key, seed, scale, table):
    words, eps_bits = np.empty(128, np.uint32), np.empty(_TILE, np.uint32)
    eps = eps_bits.view(np.float32)
    rows, cols = theta.shape
    for row in range(rows):
        begin = first + row * stride
        for tile in range(begin // _TILE, (begin + cols - 1) // _TILE + 1):
            _fill_tile(tile, key, seed, table, words, eps_bits)
            for i in range(_TILE):
                eps[i] *= scale
            target, part = _overlap(tile, begin, cols)
            source, out, noise = theta[row, target], live[row, target], eps[part]
            for i in range(out.size):
                out[i] = source[i] + noise[i]


@kernel
def _perturb_half(live, theta, first, stride, key, seed, scale, table, is_float16):
    words, eps_bits = np.empty(128, np.uint32), np.empty(_TILE, np.uint32)
    eps = eps_bits.view(np.float32)
    sums, rounded = np.zeros(_TILE, np.float32), np.empty(_TILE, np.uint16)
    sum_bits = sums.view(np.uint32)
    rows, cols = theta.shape
    for row in range(rows):
        begin = first + row * stride
        for tile in range(begin // _TILE, (begin + cols - 1) // _TILE + 1):
            _fill_tile(tile, key, seed, table, words, eps_bits)
            target, part = _overlap(tile, begin, cols)
            source, out, padded, result = theta[row, target], live[row, target], sums[part], rounded[part]
            for i in range(out.size):
                padded[i] = source[i]
            for i in range(_TILE):
                sums[i] += scale * eps[i]
            if is_float16:
                for i in range(_TILE):
                    rounded[i] = to_float16(sum_bits[i])
            else:
                for i in range(_TILE):
                    rounded[i] = to_bfloat16(sum_bits[i])
            for i in range(out.size):
                out[i] = result[i]


@nb.njit(inline="always")
def to_bfloat16(bits):
    """Round float32 bits to bfloat16 bits, to nearest even; a NaN stays one."""
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return nb.uint16(np.uint32(0x7FC0) if is_nan else rounded)


@nb.njit(inline="always")
def to_float16(bits):
    """Round float32 bits to float16 bits, to nearest even; what is too large becomes infinite, and a NaN stays one."""
    magnitude = bits & np.uint32(0x7FFFFFFF)
    # 2^-14 and more: the exponent's offset differs by 112, and the mantissa loses 13 bits
    large = magnitude - np.uint32(112 << 23)
    large = min(
        (large + np.uint32(0xFFF) + ((large >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13), np.uint32(0x7C00)
    )
    # less: a multiple of 2^-24
    shift = min(np.uint32(126) - min(magnitude >> np.uint32(23), np.uint32(112)), np.uint32(31))
    mantissa = (magnitude & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
    small = mantissa >> shift
    rest, half = mantissa & ((np.uint32(1) << shift) - np.uint32(1)), np.uint32(1) << (shift - np.uint32(1))
    small += np.uint32(1) if rest > half or (rest == half and small & np.uint32(1)) else np.uint32(0)
    rounded = large if magnitude >= np.uint32(0x38800000) else small
    if magnitude > np.uint32(0x7F800000):
        rounded = np.uint32(0x7E00)
    return nb.uint16(rounded | ((bits >> np.uint32(16)) & np.uint32(0x8000)))


@kernel
def _quantize_rows(numbers, scales, values, largest, is_int8):
    rows, cols = values.shape
    value_bits, scale_bits = values.view(np.uint32), scales.view(np.uint32)
    ratios = np.empty(cols, np.float32)
    ratio_bits = ratios.view(np.uint32)
    for row in range(rows):
        bits, top = value_bits[row], np.uint32(0)
        for i in range(bits.size):
            # as integers, magnitudes have the order of the numbers, with infinity and then NaN above them
            top = max(top, bits[i] & np.uint32(0x7FFFFFFF))
        scale_bits[row] = top
        scale = scales[row] / largest
        scales[row] = scale
        # the scale of a row of zeros is 0, and so is one that is too small for float32
        divisor = scale if scale > np.float32(0) else np.float32(1)
        source, out = values[row], numbers[row]
        for i in range(ratios.size):
            ratio = source[i] / divisor
            ratio = min(max(ratio, -largest), largest)
            ratios[i] = ratio if source[i] - source[i] == np.float32(0) else np.float32(0)
        if is_int8:
            for i in range(out.size):
                out[i] = nb.uint8(nb.int32(np.rint(ratios[i])))
        else:
            for i in range(out.size):
                out[i] = _to_fp8(ratio_bits[i], ratios[i])


@nb.njit(inline="always")
def _to_fp8(bits, value):
    """Round a float32 of at most 448, given as bits too, to E4M3 bits, to nearest even."""
    magnitude = bits & np.uint32(0x7FFFFFFF)
    # 2^-6 and more: the exponent's offset differs by 120, and the mantissa loses 20 bits
    large = ((magnitude + np.uint32(0x7FFFF) + ((magnitude >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)) - (
        np.uint32(960)
    )
    small = nb.uint32(np.rint(abs(value) * np.float32(512)))  # less: a multiple of 2^-9
    rounded = large if magnitude >= np.uint32(0x3C800000) else small
    return nb.uint8(rounded | ((bits >> np.uint32(24)) & np.uint32(0x80)))


@kernel
def _update(theta, first, stride, key, seeds, coefficients, table):
    words, eps_bits = np.empty(128, np.uint32), np.empty(_TILE, np.uint32)
    eps = eps_bits.view(np.float32)
    total = np.empty(_TILE, np.float32)
    rows, cols = theta.shape
    for row in range(rows):
        begin = first + row * stride
        for tile in range(begin // _TILE, (begin + cols - 1) // _TILE + 1):
            total[:] = np.float32(0)
            for member in range(seeds.size):
                _fill_tile(tile, key, seeds[member], table, words, eps_bits)
                coefficient = coefficients[member]
                for i in range(_TILE):
                    total[i] += coefficient * eps[i]
            target, part = _overlap(tile, begin, cols)
            out, noise = theta[row, target], total[part]
            for i in range(out.size):
                out[i] += noise[i]


@kernel
def _normals(out_bits, first, stride, key, seeds, table):
    words, eps_bits = np.empty(128, np.uint32), np.empty(_TILE, np.uint32)
    members, rows, cols = out_bits.shape
    for member in range(members):
        for row in range(rows):
            begin = first + row * stride
            for tile in range(begin // _TILE, (begin + cols - 1) // _TILE + 1):
                _fill_tile(tile, key, seeds[member], table, words, eps_bits)
                target, part = _overlap(tile, begin, cols)
                out_bits[member, row, target] = eps_bits[part]


@kernel
def _digest(theta_bits, first, stride, key):
    """Sum, modulo 2^64, a mix of each element's bits with its tensor and position."""
    total = np.uint64(0)
    rows, cols = theta_bits.shape
    for row in range(rows):
        position = key + nb.uint64(first + row * stride) * np.uint64(0x9E3779B97F4A7C15)
        for col in range(cols):
            x = position + nb.uint64(col) * np.uint64(0x9E3779B97F4A7C15)
            x ^= nb.uint64(theta_bits[row, col])
            # the finalizer of MurmurHash3 (public domain): one-to-one, and every bit reaches every bit
            x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
            x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
            total += x ^ (x >> np.uint64(33))
    return total


def perturb(live: np.ndarray, theta: np.ndarray, first: int, stride: int, key: int, seed: int, scale: float) -> None:
    """Write live = cast(theta + scale * eps): one float32 multiply, one add, round to nearest even.

    Parameters
    ----------
    live : (R, C) float32 or float16, or uint16 for the bits of bfloat16
        Overwritten.
    theta : (R, C) float32
    first, stride : int
        Element of the canonical tensor at theta[0, 0], and how far apart theta[r, 0] and theta[r + 1, 0] are.
    key, seed : int
        From `tensor_key` and `member_seed`.
    scale : float
        sign * sigma, rounded to float32.
    """
    arguments = (theta, first, stride, np.uint64(key), np.uint64(seed), np.float32(scale), normal_table_bits())
    if live.dtype == np.float32:
        _perturb_float32(live, *arguments)
    else:
        _perturb_half(live.view(np.uint16), *arguments, live.dtype == np.float16)


def quantize(numbers: np.ndarray, scales: np.ndarray, values: np.ndarray, largest: float, is_int8: bool) -> None:
    """Write some rows as numbers of a byte, with a scale for each row; see `esmpi.noise.quantization.quantize`.

    Parameters
    ----------
    numbers : (R, C) uint8
        Overwritten, by the bits of int8, or else of E4M3.
    scales : (R,) float32
        Overwritten.
    values : (R, C) float32
    largest : float
        What the largest number of a row becomes.
    is_int8 : bool
    """
    _quantize_rows(numbers, scales, values, np.float32(largest), is_int8)


def update(theta: np.ndarray, first: int, stride: int, key: int, seeds: np.ndarray, coefficients: np.ndarray) -> None:
    """Add sum_i coefficient_i * eps_i to theta, in place and in one pass.

    The sum is made in float32 from 0, members in the given order, unfused, and then added once. `seeds` is
    (M,) uint64, `coefficients` (M,) float32; the rest is as in `perturb`.
    """
    _update(theta, first, stride, np.uint64(key), seeds, coefficients, normal_table_bits())


def normals(out: np.ndarray, first: int, stride: int, key: int, seeds: np.ndarray) -> None:
    """Write eps of some members, `out` (M, R, C) float32; `seeds` is (M,) uint64, the rest is as in `perturb`."""
    _normals(out.view(np.uint32), first, stride, np.uint64(key), seeds, normal_table_bits())


def warm_up() -> None:
    """Compile all kernels, or load them from numba's cache, so that no generation has to."""
    theta, key = np.zeros((1, 1), np.float32), 0
    for dtype in (np.float32, np.float16, np.uint16):
        perturb(np.zeros((1, 1), dtype), theta, 0, 0, key, seed=0, scale=0.0)
    update(theta, 0, 0, key, np.zeros(1, np.uint64), np.zeros(1, np.float32))
    digest(theta, 0, 0, key)


def digest(theta: np.ndarray, first: int, stride: int, key: int) -> int:
    """Return the block's share of theta's 64-bit digest: shares of all blocks add up modulo 2^64."""
    return int(_digest(theta.view(np.uint32), first, stride, np.uint64(key)))
