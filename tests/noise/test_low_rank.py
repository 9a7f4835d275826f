"""The kernels of low-rank noise have the bits that the definition says, whatever part of a matrix they work on."""

import json

import low_rank_oracle as oracle
import noise_oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esmpi.noise import NOISE_VERSIONS, low_rank, member_seeds

GOLDEN = json.loads(oracle.GOLDEN.read_text())
NAME = oracle.NAME


def test_golden_values() -> None:
    assert GOLDEN["noise_version"] == NOISE_VERSIONS[1]
    assert oracle.make_golden() == GOLDEN
    seed = int(GOLDEN["seed"], 16)
    keys = low_rank.factor_keys(NAME)
    assert [f"{key:016x}" for key in keys] == [GOLDEN["key_B"], GOLDEN["key_A"]]
    for rank in oracle.RANKS:
        live = np.empty((oracle.ROWS, oracle.COLUMNS), np.float32)
        low_rank.perturb(live, np.zeros_like(live), 0, oracle.COLUMNS, NAME, oracle.COLUMNS, rank, seed, 1.0)
        assert [[f"{word:08x}" for word in row] for row in live.view(np.uint32).tolist()] == GOLDEN[f"eps_rank_{rank}"]
        theta = np.linspace(-0.1, 0.1, live.size, dtype=np.float32).reshape(live.shape)
        seeds, coefficients = member_seeds(42, 3, 6), np.array(oracle.COEFFICIENTS, np.float32)
        low_rank.update(theta, 0, oracle.COLUMNS, NAME, oracle.COLUMNS, rank, seeds, coefficients)
        words = [[f"{word:08x}" for word in row] for row in theta.view(np.uint32).tolist()]
        assert words == GOLDEN[f"updated_rank_{rank}"]


def part_of(whole: np.ndarray, first: int, shape: tuple[int, int], stride: int) -> np.ndarray:
    """Return the elements of a matrix that a block has."""
    elements = first + stride * np.arange(shape[0])[:, np.newaxis] + np.arange(shape[1])
    return np.ascontiguousarray(whole.reshape(-1)[elements])


@st.composite
def blocks(draw: st.DrawFn) -> tuple[int, int, int, tuple[int, int], int]:
    """Rows and columns of a matrix; and a block of it: first element, shape, and how far apart its rows are."""
    rows, columns = draw(st.integers(1, 12)), draw(st.sampled_from([1, 3, 40, 1500]))
    if draw(st.booleans()):  # a stretch, from anywhere to anywhere
        first = draw(st.integers(0, rows * columns - 1))
        return rows, columns, first, (1, draw(st.integers(1, rows * columns - first))), 0
    row, column = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
    shape = draw(st.integers(1, rows - row)), draw(st.integers(1, columns - column))
    return rows, columns, row * columns + column, shape, columns


@settings(max_examples=40, deadline=None)
@given(blocks(), st.sampled_from(oracle.RANKS), st.integers(0, 2**64 - 1), st.sampled_from([1e-3, -0.5]))
def test_any_block_is_perturbed_as_the_matrix(
    block: tuple[int, int, int, tuple[int, int], int], rank: int, seed: int, scale: float
) -> None:
    rows, columns, first, shape, stride = block
    noise = oracle.eps(seed, NAME, rank, rows, columns)
    theta = np.random.default_rng(rows).normal(0, 0.03, (rows, columns)).astype(np.float32)
    expected = part_of(noise_oracle.perturbed(theta, noise, scale), first, shape, stride)
    part = part_of(theta, first, shape, stride)
    for dtype in (np.float32, np.float16, np.uint16):
        live = np.empty(shape, dtype)
        low_rank.perturb(live, part, first, stride, NAME, columns, rank, seed, scale)
        if dtype == np.uint16:
            cast = torch.from_numpy(expected).bfloat16().view(torch.int16).numpy().view(np.uint16)
        else:
            cast = expected.astype(dtype)
        assert live.tobytes() == cast.tobytes()


@settings(max_examples=20, deadline=None)
@given(blocks(), st.sampled_from(oracle.RANKS), st.integers(1, 9), st.integers(0, 2**32))
def test_any_block_is_updated_as_the_matrix(
    block: tuple[int, int, int, tuple[int, int], int], rank: int, members: int, number: int
) -> None:
    rows, columns, first, shape, stride = block
    rng = np.random.default_rng(number)
    seeds, coefficients = rng.integers(0, 2**64, members, np.uint64), rng.normal(0, 1e-3, members).astype(np.float32)
    theta = rng.normal(0, 0.03, (rows, columns)).astype(np.float32)
    expected = oracle.updated(theta, NAME, rank, seeds.tolist(), coefficients.tolist())
    part = part_of(theta, first, shape, stride)
    low_rank.update(part, first, stride, NAME, columns, rank, seeds, coefficients)
    assert part.tobytes() == part_of(expected, first, shape, stride).tobytes()


def test_more_members_than_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, coefficients = np.arange(11, dtype=np.uint64), np.linspace(-1, 1, 11, dtype=np.float32)
    theta = np.zeros((1, 300), np.float32)
    low_rank.update(theta, 0, 0, NAME, 100, 2, seeds, coefficients)
    few = np.zeros((1, 300), np.float32)
    monkeypatch.setattr(low_rank, "TERMS_AT_ONCE", 6)
    low_rank.update(few, 0, 0, NAME, 100, 2, seeds, coefficients)
    assert few.tobytes() == theta.tobytes()


def test_noise_has_unit_variance_and_the_rank_that_was_asked_for() -> None:
    for rank in (1, 4):
        live = np.empty((200, 300), np.float32)
        low_rank.perturb(live, np.zeros_like(live), 0, 300, NAME, 300, rank, 7, 1.0)
        assert np.linalg.matrix_rank(live.astype(np.float64), tol=1e-2) == rank
        several = [np.empty_like(live) for _ in range(30)]
        for seed, made in enumerate(several):
            low_rank.perturb(made, np.zeros_like(live), 0, 300, NAME, 300, rank, seed, 1.0)
        assert abs(np.mean([np.square(made).mean() for made in several]) - 1) < 0.1
