"""The memory that a dry run plans for engine hf is what the engine then takes.

A process of its own opens the engine and generates, and reads from the kernel what that took: memory that belongs to it
alone (RssAnon), not files that are mapped. `python tests/engines/test_memory_plan.py MODEL` prints a model's figures.
"""

import ctypes
import gc
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from esmpi.config.reader import parse_config
from esmpi.engines import Request, Sampling, engine_config
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.mpi.comm import Place
from esmpi.weights.model_weights import Perturbation

NUM_PROMPTS, MAX_TOKENS = 48, 40
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def status(name: str) -> int:
    """Return a figure of this process's memory, in bytes, without what was freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def planned(line: str, what: str) -> float:
    """Return a size that a line of the plan has, in bytes."""
    found = re.search(rf"{what} ([0-9.]+) (KiB|MiB|GiB)", line)
    assert found is not None, line
    return float(found[1]) * UNITS[found[2]]


def measure(path: str, dtype: str, quantization: str) -> dict[str, float]:
    """Return what the plan says of a model, and what the engine took, in bytes."""
    config = parse_config(
        {
            "run": {"name": "x"},
            "model": {"path": path, "dtype": dtype, "quantization": quantization},
            "engine": {"kind": "hf", "device": "cpu"},
            "es": {"generations": 1},
            "task": {"name": "countdown"},
            "data": {"batch_size": NUM_PROMPTS},
            "sampling": {"max_tokens": MAX_TOKENS},
        }
    )
    base = BaseModel(Path(path))
    [line] = engine_config(config).plan(config, base)
    before = status("RssAnon")
    engine = engine_config(config).open(config.model, base, Place("here", 0, 1, (0,)))
    engine.perturb([Perturbation(3, 1e-3)])
    held = status("RssAnon")
    # all rows to the end, so that the cache is as large as it can be
    prompts = [Request(prompt="1", seed=i) for i in range(NUM_PROMPTS)]
    sampling = Sampling(max_tokens=MAX_TOKENS, min_tokens=MAX_TOKENS)
    engine.generate(prompts, Sampling(max_tokens=1))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again here
    start = status("VmRSS")
    engine.generate(prompts, sampling)
    peak = status("VmHWM") - start
    sizes = {what: planned(line, what) for what in ("theta", "live weights", "cache")}
    return sizes | {"held": held - before, "generating": peak}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What is planned and taken by a model of 29 million weights, in float32 and then quantized."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40_000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 96, "max_position_embeddings": 256}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True))
    model.save_pretrained(path)
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(folder / name, path)
    done = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_weights_take_what_is_planned(figures: list[dict[str, Any]]) -> None:
    for found in figures:
        weights = found["theta"] + found["live weights"]
        # above it: the engine's Python objects, its tokenizer, and threads
        assert 0.98 < found["held"] / weights < 1.06
    plain, quantized = figures
    assert quantized["live weights"] < 0.6 * plain["live weights"]


def test_generating_takes_the_cache_that_is_planned(figures: list[dict[str, Any]]) -> None:
    for found in figures:
        # above it: the prompts' own part, a layer's cache a second time while a token is added, logits, activations
        assert 0.95 < found["generating"] / found["cache"] < 1.8


if __name__ == "__main__":
    measure(str(find_model("esmpi:tiny_countdown")), "float32", "int8")  # loads all code, and starts threads
    for how in (("float32", "none"), ("float32", "int8")):
        print(json.dumps(measure(sys.argv[1], *how)))
