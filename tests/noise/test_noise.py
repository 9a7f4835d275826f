"""The noise kernels: bit for bit what the format says, at any place of any tensor, in any shape."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import noise_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from esmpi.noise import NOISE_VERSIONS, cpu, member_seed, member_seeds, tensor_key
from esmpi.noise.format import normal_table_bits

GOLDEN = json.loads(oracle.GOLDEN.read_text())
SEED, KEY = 0x189BE986910AF917, 0x0D001A4CDC18D141

uint64 = st.integers(0, 2**64 - 1)
starts = st.one_of(
    st.integers(0, 1100),
    st.integers(0, 2**41),
    st.integers(-3, 3).map(lambda d: 2**33 + d),
    st.integers(-300, 3).map(lambda d: 2**37 + d),
    st.integers(1, 2**20).map(lambda tile: 256 * tile),
)


def floats(words: list[str]) -> NDArray[np.float32]:
    return np.array([int(word, 16) for word in words], np.uint32).view(np.float32)


def elements_of(shape: tuple[int, int], first: int, stride: int) -> NDArray[np.int64]:
    return first + stride * np.arange(shape[0])[:, np.newaxis] + np.arange(shape[1])


def kernel_eps(shape: tuple[int, int], first: int, stride: int, key: int, seed: int) -> NDArray[np.float32]:
    """The kernels' noise itself: theta 0 and scale 1 add nothing and round nothing."""
    live = np.full(shape, np.nan, np.float32)
    cpu.perturb(live, np.zeros(shape, np.float32), first, stride, key, seed, 1.0)
    return live


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


def test_version_and_table_are_the_pinned_ones() -> None:
    assert GOLDEN["noise_version"] == NOISE_VERSIONS[0]
    data = files("esmpi.assets").joinpath("normal_table.bin").read_bytes()
    assert hashlib.sha256(data).hexdigest() == GOLDEN["table_sha256"] == oracle.TABLE_SHA256
    assert data == oracle.table().astype("<f4").tobytes()


def test_a_damaged_table_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one bit of it changed, training would go on with other noise than the format's."""
    damaged = bytearray(files("esmpi.assets").joinpath("normal_table.bin").read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "normal_table.bin").write_bytes(damaged)
    with monkeypatch.context() as patch:
        patch.setattr("esmpi.noise.format.files", lambda package: tmp_path)
        normal_table_bits.cache_clear()
        with pytest.raises(RuntimeError, match=r"normal_table\.bin is damaged: install esmpi again"):
            normal_table_bits()
    assert normal_table_bits().tobytes() == oracle.table().astype("<f4").tobytes()


def test_golden_file_is_what_the_oracle_says() -> None:
    assert oracle.make_golden() == GOLDEN


@pytest.mark.parametrize("entry", GOLDEN["noise"], ids=lambda e: f"{e['run_seed']}-{e['generation']}-{e['name']}")
def test_noise_has_the_golden_bits(entry: dict) -> None:
    seed, key = member_seed(entry["run_seed"], entry["generation"], entry["pair"]), tensor_key(entry["name"])
    assert (f"{seed:016x}", f"{key:016x}") == (entry["seed"], entry["key"])
    for position, words in entry["eps"].items():
        assert same_bits(kernel_eps((1, len(words)), int(position), 0, key, seed)[0], floats(words)), position


def test_weights_have_the_golden_bits() -> None:
    golden = GOLDEN["weights"]
    key, first = tensor_key(golden["name"]), golden["first"]
    theta = floats(golden["theta"])[np.newaxis]
    live32, live16 = np.empty_like(theta), np.empty(theta.shape, np.uint16)
    for live in (live32, live16):
        cpu.perturb(live, theta, first, 0, key, int(golden["perturbing_seed"], 16), golden["sigma"])
    assert same_bits(live32[0], floats(golden["perturbed_float32"]))
    assert live16[0].tolist() == [int(word, 16) for word in golden["perturbed_bfloat16"]]
    assert f"{cpu.digest(theta, first, 0, key):016x}" == golden["digest_before"]
    assert f"{cpu.digest(theta, first + 2**33, 0, key):016x}" == golden["digest_at_2**33"]
    seeds = np.array([int(seed, 16) for seed in golden["seeds"]], np.uint64)
    cpu.update(theta, first, 0, key, seeds, np.array(golden["coefficients"], np.float32))
    assert same_bits(theta[0], floats(golden["updated"]))
    assert f"{cpu.digest(theta, first, 0, key):016x}" == golden["digest_after"]


@given(uint64, uint64, starts, st.integers(1, 5), st.integers(1, 700), st.integers(0, 10**6))
def test_noise_of_any_block_is_the_oracles(seed: int, key: int, first: int, rows: int, cols: int, gap: int) -> None:
    stride = cols + gap
    eps = kernel_eps((rows, cols), first, stride, key, seed)
    assert same_bits(eps, oracle.eps(seed, key, elements_of((rows, cols), first, stride)))


@given(st.integers(1, 40), st.integers(1, 600), st.data())
def test_shards_of_rows_and_columns_have_the_noise_of_the_whole(rows: int, cols: int, data: st.DataObject) -> None:
    whole = kernel_eps((1, rows * cols), 0, 0, KEY, SEED).reshape(rows, cols)
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    bottom, right = data.draw(st.integers(top + 1, rows)), data.draw(st.integers(left + 1, cols))
    part = kernel_eps((bottom - top, right - left), top * cols + left, cols, KEY, SEED)
    assert same_bits(part, np.ascontiguousarray(whole[top:bottom, left:right]))


def test_writing_into_a_slice_leaves_its_neighbours_alone() -> None:
    around = np.full((9, 700), 7.0, np.float32)
    live, theta = around[2:6, 33:600], np.zeros((4, 567), np.float32)
    cpu.perturb(live, theta, 1000, 5000, KEY, SEED, 1.0)
    assert same_bits(np.ascontiguousarray(live), oracle.eps(SEED, KEY, elements_of((4, 567), 1000, 5000)))
    live[:] = 7.0
    assert (around == 7.0).all()


@given(st.integers(0, 2**20), st.integers(1, 700), st.floats(-2.0, 2.0, width=32), st.integers(0, 2**32))
def test_perturbed_float32_is_one_multiply_and_one_add(first: int, cols: int, scale: float, number: int) -> None:
    theta = np.random.default_rng(number).normal(0, 0.03, (1, cols)).astype(np.float32)
    live = np.empty_like(theta)
    cpu.perturb(live, theta, first, 0, KEY, SEED, scale)
    noise = oracle.eps(SEED, KEY, elements_of((1, cols), first, 0))
    assert same_bits(live, oracle.perturbed(theta, noise, scale))


def test_a_fused_multiply_add_would_be_noticed() -> None:
    theta = np.random.default_rng(0).normal(0, 0.03, (1, 4096)).astype(np.float32)
    live = np.empty_like(theta)
    cpu.perturb(live, theta, 0, 0, KEY, SEED, 1e-2)
    noise = oracle.eps(SEED, KEY, elements_of(theta.shape, 0, 0))
    fused = (theta.astype(np.float64) + np.float64(np.float32(1e-2)) * noise.astype(np.float64)).astype(np.float32)
    assert same_bits(live, oracle.perturbed(theta, noise, 1e-2))
    assert not same_bits(live, fused)


@given(st.integers(0, 2**20), st.integers(1, 700), st.integers(0, 2**32), st.sampled_from([1e-3, -1e-3, 0.5]))
def test_perturbed_bfloat16_rounds_to_nearest_even(first: int, cols: int, number: int, scale: float) -> None:
    theta = np.random.default_rng(number).normal(0, 0.03, (1, cols)).astype(np.float32)
    live = np.empty(theta.shape, np.uint16)
    cpu.perturb(live, theta, first, 0, KEY, SEED, scale)
    exact = oracle.perturbed(theta, oracle.eps(SEED, KEY, elements_of((1, cols), first, 0)), scale)
    assert (live == oracle.to_bfloat16(exact)).all()
    assert (live == torch.from_numpy(exact).bfloat16().view(torch.int16).numpy().view(np.uint16)).all()


def test_bfloat16_cast_is_torchs_for_ties_large_tiny_infinite_and_nan() -> None:
    ties = (np.arange(0, 2**15, 7, dtype=np.uint32) << np.uint32(16)) + np.uint32(0x8000)
    near = np.concatenate([ties, ties - np.uint32(1), ties + np.uint32(1)])
    theta = np.concatenate([near, near | np.uint32(0x80000000)]).view(np.float32)
    special = np.array([3.4028235e38, -3.4028235e38, 3.39e38, np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45], np.float32)
    payloads = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00001], np.uint32).view(np.float32)
    theta = np.concatenate([theta, special, payloads])[np.newaxis]
    # Noise of scale 1e-45 is less than half a step of nearly all of these, but the oracle adds it all the same.
    live = np.empty(theta.shape, np.uint16)
    cpu.perturb(live, theta, 0, 0, KEY, SEED, 1e-45)
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        exact = oracle.perturbed(theta, oracle.eps(SEED, KEY, elements_of(theta.shape, 0, 0)), 1e-45)
    expected = torch.from_numpy(exact).bfloat16()
    got = torch.from_numpy(live.view(np.int16)).view(torch.bfloat16)
    nan = expected.isnan()
    assert nan.any()
    assert expected.isinf().any()
    assert (got.isnan() == nan).all()
    assert (got.view(torch.int16)[~nan] == expected.view(torch.int16)[~nan]).all()


def test_noise_that_overflows_bfloat16_gives_infinity_as_torch_has_it() -> None:
    theta = np.where(np.arange(600) % 2, 3.38e38, -3.38e38).astype(np.float32)[np.newaxis]
    live = np.empty(theta.shape, np.uint16)
    cpu.perturb(live, theta, 0, 0, KEY, SEED, 1e37)
    with np.errstate(over="ignore"):  # of some, the float32 sum is infinite already
        exact = oracle.perturbed(theta, oracle.eps(SEED, KEY, elements_of(theta.shape, 0, 0)), 1e37)
    expected = torch.from_numpy(exact).bfloat16()
    assert 100 < int(expected.isinf().sum()) < 500
    assert (torch.from_numpy(live.view(np.int16)).view(torch.bfloat16) == expected).all()


def test_float16_cast_is_numpys_for_every_value_between_two_halves_and_on_either_side_of_it() -> None:
    """All 65,536 halves, the middle of each and the next, and the floats beside that; subnormal, infinite and NaN."""
    halves = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float32)
    finite = np.unique(halves[np.isfinite(halves)])
    middle = np.append((finite[1:].astype(np.float64) + finite[:-1]) / 2, [65520.0, -65520.0]).astype(np.float32)
    near = [np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf)]
    payloads = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00001], np.uint32).view(np.float32)
    special = np.array([3.4e38, -3.4e38, 1e5, np.inf, -np.inf, 0.0, -0.0, 1e-45, 5.9e-8, 2.9e-8, -1e-30], np.float32)
    theta = np.concatenate([finite, middle, *near, special, payloads])[np.newaxis]
    live = np.empty(theta.shape, np.float16)
    cpu.perturb(live, theta, 0, 0, KEY, SEED, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = theta.astype(np.float16)
    nan = np.isnan(theta)
    assert np.isnan(live[nan]).all()
    # adding a zero makes -0 a 0, unless that is negative, too
    same = live.view(np.uint16) == expected.view(np.uint16)
    assert (same | nan | (theta == 0)).all()
    assert (live[theta == 0] == 0).all()
    assert np.isinf(live[0, len(finite) + len(middle) - 3 : len(finite) + len(middle)]).sum() == 2


@given(st.integers(0, 2**34), st.integers(1, 600), st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**32))
def test_update_sums_unfused_in_member_order(first: int, cols: int, rows: int, members: int, number: int) -> None:
    rng = np.random.default_rng(number)
    theta = rng.normal(0, 0.03, (rows, cols)).astype(np.float32)
    seeds = rng.integers(0, 2**64, members, np.uint64)
    coefficients = rng.normal(0, 1e-2, members).astype(np.float32)
    elements = elements_of((rows, cols), first, 2 * cols)
    noises = [oracle.eps(int(seed), KEY, elements) for seed in seeds]
    expected = oracle.updated(theta, noises, coefficients.tolist())
    cpu.update(theta, first, 2 * cols, KEY, seeds, coefficients)
    assert same_bits(theta, expected)


def test_order_of_members_is_part_of_the_format() -> None:
    """Were the sum insensitive to order, the test above would not pin the order."""
    rng = np.random.default_rng(0)
    seeds, coefficients = rng.integers(0, 2**64, 30, np.uint64), rng.normal(0, 1e-2, 30).astype(np.float32)
    forward, backward = np.zeros((1, 4096), np.float32), np.zeros((1, 4096), np.float32)
    cpu.update(forward, 0, 0, KEY, seeds, coefficients)
    cpu.update(backward, 0, 0, KEY, seeds[::-1].copy(), coefficients[::-1].copy())
    assert not same_bits(forward, backward)
    np.testing.assert_allclose(forward, backward, atol=1e-6)


@given(uint64, starts, st.integers(1, 4), st.integers(1, 300), st.integers(0, 2**32))
def test_digest_is_the_oracles(key: int, first: int, rows: int, cols: int, number: int) -> None:
    bits = np.random.default_rng(number).integers(0, 2**32, (rows, cols), np.uint32)
    theta = bits.view(np.float32)
    expected = oracle.digest(theta, key, elements_of((rows, cols), first, 3 * cols))
    assert cpu.digest(theta, first, 3 * cols, key) == expected


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_seeds_made_together_are_those_of_numpy(run_seed: int, generation: int, num_pairs: int) -> None:
    expected = [member_seed(run_seed, generation, pair) for pair in range(num_pairs)]
    made = member_seeds(run_seed, generation, num_pairs)
    assert made.dtype == np.uint64
    assert made.tolist() == expected


@pytest.mark.parametrize("run_seed", [0, 1, 2**32 - 1, 2**32, 2**62])
def test_seeds_of_many_pairs_are_those_of_numpy(run_seed: int) -> None:
    pairs = [0, 255, 256, 65535, 65536, 99999]
    assert member_seeds(run_seed, 5, 10**5)[pairs].tolist() == [member_seed(run_seed, 5, pair) for pair in pairs]
