"""Quantized weights have the bits that docs/noise.md defines, by the CPU's kernel and by PyTorch's operations."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esmpi.noise import quantization
from esmpi.noise.quantization import LARGEST, TYPES, dequantize, quantize, quantize_with_torch, shapes

Quantized = tuple[torch.Tensor, torch.Tensor]


def fp8_values() -> list[tuple[Fraction, int]]:
    """Every number of E4M3 that is not negative, by its bits: 4 bits of exponent with offset 7, 3 of mantissa."""
    found = []
    for bits in range(0x7F):  # 0x7F is NaN
        exponent, mantissa = bits >> 3, Fraction(bits & 7, 8)
        found.append((2 ** Fraction(exponent - 7) * (1 + mantissa) if exponent else mantissa / 64, bits))
    return found


def nearest(value: float, numbers: list[tuple[Fraction, int]]) -> int:
    """Return the nearest of some numbers, by its bits or itself; of two the even one."""
    exact = Fraction(value)
    return min(numbers, key=lambda number: (abs(number[0] - exact), number[1] % 2))[1]


def oracle(values: np.ndarray, kind: str) -> Quantized:
    """The definition, a number at a time, with exact arithmetic after the two float32 divisions."""
    if kind == "int4":
        return packed_oracle(values)
    largest = np.float32({"int8": 127, "fp8": 448}[kind])
    bits, scales = np.zeros(values.shape, np.uint8), np.zeros(len(values), np.float32)
    of_int8, of_fp8 = [(Fraction(i), i) for i in range(128)], fp8_values()
    for row, line in enumerate(values):
        scales[row] = scale = np.abs(line).max() / largest
        for column, value in enumerate(line):
            ratio = value / scale if scale > 0 else value
            size = min(abs(float(ratio)), float(largest))
            if kind == "int8":
                bits[row, column] = np.int8(np.copysign(nearest(size, of_int8), ratio)).view(np.uint8)
            else:
                bits[row, column] = nearest(size, of_fp8) | (0x80 if np.signbit(ratio) else 0)
    return torch.from_numpy(bits), torch.from_numpy(scales)


def packed_oracle(values: np.ndarray) -> Quantized:
    """The same for int4: byte i of 32 has number i of a group in its low bits and number i + 32 in its high ones."""
    rows, columns = values.shape
    num_groups = (columns + 63) // 64
    bits, scales = np.zeros((rows, 32 * num_groups), np.uint8), np.zeros((rows, num_groups), np.float32)
    whole = np.zeros((rows, 64 * num_groups), np.float32)
    whole[:, :columns] = values
    for row, group in np.ndindex(scales.shape):
        part = whole[row, 64 * group : 64 * group + 64]
        scales[row, group] = scale = np.abs(part).max() / np.float32(7)
        for i, value in enumerate(part):
            ratio = value / scale if scale > 0 else value
            size = nearest(min(abs(float(ratio)), 7.0), [(Fraction(i), i) for i in range(8)])
            number = 8 + (-size if ratio < 0 else size)
            bits[row, 32 * group + i % 32] |= number << (4 if i >= 32 else 0)
    return torch.from_numpy(bits), torch.from_numpy(scales)


def made(values: torch.Tensor, kind: str) -> Quantized:
    """What a GPU makes with operations of PyTorch is the same as what the kernel makes here."""
    form, of_scales = shapes(TYPES[kind], *values.shape)
    found = []
    for with_torch in (False, True):
        numbers = torch.full(form, -1, dtype=torch.int8).view(TYPES[kind])
        scales = torch.full(of_scales, -1.0)
        with pytest.MonkeyPatch.context() as patch:
            if with_torch:
                patch.setattr(quantization, "_quantize_rows", quantize_with_torch)
            quantize(numbers, scales, values)
        found.append((numbers.view(torch.uint8), scales))
    (numbers, scales), (other, other_scales) = found
    assert torch.equal(numbers, other)
    assert torch.equal(scales.nan_to_num(-2.0), other_scales.nan_to_num(-2.0))
    return numbers, scales


@pytest.mark.parametrize("kind", TYPES)
@settings(max_examples=30)
@given(data=st.data())
def test_both_have_the_bits_of_the_definition(kind: str, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 140 if kind == "int4" else 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    # rows of any size, also such that scales are subnormal or 0, with ties and numbers below fp8's normal ones
    values = rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-46, 30, size=(rows, 1))
    values *= 10.0 ** rng.integers(-4, 1, size=(rows, columns)) * (rng.random((rows, columns)) > 0.2)
    ties = int(2 * LARGEST[torch.uint8 if kind == "int4" else torch.int8])
    values[rng.random(rows) < 0.3] = rng.integers(-ties, ties + 1, columns) / 2  # where the largest is half of that
    single = values.astype(np.float32)
    expected = oracle(single, kind)
    found = made(torch.from_numpy(single), kind)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("kind", TYPES)
def test_rows_that_are_not_finite_become_nan_and_no_other(kind: str) -> None:
    values = torch.randn(4, 300)
    values[0, 7], values[2, 299] = torch.inf, torch.nan
    numbers, scales = made(values, kind)
    live = dequantize(numbers.view(TYPES[kind]), scales, torch.float32, 300)
    missing = torch.isnan(live)
    assert missing.any(1).tolist() == [True, False, True, False]
    if kind == "int4":  # those that share a scale only
        assert missing.sum(1).tolist() == [64, 0, 300 % 64, 0]
    else:
        assert missing.all(1).tolist() == [True, False, True, False]


@pytest.mark.parametrize(("kind", "step"), [("int8", 1 / 254), ("fp8", 1 / 28), ("int4", 1 / 14)])
@pytest.mark.parametrize("at_once", [1 << 23, 1000])
def test_what_is_dequantized_is_near(kind: str, step: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a step of an integer at most, and half of the largest step of fp8, which is 32 of 448."""
    monkeypatch.setattr(quantization, "_ELEMENTS_AT_ONCE", at_once)
    values = torch.randn(50, 400) * torch.logspace(-6, 3, 50)[:, None]
    numbers, scales = made(values, kind)
    error = (dequantize(numbers.view(TYPES[kind]), scales, torch.float32, 400) - values).abs().amax(1)
    assert (error <= values.abs().amax(1) * step * (1 + 1e-5)).all()
    assert (error > values.abs().amax(1) * step / 10).all()
    if kind == "int4":
        nibbles = torch.stack([numbers & 15, numbers >> 4])
        assert [int(nibbles.min()), int(nibbles.max())] == [1, 15]
    else:
        assert LARGEST[TYPES[kind]] == float(numbers.view(TYPES[kind]).float().abs().amax())
