"""ES on functions whose gradients and smoothed values are known, against theory; all of esmpi but a language model.

A generation adds u = alpha / N * sum of s_i * eps_i to theta, for P weights, N members, their shaped fitness s_i and
their normal noise eps_i. Here a_i is eps_i along the gradient, a standard normal number. Bounds are four standard
errors: a test that is right would fail for one seed in 16,000, and the seeds are fixed.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from function_engine import AMPLITUDE, FUNCTIONS, curvatures, direction
from function_runs import NAME, FunctionRun, Shapes, es, read_function_run, run_function, write_config
from scipy import stats
from support import Run

from esmpi.__main__ import main

SHAPINGS = ("zscore", "centered_rank", "log_rank", "top_k", "raw")


@lru_cache
def shared(function: str, dimensions: int | tuple[int, ...], *overrides: str, start: float = 1.0) -> FunctionRun:
    """Return a run that several tests look at."""
    return run_function(function, dimensions, overrides, start=start)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_those_of_the_values(function: str) -> None:
    value, x = FUNCTIONS[function].value, np.random.default_rng(3).uniform(-1, 1, 20)
    differences = [(value(x + step) - value(x - step)) / 2e-5 for step in 1e-5 * np.eye(20)]
    assert FUNCTIONS[function].gradient(x) == pytest.approx(np.array(differences), abs=1e-5)


# The direction of an update

GENERATIONS = {(10, 100): 60, (100, 100): 15, (1000, 100): 3, (10, 10_000): 40, (100, 10_000): 8, (1000, 10_000): 2}
"""How many updates are measured, by N and P."""


def linear(size: int, dimensions: int) -> FunctionRun:
    """Return a run on a linear function, whose gradient is the same everywhere."""
    keys = es(population_size=size, generations=GENERATIONS[size, dimensions])
    return shared("linear", dimensions, *keys, start=0.0)


def cosine_law(size: int, dimensions: int) -> "stats.rv_frozen":
    """Return the distribution of the squared cosine of an update with the gradient of a linear function.

    With z-scores, u / alpha is std(a) along the gradient and, as the s_i do not depend on the noise across it and their
    squares sum to N, normal with variance 1 / N in each of the P - 1 directions across. So the squared cosine is
    X / (X + Y) with X and Y chi-squared of N - 1 and P - 1 degrees of freedom: its mean is (N - 1) / (N + P - 2). For
    large numbers the root of that is sqrt(N / (N + P)), as it is by the moments of a mean of N samples a_i eps_i, whose
    squared length is 1 + (P + 1) / N in the mean (Nesterov and Spokoiny 2017, Random Gradient-Free Minimization of
    Convex Functions).
    """
    return stats.beta((size - 1) / 2, (dimensions - 1) / 2)


@pytest.mark.parametrize(("size", "dimensions"), GENERATIONS)
def test_the_cosine_with_the_gradient_is_the_root_of_n_over_n_plus_p(size: int, dimensions: int) -> None:
    squared, law = linear(size, dimensions).cosines ** 2, cosine_law(size, dimensions)
    error = law.std() / len(squared) ** 0.5
    assert squared.mean() == pytest.approx(law.mean(), abs=4 * error)
    # the rule of thumb: its error is that of N in place of N - 1
    rule = size / (size + dimensions)
    assert squared.mean() == pytest.approx(rule, rel=1 / size, abs=1 / size * rule + 4 * error)


def test_the_cosines_have_the_distribution_that_theory_gives() -> None:
    levels = [cosine_law(*case).cdf(linear(*case).cosines ** 2) for case in GENERATIONS]
    assert stats.kstest(np.concatenate(levels), "uniform").pvalue > 1e-3


def test_members_are_sigma_away_along_the_gradient() -> None:
    """For a slope of 1, N variance / sigma^2 of the fitness is chi-squared of N - 1 degrees of freedom."""
    for size, dimensions in GENERATIONS:
        run = linear(size, dimensions)
        spread = run.fitness.var(1) * size / run.es("sigma") ** 2
        assert spread.mean() == pytest.approx(size - 1, abs=4 * (2 * (size - 1) / len(spread)) ** 0.5)


@pytest.mark.parametrize(("size", "dimensions"), GENERATIONS)
def test_the_norm_of_an_update_is_alpha_times_the_root_of_p_over_n(size: int, dimensions: int) -> None:
    """N |u|^2 / alpha^2 is the sum X + Y of `cosine_law`, chi-squared of N + P - 2 degrees of freedom."""
    run = linear(size, dimensions)
    squared = (run.updates**2).sum(1) * size / run.es("alpha") ** 2
    freedom = size + dimensions - 2
    assert squared.mean() == pytest.approx(freedom, abs=4 * (2 * freedom / len(squared)) ** 0.5)
    if dimensions >= 1000 * size:
        assert np.linalg.norm(run.updates, axis=1) == pytest.approx(
            run.es("alpha") * (dimensions / size) ** 0.5, rel=4 / (2 * dimensions) ** 0.5
        )


def test_an_antithetic_pair_counts_as_one_direction() -> None:
    """On a linear function, where a pair has no even terms to cancel; the mean of the fitness is exact, however."""
    run = shared("linear", 100, *es(population_size=100, generations=15, antithetic="true"), start=0.0)
    law = stats.beta(50 / 2, 99 / 2)
    assert (run.cosines**2).mean() == pytest.approx(law.mean(), abs=4 * law.std() / 15**0.5)
    assert law.mean() + 4 * law.std() / 15**0.5 < cosine_law(100, 100).mean()


def test_antithetic_pairs_cancel_even_terms() -> None:
    """With a large sigma, the curvature of the sphere hides its slope from members that have no pair.

    The fitness of a member is sigma |x| a - sigma^2 / 2 |eps|^2 but for a constant. Its squared correlation with a is
    1 / (1 + sigma^2 P / (2 |x|^2)), here 1 / 5.5. Differences within pairs have the first term only.
    """
    keys = {"population_size": 100, "generations": 20, "sigma": 3.0, "alpha": 0.01}
    plain = shared("sphere", 100, *es(**keys)).cosines ** 2
    squared = 1 / 5.5
    along = squared + (1 + squared) / 100  # E (mean of s a)^2, where s a has the variance 1 + rho^2
    assert plain.mean() == pytest.approx(along / (along + 99 / 100), abs=4 * plain.std() / 20**0.5)
    paired = shared("sphere", 100, *es(**keys, antithetic="true")).cosines ** 2
    law = stats.beta(50 / 2, 99 / 2)
    assert paired.mean() == pytest.approx(law.mean(), abs=4 * law.std() / 20**0.5)
    assert plain.mean() + 4 * plain.std() / 20**0.5 < law.mean() - 4 * law.std() / 20**0.5


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_at_the_optimum_pairs_do_not_move(shaping: str) -> None:
    """All terms of a quadratic function are even there: theta keeps every bit, although fitness differs."""
    keys = es(population_size=20, generations=2, shaping=shaping, antithetic="true")
    run = shared("sphere", 100, *keys, start=0.0)
    assert (run.fitness.std(1) > 0).all()
    assert (np.abs(run.coefficients).max(1) > 0).all()
    assert not run.thetas.any()


def test_at_the_optimum_pairs_of_low_rank_nearly_cancel() -> None:
    """The update rounds a product before it is added and once more after that: what is left is below its last bit."""
    keys = {"population_size": 20, "generations": 1, "noise": "low_rank"}
    plain = shared("sphere", (10, 10), *es(**keys), start=0.0)
    paired = shared("sphere", (10, 10), *es(**keys, antithetic="true"), start=0.0)
    assert np.linalg.norm(plain.updates) > 1
    assert np.linalg.norm(paired.updates) < 2**-24 * 20 * np.linalg.norm(plain.updates)


# Low-rank noise


def across(run: FunctionRun) -> np.ndarray:
    """Return N - 3 times the squared tangent of each update with the gradient; of full rank its mean is P - 1."""
    squared = run.cosines**2
    return np.asarray((run.es("population_size") - 3) * (1 - squared) / squared)


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_the_cosine_of_low_rank_noise(rank: int) -> None:
    """Noise B A / sqrt(r) of a matrix of m rows and n columns counts as a few more weights than m n.

    For a gradient G of length 1, E a^2 |eps|^2 = m n + 2 + 2 (m + n + 1) / r and E a^4 = 3 + 6 / r * |G^T G|^2, by the
    moments of the factors. The difference takes the place of that of full rank, (m n + 2) - 3 = P - 1.
    """
    rows = cols = 10
    keys = es(population_size=50, generations=60) + (es(noise="low_rank", rank=rank) if rank else ())
    run = run_function("linear", (rows, cols), keys, start=0.0)
    measured = across(run)
    expected = rows * cols - 1
    if rank:
        gradient = direction(rows * cols).reshape(rows, cols)
        expected += 2 * (rows + cols + 1) / rank - 6 / rank * ((gradient.T @ gradient) ** 2).sum()
    error = measured.std() / len(measured) ** 0.5
    assert measured.mean() == pytest.approx(expected, abs=4 * error)
    assert 4 * error < rows + cols + 1, "else rank 1 could not be told from full rank"
    squared = (run.updates**2).sum(1) * 50 / run.es("alpha") ** 2  # each element of the noise has variance 1
    assert squared.mean() == pytest.approx(49 + expected, abs=4 * squared.std() / len(squared) ** 0.5)


def test_low_rank_costs_little_on_a_large_matrix() -> None:
    run = shared("linear", (100, 100), *es(population_size=100, generations=8, noise="low_rank"), start=0.0)
    law = cosine_law(100, 100 * 100 + 2 * 201)
    assert (run.cosines**2).mean() == pytest.approx(law.mean(), abs=4 * law.std() / 8**0.5)


# The rate of descent


@lru_cache
def selection(shaping: str, size: int) -> tuple[float, float, float]:
    """Return the mean and variance of sum s_i a_i / N, and the mean of sum s_i^2 / N, for fitness a of normal members.

    The formulas of the shapings are written down once more here; raw fitness is in units of sigma |gradient|.
    """
    a = np.sort(np.random.default_rng(1).standard_normal((4000, size)), axis=1)
    rank = np.arange(size, 0, -1)  # the fittest, the last one, has rank 1
    utilities = np.maximum(0, np.log(size / 2 + 1) - np.log(rank))
    centred = a - a.mean(1, keepdims=True)
    shaped = {
        "zscore": centred / a.std(1, keepdims=True),
        "raw": centred,
        "centered_rank": np.tile((size - rank) / (size - 1) - 0.5, (4000, 1)),
        "log_rank": np.tile(size * utilities / utilities.sum() - 1, (4000, 1)),
        "top_k": np.tile(np.where(rank <= size // 4, size / (size // 4), 0) - 1, (4000, 1)),
    }[shaping]
    along = (shaped * a).mean(1)
    return along.mean(), along.var(), (shaped**2).mean()


def test_selection_where_it_is_known() -> None:
    size = 100
    along, _, power = selection("centered_rank", size)  # half of half Gini's mean difference of normal numbers
    assert along == pytest.approx(1 / (2 * math.pi**0.5), rel=3e-3)
    assert power == pytest.approx((size + 1) / (12 * (size - 1)), rel=1e-12)
    along, _, power = selection("top_k", size)  # the progress coefficient of truncation selection, for large numbers
    assert along == pytest.approx(stats.norm.pdf(stats.norm.ppf(0.75)) / 0.25, rel=0.02)
    assert power == pytest.approx(4 - 1, rel=1e-12)
    along, variance, power = selection("zscore", size)
    expected = stats.chi(size - 1, scale=size**-0.5)
    assert along == pytest.approx(expected.mean(), rel=3e-3)
    assert variance == pytest.approx(expected.var(), rel=0.1)
    assert power == pytest.approx(1, rel=1e-12)


ALPHA = {"zscore": 1.0, "centered_rank": 3.5, "log_rank": 1.0, "top_k": 0.8, "raw": 1.0}
"""With these, first steps along the gradient have about the same length; for raw fitness in units of its spread."""


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize(("function", "dimensions"), [("sphere", 100), ("ellipsoid", 100), ("sphere", 10_000)])
def test_descent_at_the_known_rate(function: str, dimensions: int, shaping: str) -> None:
    """Each generation of a quadratic function with Hessian -H gains, in the mean,

        alpha k |g| - alpha^2 / 2 * (k^2 h + q / N * (trace H - h))

    for a small sigma, where g is the gradient, h = g^T H g / |g|^2, and k and q are those of `selection`: the theory of
    weighted recombination (Arnold 2005, Optimal Weighted Recombination). The gain of all generations is compared.
    """
    size, sigma = 200, 0.01
    alpha = ALPHA[shaping] * (0.3 if function == "ellipsoid" else 1)
    if shaping == "raw":
        alpha /= sigma * np.linalg.norm(FUNCTIONS[function].gradient(np.ones(dimensions)))
    keys = es(population_size=size, generations=6, sigma=sigma, shaping=shaping, alpha=alpha)
    run = shared(function, dimensions, *keys)
    along, variance, power = selection(shaping, size)
    hessian = curvatures(dimensions) if function == "ellipsoid" else np.ones(dimensions)
    expected = squared_error = 0.0
    for gradient in run.gradients:
        length = np.linalg.norm(gradient)
        step = alpha * (sigma * length if shaping == "raw" else 1)
        mine = (hessian * gradient**2).sum() / length**2
        spread = step**2 * power / size
        expected += step * along * length - ((step * along) ** 2 * mine + spread * (hessian.sum() - mine)) / 2
        squared_error += (step * length) ** 2 * variance + spread**2 * (hessian**2).sum() / 2
    assert 4 * squared_error**0.5 < expected / 4
    assert run.values[-1] - run.values[0] == pytest.approx(expected, abs=4 * squared_error**0.5)


# What a shaping does not notice


def transformed(shaping: str, transform: str) -> FunctionRun:
    """Return a run on the sphere, from -0.5 on, that does something to the fitness."""
    keys = es(population_size=20, generations=3, shaping=shaping, alpha=0.01)
    return shared("sphere", 100, *keys, f"engine.transform={transform}", start=0.1)


@pytest.mark.parametrize("shaping", ["centered_rank", "log_rank", "top_k"])
@pytest.mark.parametrize("transform", ["exp", "cubic"])
def test_ranks_do_not_notice_a_monotone_transform(shaping: str, transform: str) -> None:
    plain, other = transformed(shaping, "none"), transformed(shaping, transform)
    assert (plain.fitness != other.fitness).all()
    assert plain.digests == other.digests
    assert len(set(plain.digests)) == 3


def test_zscores_hardly_notice_an_affine_transform_and_raw_fitness_does() -> None:
    """Z-scores do because of the 1e-8 beside the standard deviation, which is 0.01 here."""
    plain, other = transformed("zscore", "none"), transformed("zscore", "affine")
    assert other.coefficients[0] == pytest.approx(plain.coefficients[0], rel=1e-8 / 0.005, abs=1e-12)
    assert other.thetas == pytest.approx(plain.thetas, abs=1e-6)
    assert plain.digests != other.digests
    plain, other = transformed("raw", "none"), transformed("raw", "affine")
    assert other.coefficients[0] == pytest.approx(3 * plain.coefficients[0], rel=1e-6, abs=1e-12)


def test_z_scores_of_a_single_prompt_are_z_scores() -> None:
    plain, other = transformed("zscore", "none"), transformed("per_prompt", "none")
    assert plain.digests == other.digests


@pytest.mark.parametrize("shaping", ["zscore", "raw"])
def test_other_shapings_notice_a_transform_that_is_not_affine(shaping: str) -> None:
    plain, other = transformed(shaping, "none"), transformed(shaping, "cubic")
    ratio = other.coefficients[0] / plain.coefficients[0]
    assert ratio.max() / ratio.min() > 1.01


# Smoothing


@pytest.mark.parametrize(
    ("sigma", "dimensions", "num_generations"), [(0.1, 100, 4), (0.3, 100, 10), (0.5, 100, 4), (0.1, 10_000, 4)]
)
def test_the_estimate_is_the_gradient_of_the_smoothed_function(
    sigma: float, dimensions: int, num_generations: int
) -> None:
    """Noise leaves of each of Rastrigin's cosines the share exp(-2 pi^2 sigma^2), its characteristic function at 2 pi.

    So the mean of u / (alpha sigma) with raw fitness is that of -2 x - 2 pi A exp(-2 pi^2 sigma^2) sin(2 pi x), times
    1 - 1 / N because the mean fitness includes the member itself. Both terms are fitted to the updates.
    """
    size, alpha = 500, 1e-4 / sigma
    keys = es(population_size=size, generations=num_generations, shaping="raw", sigma=sigma, alpha=alpha)
    start = np.random.default_rng(2).uniform(-3, 3, dimensions)
    run = run_function("rastrigin", dimensions, keys, start=start)
    x = run.thetas[:-1].reshape(-1)
    terms = np.stack([-2 * x, -np.sin(2 * np.pi * x)], axis=1)
    estimates = run.updates.reshape(-1) / (alpha * sigma * (1 - 1 / size))
    fitted, *_ = np.linalg.lstsq(terms, estimates, rcond=None)
    noise = run.fitness.var(1).mean() / (sigma**2 * size)  # of an estimate's component
    errors = np.sqrt(noise * np.diag(np.linalg.inv(terms.T @ terms)))
    expected = 2 * np.pi * AMPLITUDE * math.exp(-2 * (np.pi * sigma) ** 2)
    assert abs(fitted[0] - 1) < 4 * errors[0]
    assert abs(fitted[1] - expected) < 4 * errors[1] < 0.15 * 2 * np.pi * AMPLITUDE


def test_a_larger_sigma_leaves_local_optima() -> None:
    """From the local optimum near (2, ..., 2), with room for twice the way to the best one at 0."""
    keys = {"population_size": 50, "generations": 40, "alpha": 0.5}
    narrow = run_function("rastrigin", 20, es(**keys, sigma=0.05), start=2.0)
    wide = run_function("rastrigin", 20, es(**keys, sigma=1.0), start=2.0)
    assert keys["alpha"] * keys["generations"] > 2 * np.linalg.norm(narrow.thetas[0])
    assert abs(narrow.thetas[-1].mean() - 2) < 0.1
    assert wide.thetas[-1].mean() < 1.2


# What holds for every strategy

STRATEGIES: dict[str, Sequence[str]] = {
    "zscore": es(antithetic="true"),
    "centered_rank": es(shaping="centered_rank", noise="low_rank", rank=2),
    "log_rank": es(shaping="log_rank", anchor=0.5, alpha_schedule="cosine", schedule_generations=4),
    "top_k": es(shaping="top_k", sigma_per_tensor="std", exclude="[a_vector]", max_distance=0.2),
    "raw": es(shaping="raw", antithetic="true", noise="low_rank"),
}
"""Ways to make members and updates. Each is resumed and replayed."""

strategies = pytest.mark.parametrize("strategy", STRATEGIES)


SHAPES: Shapes = {"a_matrix": (4, 20), "a_vector": (20,)}


def trained(strategy: str, generations: int, directory: Path) -> FunctionRun:
    keys = (*es(population_size=8, generations=generations, alpha=0.1), *STRATEGIES[strategy])
    return run_function("rastrigin", SHAPES, keys, start=np.linspace(-1, 1, 100), directory=directory)


@strategies
def test_a_resumed_run_is_the_unbroken_one(strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unbroken = trained(strategy, 4, tmp_path / "unbroken")
    assert len(set(unbroken.digests)) == 4
    trained(strategy, 2, tmp_path / "resumed")
    assert trained(strategy, 4, tmp_path / "resumed").digests == unbroken.digests
    assert main(["replay", str(tmp_path / "resumed" / NAME), "--verify"]) == 0
    assert "all 4 generations are what the run had" in capsys.readouterr().out


def test_ranks_change_nothing(launch: Run, tmp_path: Path) -> None:
    alone = trained("centered_rank", 4, tmp_path / "alone")
    config = write_config("rastrigin", SHAPES, np.linspace(-1, 1, 100), tmp_path / "ranks")
    keys = (*es(population_size=8, generations=4, alpha=0.1, dispatch="dynamic"), *STRATEGIES["centered_rank"])
    done = launch(["-m", "esmpi.run", config, *keys], 3)
    assert done.returncode == 0, done.stderr
    assert read_function_run("rastrigin", tmp_path / "ranks").digests == alone.digests
