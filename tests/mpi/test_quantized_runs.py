"""Runs with quantized live weights."""

from pathlib import Path

import pytest
from support import Run, assert_same_run, read, train

from esmpi.__main__ import main


@pytest.mark.parametrize(("kind", "noise"), [("int8", "full"), ("fp8", "low_rank"), ("int4", "low_rank")])
def test_a_quantized_run_learns_resumes_and_replays_exactly(launch: Run, tmp_path: Path, kind: str, noise: str) -> None:
    keys = ("es.generations=3", f"model.quantization={kind}", f"es.noise={noise}", "eval.every=1", "data.num_eval=10")
    train(launch, tmp_path / "unbroken", 0, *keys)
    train(launch, tmp_path / "resumed", 3, *keys, "es.generations=1", "es.dispatch=dynamic", "data.mini_batch_size=3")
    train(launch, tmp_path / "resumed", 2, *keys, "engine.wave_size=2")
    assert_same_run(tmp_path / "resumed" / "tiny", tmp_path / "unbroken" / "tiny")
    columns = read(tmp_path / "resumed" / "tiny")
    assert len(set(columns["generations/theta_digest"].tolist())) == 3
    first, *_, last = columns["evaluations/held_out/reward_mean"]
    assert last > first + 0.1
    assert main(["replay", str(tmp_path / "resumed" / "tiny"), "--verify"]) == 0
