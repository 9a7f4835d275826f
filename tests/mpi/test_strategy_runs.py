"""Runs with each strategy: any layout, killed and resumed, replayed."""

import math
from pathlib import Path

import numpy as np
import pytest
from support import Run, assert_same_run, read, train

from esmpi.__main__ import main

STRATEGIES = {
    "rewards by prompt, deviations, warm-up": (
        "es.shaping=per_prompt",
        "es.sigma_per_tensor=std",
        "es.sigma=0.1",
        "es.alpha=0.05",
        "es.warmup=2",
        "es.exclude=['*embed_tokens*']",
    ),
    "the fittest, cosine, anchor": (
        "es.shaping=top_k",
        "es.top_k=2",
        "es.alpha_schedule=cosine",
        "es.sigma_schedule=linear",
        "es.schedule_generations=3",
        "es.anchor=20",
    ),
    "low rank, some tensors, a distance kept": (
        "es.noise=low_rank",
        "es.include=['*.mlp.*','*self_attn*']",
        "es.sigma_per_tensor=std",
        "es.sigma=0.1",
        "es.alpha=0.05",
        "es.max_distance=0.3",
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_layout_changes_nothing_and_a_replay_is_exact(launch: Run, tmp_path: Path, name: str) -> None:
    keys = (*STRATEGIES[name], "eval.every=1", "data.batch_size=16")
    train(launch, tmp_path / "unbroken", 0, *keys)
    train(launch, tmp_path / "resumed", 0, *keys, "es.generations=1")
    train(launch, tmp_path / "resumed", 3, *keys, "es.dispatch=dynamic", "data.mini_batch_size=3")
    assert_same_run(tmp_path / "resumed" / "tiny", tmp_path / "unbroken" / "tiny")
    columns = read(tmp_path / "resumed" / "tiny")
    assert len(set(columns["generations/theta_digest"].tolist())) == 3
    assert main(["replay", str(tmp_path / "resumed" / "tiny"), "--verify"]) == 0
    sigma, alpha, shrink = (columns[f"generations/{column}"] for column in ("sigma", "alpha", "shrink"))
    if "cosine" in name:
        np.testing.assert_allclose(alpha, 6e-3 * np.array([1, 0.1 + 0.9 / 2, 0.1]))
        np.testing.assert_allclose(sigma, 3e-3 * np.array([1, 0.55, 0.1]))
        np.testing.assert_allclose(shrink, 1 - 20 * alpha)
    elif "warm-up" in name:
        np.testing.assert_allclose(alpha, [0.025, 0.05, 0.05])
        assert (shrink == 1).all()
    else:
        # two updates lead farther than that
        assert shrink[-1] < 1
        assert (sigma == 0.1).all()


def test_theta_is_not_farther_from_the_base_model_than_it_may_be(launch: Run, tmp_path: Path) -> None:
    free = train(launch, tmp_path / "free", 0, "eval.divergence=true", "eval.every=1", "data.batch_size=16")
    kept = train(launch, tmp_path / "kept", 0, "eval.divergence=true", "eval.every=1", "es.max_distance=2.0")
    distances = free["evaluations/held_out/theta_distance"]
    # one update is as long as alpha * sqrt(P / N)
    assert distances[1] == pytest.approx(6e-3 * math.sqrt(0.8e6 / 7), rel=0.1)
    limited = kept["evaluations/held_out/theta_distance"]
    assert limited[1] == pytest.approx(min(distances[1], 2.0), rel=1e-5)
    assert limited[2:] == pytest.approx([2.0, 2.0], rel=1e-5)
    assert (distances[2:] > 2.0).all()
