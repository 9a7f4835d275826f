"""Runs with live weights in float16, for GPUs without bfloat16."""

import re
import shutil
from pathlib import Path

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


def test_weights_that_overflow_are_told(launch: Run, tmp_path: Path) -> None:
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    model = shutil.copytree(folder, tmp_path / "model")
    tensors = {name: tensor.float() for name, tensor in load_file(model / "model.safetensors").items()}
    tensors["model.embed_tokens.weight"][-1, -1] = 65519.996  # next to the largest float16: noise makes it infinite
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    overrides = [*KEYS, f"model.path={model}", f"run.output_dir={tmp_path}", "es.sigma=0.02", "es.generations=1"]
    done = launch(["-m", "esmpi.run", TINY_RUN, *overrides], 2)
    assert done.returncode == 0, done.stderr
    told = re.findall(r"member (\d): 1 live weight overflowed float16 to infinity: lower es.sigma", done.stdout)
    assert 0 < len(told) == len(set(told)) < 7
