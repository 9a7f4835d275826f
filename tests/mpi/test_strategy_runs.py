"""Runs with each strategy: any layout, killed and resumed, replayed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from support import TINY_RUN, Run, assert_same_run, read, train

from esmpi.__main__ import main
from esmpi.config.reader import load_config
from esmpi.errors import UserError
from esmpi.identity import check_same_config
from esmpi.store.run_file import RunFile, run_file_path

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
    if "cosine" in name:
        run = RunFile.open(run_file_path(tmp_path / "resumed" / "tiny"))
        longer = [key.replace("schedule_generations=3", "schedule_generations=4") for key in keys]
        with pytest.raises(UserError, match=r"To prolong the run, add es\.schedule_generations=3\."):
            check_same_config(run, load_config(TINY_RUN, [f"run.output_dir={tmp_path / 'resumed'}", *longer]))
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


def test_the_guard_takes_theta_back_on_any_layout(launch: Run, tmp_path: Path) -> None:
    keys = ("es.alpha=0.05", "es.generations=5", "eval.every=1", "guard.max_drop=0", "guard.action=restore")
    train(launch, tmp_path / "unbroken", 0, *keys)
    # it resumes where theta is to be taken back
    run = RunFile.open(run_file_path(tmp_path / "unbroken" / "tiny"))
    events = run.attributes["events"]
    first = events[0]["generation"]
    train(launch, tmp_path / "resumed", 0, *keys, f"es.generations={first}")
    train(launch, tmp_path / "resumed", 2, *keys, "snapshot.every=1")
    assert_same_run(tmp_path / "resumed" / "tiny", tmp_path / "unbroken" / "tiny")
    again = RunFile.open(run_file_path(tmp_path / "resumed" / "tiny"))
    assert again.attributes["events"] == events
    assert events[0]["action"] == "restore"
    left_out = range(events[0]["to"], first)
    assert not set(run.steps_to(5)) & set(left_out)
    assert [row["alpha"] for row in run.generations][first] == 0.025
    assert main(["replay", str(tmp_path / "resumed" / "tiny"), "--verify"]) == 0
    # a generation that was given up is rebuilt as any other
    assert main(["replay", str(tmp_path / "unbroken" / "tiny"), "--generation", str(first)]) == 0


def test_a_run_that_its_guard_stops_is_done_and_exports_the_best(launch: Run, tmp_path: Path) -> None:
    keys = ("es.alpha=0.05", "es.generations=9", "eval.every=1", "guard.patience=1")
    columns = train(launch, tmp_path, 2, *keys)
    accuracy = columns["evaluations/held_out/accuracy"]
    assert len(columns["generations/theta_digest"]) == len(accuracy) - 1 < 9
    assert accuracy[-1] <= accuracy[-2]
    run = RunFile.open(run_file_path(tmp_path / "tiny"))
    best = run.best()
    assert best is not None
    exported = json.loads((tmp_path / "tiny" / "model" / "esmpi.json").read_text())
    assert exported["generation"] == best["generation"] == len(accuracy) - 2
    assert exported["theta_digest"] == f"{run.digest_after(best['generation']):016x}"
    again = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", *keys], 0)
    assert again.returncode == 0
    assert "where its guard has ended the run: no better accuracy than at generation" in again.stderr + again.stdout
    assert np.array_equal(read(tmp_path / "tiny")["generations/theta_digest"], columns["generations/theta_digest"])
