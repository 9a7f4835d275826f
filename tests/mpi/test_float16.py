"""Runs with live weights in float16, for GPUs without bfloat16."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support import TINY_RUN, Run, assert_same_run, read, train

from esmpi.__main__ import main
from esmpi.model.find import find_model

KEYS = ("model.dtype=float16", "eval.every=1")


def test_a_float16_run_resumes_and_replays_exactly(launch: Run, tmp_path: Path) -> None:
    train(launch, tmp_path / "unbroken", 1, *KEYS, "es.generations=3")
    train(launch, tmp_path / "resumed", 2, *KEYS, "es.generations=1")
    train(launch, tmp_path / "resumed", 3, *KEYS, "es.generations=3")
    assert_same_run(tmp_path / "resumed" / "tiny", tmp_path / "unbroken" / "tiny")
    assert len(set(read(tmp_path / "resumed" / "tiny")["generations/theta_digest"].tolist())) == 3
    assert main(["replay", str(tmp_path / "resumed" / "tiny"), "--verify"]) == 0


def changed_model(output: Path, changes: dict[str, float]) -> Path:
    """Return a copy of the tiny model in float32 with other values as the last ones of some tensors."""
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    model = shutil.copytree(folder, output / "model")
    tensors = {key: tensor.float() for key, tensor in load_file(model / "model.safetensors").items()}
    for name, value in changes.items():
        tensors[name].view(-1)[-1] = value
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


def test_weights_that_overflow_are_told(launch: Run, tmp_path: Path) -> None:
    # next to the largest float16: noise makes it infinite; and theta's outputs do without it
    model = changed_model(tmp_path, {"model.embed_tokens.weight": 65519.996, "model.norm.weight": 0.0})
    overrides = [*KEYS, f"model.path={model}", f"run.output_dir={tmp_path}", "es.sigma=0.02", "es.generations=1"]
    done = launch(["-m", "esmpi.run", TINY_RUN, *overrides], 2)
    assert done.returncode == 0, done.stderr
    told = re.findall(r"member (\d): 1 live weight overflowed float16 to infinity: lower es.sigma", done.stdout)
    assert 0 < len(told) == len(set(told)) < 7


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (60_000.0, "float16", r"in float16 are not numbers \(NaN\): .* too large for that: set model.dtype=float32"),
        (3e38, "float32", r"in float32 are not numbers \(NaN\): its weights are damaged, or too large"),
        (math.nan, "float32", r"model.norm.weight of \S+ holds NaN: the checkpoint is damaged"),
    ],
)
def test_a_model_whose_outputs_are_not_numbers_is_refused(
    launch: Run, tmp_path: Path, value: float, dtype: str, said: str
) -> None:
    model = changed_model(tmp_path, {"model.norm.weight": value})
    overrides = [f"model.path={model}", f"model.dtype={dtype}", f"run.output_dir={tmp_path}"]
    done = launch(["-m", "esmpi.run", TINY_RUN, *overrides], 0)
    assert done.returncode == 2
    assert re.search("esmpi: model.path: .*" + said, done.stderr)
    assert not (tmp_path / "tiny").exists()


def test_a_model_with_weights_that_overflow_bfloat16_is_told(launch: Run, tmp_path: Path) -> None:
    # rounds up to infinity: above the largest bfloat16 and half a step
    model = changed_model(tmp_path, {"model.embed_tokens.weight": 3.4e38, "model.norm.weight": 0.0})
    mine = ("model.dtype=bfloat16", f"model.path={model}", f"run.output_dir={tmp_path}")
    done = launch(["-m", "esmpi.run", TINY_RUN, *mine], 0)
    assert done.stdout.count("theta: 1 live weight overflowed bfloat16 to infinity: set model.dtype=float32") == 1
    assert "in bfloat16 are not numbers (NaN)" in done.stderr  # infinity times 0
    assert done.returncode == 2


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_members_whose_outputs_are_not_numbers_are_only_bad_members(
    launch: Run, tmp_path: Path, temperature: float
) -> None:
    """Such noise makes activations infinite, and logits NaN."""
    mad = ("model.dtype=float16", "es.sigma=900", "es.alpha=1e-3", "es.generations=1", "data.num_eval=4")
    run = train(launch, tmp_path, 1, *mad, "log.samples=1", f"sampling.temperature={temperature}")
    assert np.isfinite(run["members/fitness"]).all()
    assert (run["members/status"] == 0).all()
    [line] = (tmp_path / "tiny" / "samples" / "g000000.jsonl").read_text().splitlines()[:1]
    assert json.loads(line)["tokens"] == 40
