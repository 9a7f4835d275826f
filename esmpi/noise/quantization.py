"""Quantized live weights: the numbers of a matrix as int8 or fp8, with one float32 scale for each of its rows, or as
int4, two in a byte, with a scale for each 64 neighbours of a row.

docs/noise.md defines all of them, bit for bit. A kernel makes them on a CPU, and a few operations of PyTorch on a GPU.
"""

import torch

TYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.uint8}
"""Types of the numbers by the values of `model.quantization`; two numbers of int4 share a byte."""
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.uint8: 7.0}
"""What the largest number of a scale becomes."""
GROUP = 64
"""Numbers of int4 that share a scale."""

_ELEMENTS_AT_ONCE = 1 << 23
"""Elements that operations of PyTorch have temporaries for, unless a row has more: some tens of MiB."""


def numbers_per_scale(dtype: torch.dtype, columns: int) -> int:
    """Return how many neighbours in a row of a matrix share a scale."""
    return GROUP if dtype == torch.uint8 else columns


def shapes(dtype: torch.dtype, rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the shapes of the numbers and of the scales of a matrix."""
    if dtype != torch.uint8:
        return (rows, columns), (rows,)
    groups = -(-columns // GROUP)
    return (rows, groups * GROUP // 2), (rows, groups)


def quantize(numbers: torch.Tensor, scales: torch.Tensor, values: torch.Tensor) -> None:
    """Write the quantized form of some rows.

    If numbers that share a scale have an infinite element or a NaN, the scale is infinity or NaN, and they stand for
    NaN.

    Parameters
    ----------
    numbers : (R, C) int8 or float8_e4m3fn, or uint8 of the shape that `shapes` says
        Overwritten.
    scales : (R,) or (R, groups) float32
        Overwritten.
    values : (R, C) float32
        Whole rows of the matrix. All are contiguous, and on one device.
    """
    if numbers.dtype == torch.uint8:
        each = max(1, _ELEMENTS_AT_ONCE // max(1, values.shape[1]))
        for parts in zip(numbers.split(each), scales.split(each), values.split(each), strict=True):
            _quantize_to_int4(*parts)
        return
    _quantize_rows(numbers, scales, values, LARGEST[numbers.dtype])


def _quantize_to_int4(numbers: torch.Tensor, scales: torch.Tensor, values: torch.Tensor) -> None:
    """Quantize groups as if they were rows, and pack what comes out: the first half of a group into the low bits."""
    missing = scales.shape[1] * GROUP - values.shape[1]
    groups = torch.nn.functional.pad(values, (0, missing)).view(-1, GROUP)
    single = torch.empty(groups.shape, dtype=torch.int8, device=values.device)
    _quantize_rows(single, scales.view(-1), groups, LARGEST[torch.uint8])
    low, high = single.add_(8).view(torch.uint8).view(len(values), -1, 2, GROUP // 2).unbind(2)
    torch.bitwise_or(low, high << 4, out=numbers.view(low.shape))


def _quantize_rows(numbers: torch.Tensor, scales: torch.Tensor, values: torch.Tensor, largest: float) -> None:
    if values.device.type == "cpu":
        from esmpi.noise import cpu  # loads numba, which vLLM must not find when it starts

        bits = numbers.view(torch.uint8).numpy()
        cpu.quantize(bits, scales.numpy(), values.numpy(), largest, numbers.dtype == torch.int8)
        return
    each = max(1, _ELEMENTS_AT_ONCE // max(1, values.shape[1]))
    for parts in zip(numbers.split(each), scales.split(each), values.split(each), strict=True):
        quantize_with_torch(*parts, largest)


def quantize_with_torch(numbers: torch.Tensor, scales: torch.Tensor, values: torch.Tensor, largest: float) -> None:
    """Write rows as numbers of a byte, with a scale for each row, on any device, with temporaries of that size."""
    torch.div(values.abs().amax(1), largest, out=scales)
    ratios = values / torch.where(scales > 0, scales, 1.0)[:, None]
    ratios = ratios.nan_to_num_(0.0).clamp_(-largest, largest)
    # a cast to an integer cuts off; one to fp8 rounds to nearest even
    numbers.copy_(ratios.round_() if numbers.dtype == torch.int8 else ratios)


def dequantize(numbers: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, columns: int) -> torch.Tensor:
    """Return the weights that quantized ones stand for, (R, columns): numbers * scales in float32, cast to a type."""
    if torch.compiler.is_compiling() or len(numbers) * columns <= _ELEMENTS_AT_ONCE:
        return (_single(numbers).mul_(scales.view(len(scales), -1, 1)).flatten(1)[:, :columns]).to(dtype)
    live = torch.empty((len(numbers), columns), dtype=dtype, device=numbers.device)
    each = max(1, _ELEMENTS_AT_ONCE // max(1, columns))
    for out, part, scale in zip(live.split(each), numbers.split(each), scales.split(each), strict=True):
        out.copy_(_single(part).mul_(scale.view(len(scale), -1, 1)).flatten(1)[:, :columns])
    return live


def _single(numbers: torch.Tensor) -> torch.Tensor:
    """Return the numbers in float32, (R, scales of a row, numbers of a scale)."""
    if numbers.dtype != torch.uint8:
        return numbers.to(torch.float32)[:, None]
    packed = numbers.view(len(numbers), -1, GROUP // 2)
    return torch.cat([packed & 15, packed >> 4], 2).to(torch.float32).sub_(8)
