"""The parts of tools/gpu_day.py that run esmpi itself, or a benchmark of tools/, in processes of their own."""

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esmpi.noise.format import member_seeds

ROOT = Path(__file__).parents[1]
SIGMA = 1e-3


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the one that started it has ended, however that came about."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(number), 0, 0, 0)


def run(device: torch.device) -> dict[str, Any]:
    """Train the tiny model on the GPU, resume it with theta in host memory, and replay the log on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        small = ["es.population_size=6", "data.batch_size=16", "data.num_train=64", "data.num_eval=4"]
        command = [sys.executable, "-m", "esmpi.run", "configs/quickstart.yaml", f"engine.device={device.type}"]
        command += [f"run.output_dir={folder}", "run.export_dtype=none", *small]
        found: dict[str, Any] = {}
        for generations, placement, noise in (
            (2, "device", "full"),
            (3, "host", "full"),
            (4, "host+bf16", "full"),
            (2, "device", "low_rank"),
        ):
            started = time.perf_counter()
            name = f"run.name={noise}", f"es.noise={noise}"
            printed = called([*command, *name, f"es.generations={generations}", f"engine.theta_placement={placement}"])
            found[f"seconds_{noise}_{placement}"] = round(time.perf_counter() - started, 1)
            found[f"last_line_{noise}"] = [line for line in printed.splitlines() if line.startswith("generation")][-1]
            found[f"theta_{noise}"] = printed.split()[-1]
            base = next(line.split()[-1] for line in printed.splitlines() if line.startswith("base model:"))
            if found[f"theta_{noise}"] == base:
                raise SystemExit("theta did not move: the fitness of all members was the same")
        for noise, generations in (("full", 4), ("low_rank", 2)):
            replay = [sys.executable, "-m", "esmpi", "replay", f"{folder}/{noise}", "--verify"]
            said = called(replay, {"CUDA_VISIBLE_DEVICES": ""})
            if f"all {generations} generations are what the run had" not in said:
                raise SystemExit(f"replay on the CPU: {said.strip().splitlines()[-1]}")
        return found | {"replayed_on_cpu": True}


def memory(device: torch.device) -> dict[str, Any]:
    """Compare the memory that a rank of engine hf takes with what the dry run says, for each placement of theta."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), device)
        for placement in ("device", "host", "host+bf16"):
            printed = called(
                [
                    sys.executable,
                    "tools/gpu_day_parts.py",
                    "--memory-of",
                    str(model),
                    placement,
                    device.type,
                ]
            )
            found |= {f"{name}.{placement}": value for name, value in json.loads(printed.splitlines()[-1]).items()}
    return found


def memory_of(folder: str, placement: str, kind: str) -> dict[str, Any]:
    """Open engine hf in this process, perturb and update; return planned and taken memory in MiB."""
    from esmpi.config.sections import ModelConfig
    from esmpi.engines.hf import HfConfig
    from esmpi.engines.hf.engine import HfEngine
    from esmpi.model.base_model import BaseModel
    from esmpi.mpi.comm import Place
    from esmpi.weights.model_weights import Perturbation

    device, base = torch.device(kind), BaseModel(Path(folder))
    before = host_mib()
    keys = HfConfig(device=kind, theta_placement=placement)  # type: ignore[arg-type]
    place = Place("here", 0, 1, tuple(sorted(os.sched_getaffinity(0))))
    engine = HfEngine(ModelConfig(path=folder, dtype="bfloat16"), keys, base, place)
    engine.weights.perturb([Perturbation(1, SIGMA)])
    engine.weights.update(member_seeds(0, 0, 4), np.full(4, 1e-3, np.float32))
    theta, live = 4 * base.num_weights / 2**20, 2 * base.num_weights / 2**20
    on_gpu = live + {"device": theta, "host": 0.0, "host+bf16": live}[placement]
    found = {"planned_gpu_mib": on_gpu, "planned_host_mib": 0.0 if placement == "device" else theta}
    if device.type == "cuda":
        found["taken_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
        found["now_gpu_mib"] = torch.cuda.memory_allocated() / 2**20
    found["host_growth_mib"] = host_mib() - before
    found["host_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {name: round(value, 1) for name, value in found.items()}


def host_mib() -> float:
    """Return the memory that this process has in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def efficiency(device: torch.device) -> dict[str, Any]:
    """Measure what ES costs beside the untouched engine hf: tools/bench_generation.py, a model of half a billion."""
    return measured_efficiency(device, "hf")


def vllm_efficiency(device: torch.device) -> dict[str, Any]:
    """As `efficiency`, with engine vllm."""
    return measured_efficiency(device, "vllm")


def vllm_batch_invariant(device: torch.device) -> dict[str, Any]:
    """Measure what batch invariance costs: `vllm_efficiency` without it and with it. On a CPU there is none."""
    found = {"without": measured_efficiency(device, "vllm")}
    if device.type != "cpu":
        found["with"] = measured_efficiency(device, "vllm", "engine.batch_invariant=true")
    return found


def measured_efficiency(device: torch.device, kind: str, *keys: str) -> dict[str, Any]:
    """Run tools/bench_generation.py with the made model, and further keys of the config."""
    found = with_model(device, lambda model: benchmark("bench_generation.py", *generation(model, device, kind), *keys))
    if not found["seconds_update"] > 0:
        raise SystemExit("there was no update")
    return found


def vllm_run(device: torch.device) -> dict[str, Any]:
    """Train two generations with engine vllm, and replay the log on the CPU."""
    return trained_and_replayed(device)


def vllm_quantized(device: torch.device) -> dict[str, Any]:
    """As `vllm_run` and `vllm_efficiency`, with live weights in int8; and runs in fp8 and in int4."""
    found = {kind: trained_and_replayed(device, f"model.quantization={kind}") for kind in ("int8", "fp8")}
    found["int4"] = trained_and_replayed(device, "model.quantization=int4", "es.noise=low_rank")
    return found | {"efficiency": measured_efficiency(device, "vllm", "model.quantization=int8")}


def trained_and_replayed(device: torch.device, *keys: str) -> dict[str, Any]:
    """Train two generations with engine vllm and further keys of the config, and replay the log on the CPU."""

    def work(model: Path) -> dict[str, Any]:
        output = model.with_name("runs")
        overrides = [*generation(model, device, "vllm"), *keys, f"run.output_dir={output}", "run.export_dtype=none"]
        printed = called([sys.executable, "-m", "esmpi.run", *overrides, "es.generations=2"])
        replay = [sys.executable, "-m", "esmpi", "replay", str(output / "quickstart"), "--verify"]
        said = called(replay, {"CUDA_VISIBLE_DEVICES": ""})
        if "all 2 generations are what the run had" not in said:
            raise SystemExit(f"replay on the CPU: {said.strip().splitlines()[-1]}")
        if len({line.split()[3] for line in said.splitlines() if line.startswith("generation")}) != 2:
            raise SystemExit("theta did not move")
        lines = [line for line in printed.splitlines() if line.startswith(("generation", "theta", "vLLM"))]
        return {"lines": lines, "replayed_on_cpu": True}

    return with_model(device, work)


def generation(model: Path, device: torch.device, kind: str) -> list[str]:
    """Return a config and overrides for some generations with the made model.

    Its rewards are random, because what it says has no letters that a reward could tell apart, and without rewards that
    differ there is no update.
    """
    task = model.with_name("task.py")
    task.write_text(
        "import random\n\n\ndef reward(completion, example):\n    return random.random()\n\n\n"
        "train = evaluation = [{'prompt': f'{i} and'} for i in range(64)]\n"
    )
    overrides = ["configs/quickstart.yaml", f"model.path={model}", "model.dtype=bfloat16", f"engine.kind={kind}"]
    overrides += [f"engine.device={device.type}"] if kind == "hf" else ["engine.max_model_len=512"]
    overrides += [f"task.name={task}:reward", "data.train=builtin", "data.eval=builtin", "data.num_train=64"]
    size = (2, 4, 8) if device.type == "cpu" else (4, 64, 64)
    keys = ("es.population_size", "data.batch_size", "sampling.max_tokens")
    return [*overrides, "data.num_eval=2", *(f"{key}={value}" for key, value in zip(keys, size, strict=True))]


def waves(device: torch.device) -> dict[str, Any]:
    """Measure what a wave gains over members one by one, with 2 to 512 prompts each: tools/bench_waves.py."""
    small = device.type == "cpu"
    size = ["--prompts", "2", "4"] if small else ["--prompts", "2", "8", "32", "128", "512"]
    size += ["--tokens", "4" if small else "64", "--members", "3" if small else "16", "--rounds", "1"]
    return with_model(
        device, lambda model: benchmark("bench_waves.py", str(model), "--dtype", "bfloat16", "--kind", "hf", *size)
    )


def with_model(device: torch.device, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Call `work` with the folder of the made model."""
    with tempfile.TemporaryDirectory() as folder:
        return work(make_model(Path(folder), device))


def make_model(folder: Path, device: torch.device) -> Path:
    """Write a model with random weights in the shape of Qwen2.5-0.5B, tiny for a CPU; it says nothing reasonable."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from esmpi.model.find import find_model

    tokenizer_folder = find_model("esmpi:tiny_countdown")
    assert tokenizer_folder is not None
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    small = device.type == "cpu"
    config = Qwen2Config(
        vocab_size=len(tokenizer) if small else 151_936,
        hidden_size=64 if small else 896,
        intermediate_size=128 if small else 4_864,
        num_hidden_layers=2 if small else 24,
        num_attention_heads=2 if small else 14,
        num_key_value_heads=1 if small else 2,
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    path = folder / "model"
    model.cpu().save_pretrained(path)
    tokenizer.save_pretrained(path)
    for file in tokenizer_folder.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


def benchmark(script: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark of tools/ and return its JSON."""
    found: dict[str, Any] = json.loads(called([sys.executable, f"tools/{script}", *arguments]).splitlines()[-1])
    return found


def called(command: list[str], more: dict[str, str] | None = None) -> str:
    """Run a command in the project's folder, show what it prints, and return that; exit if it fails."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"} | (more or {})
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, preexec_fn=end_with_parent
    )
    sys.stderr.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or ["?"]
        raise SystemExit(f"{Path(command[1]).name} {command[2]} ended with {done.returncode}: {words[-1]}")
    return done.stdout
