"""Evaluation: pass@k, the KL divergence's terms, and figures, each against a count or a formula of its own."""

import itertools
import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import LEAST_CONFIG, read, requests

from esmpi.config.sections import ModelConfig
from esmpi.engines import Completion, Sampling
from esmpi.engines.hf import HfConfig
from esmpi.engines.hf.engine import HfEngine
from esmpi.evaluate import Completed, _divergence, means_of
from esmpi.evaluate import _pass_at as pass_at_of
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.mpi.comm import Place
from esmpi.noise import member_seed
from esmpi.store.run_file import GENERATION_DTYPE, MEMBER_DTYPE, RunFile


def _pass_at(right: list[bool], n: int) -> dict[str, float]:
    return pass_at_of([{"correct": one, "reward": float(one)} for one in right], n)


def counted(right: list[list[bool]], k: int) -> float:
    """Over all problems, the share of k-subsets of its completions with one that is right."""
    shares = [Fraction(sum(map(any, itertools.combinations(one, k))), math.comb(len(one), k)) for one in right]
    return float(sum(shares) / len(shares))


def product_form(right: list[list[bool]], k: int) -> float:
    """As Chen et al. 2021 compute it: 1 - prod_{i = n - c + 1}^{n} (1 - k / i), 1 where n - c < k."""
    values = []
    for one in right:
        n, c = len(one), sum(one)
        values.append(1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1))))
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 10])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int) -> None:
    draw = random.Random(n)
    right = [[draw.random() < share for _ in range(n)] for share in (0, 0.1, 0.3, 0.5, 0.9, 1) for _ in range(4)]
    found = _pass_at([one for row in right for one in row], n)
    assert list(found) == [f"pass_at_{k}" for k in sorted({1, n} | {k for k in (2, 4, 8) if k < n})]
    for name, value in found.items():
        k = int(name.removeprefix("pass_at_"))
        assert value == pytest.approx(counted(right, k), rel=1e-14)
        assert value == pytest.approx(product_form(right, k), rel=1e-12)
    assert found["pass_at_1"] == pytest.approx(np.mean(right))
    assert found[f"pass_at_{n}"] == pytest.approx(np.mean([any(row) for row in right]))


def test_problems_with_a_completion_without_a_reward_are_left_out_of_pass_at_k() -> None:
    samples = [{"correct": right, "reward": 1.0} for right in (True, False, True, True, False, False)]
    samples[2]["reward"] = None  # type: ignore[typeddict-item]
    assert pass_at_of(samples, 2) == {"pass_at_1": 0.25, "pass_at_2": 0.5}
    assert math.isnan(pass_at_of(samples[2:4], 2)["pass_at_1"])


def test_pass_at_k_of_very_many_completions() -> None:
    n = 10_000
    found = _pass_at([i < 3 for i in range(n)], n)
    assert found["pass_at_1"] == pytest.approx(3 / n)
    assert found["pass_at_4096"] == pytest.approx(product_form([[i < 3 for i in range(n)]], 4096))
    assert found["pass_at_10000"] == 1


class Scripted:
    """Gives log probabilities that were written down, for tuned and base weights."""

    def __init__(self, tuned: list[float], base: list[float]):
        self.said, self.shown, self.restored = {False: tuned, True: base}, False, 0
        self.weights = self  # which it stands for as well

    def logprobs(self, prompts: list[str], completions: list[Completion]) -> list[list[float]]:
        return [self.said[self.shown]]

    def show_base(self) -> None:
        self.shown = True

    def restore(self) -> None:
        self.shown, self.restored = False, self.restored + 1


def terms(tuned: list[float], base: list[float]) -> list[float]:
    engine: Any = Scripted(tuned, base)
    batch: Any = Completed([(0, 0)], [""], [Completion(text="", num_tokens=0, truncated=False)])
    found = _divergence(engine, [batch])
    assert engine.restored == 1
    assert not engine.shown
    return found


def test_the_terms_of_the_divergence() -> None:
    p, q = [0.5, 0.1, 0.9, 0.25], [0.25, 0.4, 0.9, 1e-9]
    expected = [b / a - math.log(b / a) - 1 for a, b in zip(p, q, strict=True)]
    found = terms([math.log(a) for a in p], [math.log(b) for b in q])
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[2] == 0
    assert min(found) >= 0
    # near 1 the plain formula has no digit left; the term is ratio^2 / 2
    assert terms([-1.0], [-1.0 + 1e-9]) == pytest.approx([5e-19], rel=1e-6)


def test_what_the_tuned_model_had_all_but_ruled_out_is_no_overflow() -> None:
    (huge,) = terms([-5000.0], [-1.0])
    assert 1e100 < huge < math.inf
    assert math.isfinite(math.fsum([huge] * 10**6))


def test_the_terms_average_to_the_divergence() -> None:
    """Over tokens drawn from the tuned model: the sum over all tokens, weighted by its probability, is exactly it."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(50)), rng.dirichlet(np.ones(50))
    found = terms(np.log(p).tolist(), np.log(q).tolist())
    assert math.fsum(p * np.array(found)) == pytest.approx(float(np.sum(p * np.log(p / q))), rel=1e-12)


def test_the_divergence_of_a_real_model_is_zero_before_and_positive_after_an_update() -> None:
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    place = Place(host="here", local_rank=0, num_local_ranks=1, cores=(0,))
    config = ModelConfig(path="esmpi:tiny_countdown", dtype="float32")
    engine = HfEngine(config, HfConfig(device="cpu"), BaseModel(folder), place)
    engine.weights.restore()
    prompts = ["3+4=", "You are"]
    batch: Any = Completed([(0, 0), (1, 0)], prompts, engine.generate(requests(prompts), Sampling(max_tokens=9)))
    zeros = _divergence(engine, [batch])
    assert len(zeros) == sum(completion.num_tokens for completion in batch.completions) > 2
    assert not any(zeros)
    assert engine.weights.distance() == 0
    engine.weights.update(np.array([member_seed(0, 0, 0)], np.uint64), np.array([0.01], np.float32))
    engine.weights.restore()
    assert math.fsum(_divergence(engine, [batch])) > 0
    # the noise is standard normal: 0.01 of it, over all weights
    assert engine.weights.distance() == pytest.approx(0.01 * math.sqrt(engine.weights.num_weights), rel=0.01)


def test_figures_of_any_name_and_value_come_back_from_the_run_file(tmp_path: Path) -> None:
    means = means_of([{"a/b": 1.0, ".": 2.0, "c": math.inf}, {"a/b": 2.0, "c": -math.inf}, {}])
    assert means["a_b_mean"] == 1.5
    assert math.isnan(means["c_mean"])
    run = RunFile.create(tmp_path / "run.h5", LEAST_CONFIG, 1, "", ["w"], {})
    run.generations, run.members = [np.zeros(1, GENERATION_DTYPE)[0]], [np.zeros(2, MEMBER_DTYPE)]
    row = {"generation": 0, "accuracy": 0.5, "reward_mean": 1.0}
    run.add_evaluation("held_out", row)
    run.add_evaluation("held_out", row | {"generation": 1} | means)
    found = RunFile.open(tmp_path / "run.h5").evaluations["held_out"]
    assert found[1]["a_b_mean"] == 1.5
    assert found[1]["._mean"] == 2.0
    # a column that an evaluation lacks is NaN there
    assert math.isnan(found[0]["a_b_mean"])
    assert read(tmp_path)["evaluations/held_out/generation"].tolist() == [0, 1]


def test_a_figure_that_is_nan_does_not_hide_the_others() -> None:
    means = means_of([{"x": 1.0, "y": math.nan}, {"x": math.nan, "y": math.nan}, {"x": 3.0}])
    assert means["x_mean"] == 2.0
    assert math.isnan(means["y_mean"])


def test_a_figure_of_the_task_does_not_hide_one_of_the_evaluation() -> None:
    assert means_of([{"reward": 1, "a/b": 2, "tokens": 3}, {"reward": 3, "a/b": 4}]) == {
        "task_reward_mean": 2,
        "a_b_mean": 3,
        "task_tokens_mean": 3,
    }
