"""Weights: what ES does to theta and to the live weights, whatever the layout."""

import math

import noise_oracle as oracle
import numpy as np
import pytest
import torch
from histories import (
    COEFFICIENTS,
    DTYPES,
    SEEDS,
    assert_same_history,
    cut,
    live_of,
    make_model,
    read_from,
    same,
    sharded_views,
    theta_of,
    whole_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from esmpi.es.shapings.zscore import shape as zscore
from esmpi.noise import member_seed
from esmpi.weights.host import Weights
from esmpi.weights.views import View


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("row_parts", "col_parts"), [(1, 2), (2, 1), (4, 1), (1, 4), (3, 3), (7, 5)])
def test_shards_have_the_bits_of_the_whole(dtype: torch.dtype, row_parts: int, col_parts: int) -> None:
    model = make_model({"a.weight": (37, 301), "conv.weight": (16, 3, 5, 7), "b.bias": (9,)})
    views = sharded_views(model, row_parts, col_parts, dtype)
    assert_same_history(Weights(views, lambda view: read_from(model, view), 2), whole_weights(model, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_digest_of_a_model_is_the_sum_of_its_shards_digests(dtype: torch.dtype) -> None:
    model = make_model({"a.weight": (64, 96), "b.weight": (10, 11)})
    shards = []
    for rows in ((0, 32), (32, 64)):
        views = [View("a.weight", (64, 96), rows, (0, 96), torch.empty(32, 96, dtype=dtype))]
        if rows[0]:
            views.append(View.whole("b.weight", torch.empty(10, 11, dtype=dtype)))
        shards.append(Weights(views, lambda view: read_from(model, view), 1))
    whole = whole_weights(model, dtype)
    for _ in range(2):
        digests = [shard.digest() for shard in shards]
        assert sum(digests) % 2**64 == whole.digest()
        assert len({*digests, whole.digest()}) == 3
        for weights in (*shards, whole):
            weights.update(SEEDS, COEFFICIENTS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "columns"])
def test_fused_tensors_have_the_bits_of_the_separate_ones(dtype: torch.dtype, sharded: bool) -> None:
    model = make_model({"q.weight": (40, 96), "k.weight": (8, 96), "v.weight": (8, 96)})
    views = []
    for cols in cut(96, 2) if sharded else [(0, 96)]:
        # q, k and v are rows of one live matrix, which itself is columns of a wider one
        fused = torch.empty(56, 128, dtype=dtype)[:, 5 : 5 + cols[1] - cols[0]]
        start = 0
        for name, tensor in model.items():
            stop = start + tensor.shape[0]
            views.append(View(name, tuple(tensor.shape), (0, tensor.shape[0]), cols, fused[start:stop]))
            start = stop
    assert_same_history(Weights(views, lambda view: read_from(model, view), 1), whole_weights(model, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_threads_change_no_bit(dtype: torch.dtype, num_threads: int) -> None:
    # more than one block, and neither rows nor blocks are a multiple of a tile
    model = make_model({"big.weight": (1301, 1103), "tall.weight": (999, 3)})
    assert_same_history(whole_weights(model, dtype, num_threads), whole_weights(model, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_column_shards_of_many_blocks_have_the_bits_of_the_whole(dtype: torch.dtype) -> None:
    model = make_model({"big.weight": (1301, 1103)})
    views = [
        View("big.weight", (1301, 1103), (0, 1301), cols, torch.empty(1301, cols[1] - cols[0], dtype=dtype))
        for cols in ((0, 600), (600, 1103))
    ]
    assert_same_history(Weights(views, lambda view: read_from(model, view), 2), whole_weights(model, dtype))


@settings(max_examples=40)
@given(st.data())
def test_any_rectangles_have_the_bits_of_the_whole(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 400))
    row_cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1), max_size=3)) if rows > 1 else [])
    col_cuts = sorted(data.draw(st.sets(st.integers(1, cols - 1), max_size=3)) if cols > 1 else [])
    dtype = data.draw(st.sampled_from(DTYPES))
    model = make_model({"w": (rows, cols)})
    views = [
        View("w", (rows, cols), (top, bottom), (left, right), torch.empty(bottom - top, right - left, dtype=dtype))
        for top, bottom in zip([0, *row_cuts], [*row_cuts, rows], strict=True)
        for left, right in zip([0, *col_cuts], [*col_cuts, cols], strict=True)
    ]
    assert_same_history(Weights(views, lambda view: read_from(model, view), 1), whole_weights(model, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_hundred_members_later_the_live_weights_are_theta(dtype: torch.dtype) -> None:
    model = make_model({"a.weight": (60, 77), "b.bias": (501,)})
    weights = whole_weights(model, dtype)
    digest = weights.digest()
    for member in range(100):
        weights.perturb(member_seed(0, 0, member), 1e-2 * (-1) ** member)
    assert not same(live_of(weights), {name: live.to(dtype) for name, live in theta_of(weights).items()})
    weights.restore()
    for name, live in live_of(weights).items():
        assert torch.equal(live, model[name].view(live.shape).to(dtype))
    assert weights.digest() == digest


@pytest.mark.parametrize("dtype", DTYPES)
def test_members_do_not_depend_on_those_before(dtype: torch.dtype) -> None:
    model = make_model({"a.weight": (60, 77)})
    one, other = whole_weights(model, dtype), whole_weights(model, dtype)
    for seed in SEEDS[:-1].tolist():
        one.perturb(seed, 1e-2)
    for weights in (one, other):
        weights.perturb(int(SEEDS[-1]), 1e-3)
    assert same(live_of(one), live_of(other))


def test_update_leaves_the_live_weights_alone_until_restore() -> None:
    model = make_model({"a.weight": (5, 7)})
    weights = whole_weights(model, torch.float32)
    weights.update(SEEDS, COEFFICIENTS)
    assert same(live_of(weights), model)
    weights.restore()
    assert same(live_of(weights), theta_of(weights))
    assert not same(live_of(weights), model)


def test_members_of_coefficient_zero_change_nothing() -> None:
    model = make_model({"a.weight": (50, 70)})
    all_of_them, without = whole_weights(model, torch.float32), whole_weights(model, torch.float32)
    used = COEFFICIENTS != 0
    assert not used.all()
    all_of_them.update(SEEDS, COEFFICIENTS)
    without.update(SEEDS[used], COEFFICIENTS[used])
    assert same(theta_of(all_of_them), theta_of(without))
    digest = without.digest()
    without.update(SEEDS, np.zeros_like(COEFFICIENTS))
    assert without.digest() == digest


def test_norm_of_an_update_is_alpha_root_p_over_n() -> None:
    alpha, population_size = 5e-4, 30
    model = {"a.weight": torch.zeros(1000, 500), "b.weight": torch.zeros(500, 1000)}
    num_weights = 1_000_000
    weights = whole_weights(model, torch.float32, 2)
    assert weights.num_weights == num_weights
    shaped = zscore(np.random.default_rng(5).random(population_size))
    seeds = np.array([member_seed(9, 0, member) for member in range(population_size)], np.uint64)
    weights.update(seeds, (alpha / population_size * shaped).astype(np.float32))
    norm = math.sqrt(sum(float((theta.double() ** 2).sum()) for _, theta in weights.theta()))
    assert norm == pytest.approx(alpha * math.sqrt(num_weights / population_size), rel=0.01)


def test_generations_of_updates_follow_the_formula_in_float64() -> None:
    """Seeds, noise, z-scores and theta, all by plain NumPy in float64; float32 may only round."""
    sigma, alpha, population_size, num_generations = 1e-2, 5e-3, 8, 5
    model = make_model({"a.weight": (33, 65), "b.bias": (77,)})
    weights = whole_weights(model, torch.float32, 2)
    exact = {name: tensor.double().numpy().reshape(-1) for name, tensor in model.items()}
    rng = np.random.default_rng(11)
    for generation in range(num_generations):
        rewards = rng.random(population_size)
        shaped = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        seeds = [oracle.seed_of(4, generation, member) for member in range(population_size)]
        for name, theta in exact.items():
            noise = [oracle.eps(seed, oracle.key_of(name), np.arange(theta.size)) for seed in seeds]
            weighted = shaped[:, np.newaxis] * np.stack(noise).astype(np.float64)
            exact[name] = theta + alpha / population_size * weighted.sum(axis=0)
        weights.update(np.array(seeds, np.uint64), (alpha / population_size * zscore(rewards)).astype("f4"))
    weights.perturb(SEEDS.tolist()[0], sigma)
    for name, theta in theta_of(weights).items():
        error = np.abs(theta.double().numpy().reshape(-1) - exact[name])
        assert error.max() < num_generations * 2e-8  # half a step of float32 at 0.25, a generation each
        moved = np.abs(theta.numpy().reshape(-1) - model[name].numpy().reshape(-1))
        assert moved.mean() > 1e3 * error.mean()
        noise = oracle.eps(SEEDS.tolist()[0], oracle.key_of(name), np.arange(theta.numel()))
        live = live_of(weights)[name].double().numpy().reshape(-1)
        assert np.abs(live - (exact[name] + sigma * noise)).max() < (num_generations + 2) * 2e-8


def test_views_that_cannot_be_perturbed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"q\.weight: dtype torch\.float64"):
        View.whole("q.weight", torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"q\.weight: dtype torch\.int8"):
        View.whole("q.weight", torch.zeros(2, 3, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"q\.weight: live has shape \(2, 3\), the view says \(2, 4\)"):
        View("q.weight", (2, 8), (0, 2), (4, 8), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"q\.weight: the elements of a row, or those of a column, must be"):
        View("q.weight", (3, 2), (0, 3), (0, 2), torch.zeros(3, 4)[:, ::2])
    assert View.whole("scalar", torch.tensor(1.5)).rows == (0, 1)
