"""Quantized live weights: the numbers of a matrix as int8 or fp8, with one float32 scale for each of its rows.

docs/noise.md defines both, bit for bit. A kernel makes them on a CPU, and a few operations of PyTorch on a GPU.
"""

import torch

TYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""Types of the numbers by the values of `model.quantization`."""
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""What the largest number of a row becomes."""

_ELEMENTS_AT_ONCE = 1 << 23
"""Elements that operations of PyTorch have temporaries for, unless a row has more: some tens of MiB."""


def quantize(numbers: torch.Tensor, scales: torch.Tensor, values: torch.Tensor) -> None:
    """Write the quantized form of some rows.

    A row that has an infinite element or a NaN has the scale infinity or NaN, and stands for NaN.

    Parameters
    ----------
    numbers : (R, C) int8 or float8_e4m3fn
        Overwritten.
    scales : (R,) float32
        Overwritten.
    values : (R, C) float32
        Whole rows of the matrix. All are contiguous, and on one device.
    """
    if values.device.type == "cpu":
        from esmpi.noise import cpu  # loads numba, which vLLM must not find when it starts

        largest = LARGEST[numbers.dtype]
        bits = numbers.view(torch.uint8).numpy()
        cpu.quantize(bits, scales.numpy(), values.numpy(), largest, numbers.dtype == torch.int8)
        return
    each = max(1, _ELEMENTS_AT_ONCE // max(1, values.shape[1]))
    for parts in zip(numbers.split(each), scales.split(each), values.split(each), strict=True):
        quantize_with_torch(*parts)


def quantize_with_torch(numbers: torch.Tensor, scales: torch.Tensor, values: torch.Tensor) -> None:
    """Do what `quantize` does, on any device, with temporaries of the size of `values`."""
    largest = LARGEST[numbers.dtype]
    torch.div(values.abs().amax(1), largest, out=scales)
    ratios = values / torch.where(scales > 0, scales, 1.0)[:, None]
    ratios = ratios.nan_to_num_(0.0).clamp_(-largest, largest)
    # a cast to an integer cuts off; one to fp8 rounds to nearest even
    numbers.copy_(ratios.round_() if numbers.dtype == torch.int8 else ratios)


def dequantize(numbers: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weights that quantized ones stand for, (R, C): numbers * scales in float32, cast to a type."""
    if torch.compiler.is_compiling() or numbers.numel() <= _ELEMENTS_AT_ONCE:
        return (numbers.to(torch.float32) * scales[:, None]).to(dtype)
    live = torch.empty(numbers.shape, dtype=dtype, device=numbers.device)
    each = max(1, _ELEMENTS_AT_ONCE // max(1, numbers.shape[1]))
    for out, part, scale in zip(live.split(each), numbers.split(each), scales.split(each), strict=True):
        out.copy_(part.to(torch.float32).mul_(scale[:, None]))
    return live
