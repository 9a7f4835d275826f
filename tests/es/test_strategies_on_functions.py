"""Strategies on a linear function: what each one makes of an update that is known without it.

Updates do not depend on where theta is there, and z-scores do not depend on sigma. So a run with a strategy has the
updates of a plain run, changed as the strategy says, but for what float32 rounds.
"""

import numpy as np
import pytest
from function_engine import direction
from function_runs import FunctionRun, Shapes, es, run_function
from scipy import stats

SHAPES: Shapes = {"a_matrix": (4, 20), "a_vector": (20,)}
MATRIX, VECTOR = slice(0, 80), slice(80, 100)
"""Where the weights of each tensor are in theta."""
SIZE, GENERATIONS = 20, 5
START = np.random.default_rng(4).normal(0.5, np.repeat([0.2, 1.5], [80, 20]))
"""The base model. Its tensors have different standard deviations."""


def run(size: int = SIZE, generations: int = GENERATIONS, **keys: object) -> FunctionRun:
    return run_function("linear", SHAPES, es(population_size=size, generations=generations, **keys), start=START)


@pytest.fixture(scope="module")
def plain() -> FunctionRun:
    return run()


def same(value: np.ndarray) -> object:
    return pytest.approx(value, rel=1e-3, abs=1e-4)


def test_alpha_has_a_schedule(plain: FunctionRun) -> None:
    scheduled = run(alpha_schedule="cosine", alpha_end=0.2, warmup=2)
    wave = 0.2 + 0.8 * (1 + np.cos(np.pi * np.arange(5) / 4)) / 2
    assert scheduled.updates == same(plain.updates * (wave * [0.5, 1, 1, 1, 1])[:, None])


def test_sigma_has_a_schedule(plain: FunctionRun) -> None:
    scheduled = run(sigma_schedule="linear", sigma_end=0.2, sigma_warmup=2)
    assert scheduled.fitness.std(1) == same(plain.fitness.std(1) * [0.5, 0.8, 0.6, 0.4, 0.2])
    assert scheduled.updates == same(plain.updates)


def test_an_anchor_is_weight_decay_towards_the_base_model(plain: FunctionRun) -> None:
    anchored = run(anchor=0.3)
    distance = np.zeros(100)
    for update, theta in zip(plain.updates, anchored.thetas[1:], strict=True):
        distance = (1 - 1.0 * 0.3) * (distance + update)
        assert theta - anchored.thetas[0] == same(distance)


def test_theta_stays_on_a_ball_around_the_base_model(plain: FunctionRun) -> None:
    kept = run(max_distance=4)
    distance = np.zeros(100)
    lengths = []
    for update, theta in zip(plain.updates, kept.thetas[1:], strict=True):
        distance = distance + update
        lengths.append(np.linalg.norm(distance))
        distance = distance * min(1, 4 / lengths[-1])
        assert theta - kept.thetas[0] == same(distance)
    assert lengths[0] < 4 < lengths[-1], "else it would have nothing to do, or nothing else"


def test_excluded_tensors_stay_and_the_others_are_as_if_they_were_alone() -> None:
    part = run(generations=15, exclude="[a_vector]")
    assert not part.updates[:, VECTOR].any()
    gradient = direction(100)[MATRIX]
    along = part.updates[:, MATRIX] @ gradient / np.linalg.norm(gradient)
    squared = along**2 / (part.updates**2).sum(1)
    law = stats.beta((SIZE - 1) / 2, (80 - 1) / 2)
    assert squared.mean() == pytest.approx(law.mean(), abs=4 * law.std() / 15**0.5)


def test_tensors_with_scales_of_their_own() -> None:
    """The noise c eps of a tensor with the standard deviation c estimates c^2 times its gradient.

    So in units of c, updates have the cosine with c times the gradient that all noise has; and fitness spreads with the
    length of that.
    """
    scaled = run(generations=15, sigma_per_tensor="std")
    start = START.astype(np.float32).astype(np.float64)
    scales = np.repeat([start[MATRIX].std(), start[VECTOR].std()], [80, 20])
    assert scales[-1] > 4 * scales[0]
    updates, gradient = scaled.updates / scales, scales * direction(100)
    squared = (updates @ gradient) ** 2 / (updates**2).sum(1) / (gradient @ gradient)
    law = stats.beta((SIZE - 1) / 2, (100 - 1) / 2)
    assert squared.mean() == pytest.approx(law.mean(), abs=4 * law.std() / 15**0.5)
    freedom = SIZE + 100 - 2
    assert (updates**2).sum(1).mean() * SIZE == pytest.approx(freedom, abs=4 * (2 * freedom / 15) ** 0.5)
    spread = scaled.fitness.var(1) * SIZE / (scaled.es("sigma") ** 2 * (gradient @ gradient))
    assert spread.mean() == pytest.approx(SIZE - 1, abs=4 * (2 * (SIZE - 1) / 15) ** 0.5)
