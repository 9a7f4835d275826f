"""The parts of tools/gpu_day.py: `python tools/gpu_day_parts.py PART`. The last line is one JSON object.

With `--device cpu` the sizes are small, and Triton's interpreter (TRITON_INTERPRET=1) runs the kernels: then only CUDA
itself is untried.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esmpi.noise import cpu, member_seed
from esmpi.noise.format import FULL, Noise, member_seeds
from esmpi.weights.device import DeviceWeights, check_gpu
from esmpi.weights.host import Weights
from esmpi.weights.views import View

ROOT = Path(__file__).parents[1]
SIGMA = 1e-3


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--fault", choices=("raise", "hang", "bits"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU: --device cpu tries this script without one")
    if arguments.fault == "raise":
        raise SystemExit("the fault that was asked for")
    if arguments.fault == "hang":
        time.sleep(3600)
    if arguments.fault == "bits":
        spoil_updates()
    print(json.dumps(PARTS[arguments.part](device)))


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the machine is and which software it has."""
    import importlib.metadata

    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d %H:%M"), "python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "numba", "numpy", "vllm", "h5py", "mpi4py"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["cores"] = len(os.sched_getaffinity(0))
    found["host_memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"capability": f"{properties.major}.{properties.minor}", "uuid": str(properties.uuid)}
        found |= {"processors": properties.multi_processor_count, "cuda": torch.version.cuda}
    return found


def bits(device: torch.device) -> dict[str, Any]:
    """Compare GPU and CPU: noise of full and low rank, perturbation, update, digest, odd shapes, numbers, shards."""
    check_gpu(device)
    rng = np.random.default_rng(0)
    shapes, members = [(1, 1), (7, 301), (2, 4097)], 4
    if device.type == "cuda":
        shapes, members = [*shapes, (128, 8191), (4096, 4096), (1, 50_000_003), (151_936, 896)], 30
    seeds, factors = member_seeds(3, 1, members), np.linspace(-0.3, 0.4, members, dtype=np.float32)
    odd = torch.tensor([0x7F7FFFFF, 0x7F800000, -0x800000, 0x7FC00001, 0x3F808000, 1, -0x80000000], dtype=torch.int32)
    num_elements = 0
    for rows, cols in shapes:
        theta = torch.from_numpy(rng.normal(size=(rows, cols)).astype(np.float32))
        if rows * cols > len(odd):
            theta.view(-1)[: len(odd)] = odd.view(torch.float32)
        for live, rank in itertools.product((torch.float32, torch.bfloat16, torch.float16), (0, 1, 3)):
            for parts in ((1, 1), (2, 3)) if min(rows, cols) > 6 else ((1, 1),):
                what = f"{rows} x {cols}, {live}, {parts} shards, {f'noise of rank {rank}' if rank else 'full noise'}"
                noise = Noise(rank)
                mine = opened(Weights, theta, live, torch.device("cpu"), parts, what)
                other = opened(DeviceWeights, theta, live, device, parts, what)
                for weights in (mine, other):
                    weights.perturb(int(seeds[0]), -SIGMA, None, noise)
                compare(mine, other, f"perturbation of {what}")
                for weights in (mine, other):
                    weights.update(seeds, factors, noise)
                    weights.restore()
                compare(mine, other, f"update of {what}")
                num_elements += rows * cols
                mine.close()
                other.close()
    return {"bits_equal": True, "elements": num_elements}


def opened(
    kind: type[Weights], theta: torch.Tensor, live: torch.dtype, where: torch.device, parts: tuple[int, int], name: str
) -> Weights:
    """Return weights of one tensor, cut into so many parts along its rows and columns."""
    views = []
    for rows in edges(theta.shape[0], parts[0]):
        for cols in edges(theta.shape[1], parts[1]):
            held = torch.empty((rows[1] - rows[0], cols[1] - cols[0]), dtype=live, device=where)
            views.append(View(name, tuple(theta.shape), rows, cols, held))

    def read(view: View) -> torch.Tensor:
        return theta[view.rows[0] : view.rows[1], view.cols[0] : view.cols[1]].clone()

    return kind(views, read, len(os.sched_getaffinity(0)))


def edges(length: int, parts: int) -> list[tuple[int, int]]:
    """Return the begin and end of each of so many parts."""
    cuts = [length * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(cuts))


def compare(on_cpu: Weights, on_gpu: Weights, what: str) -> None:
    """Exit unless theta and live weights have the same bits; a NaN equals a NaN."""
    pairs = [(mine, other) for (_, mine), (_, other) in zip(on_cpu.theta(), on_gpu.theta(), strict=True)]
    pairs += [(mine.live, other.live) for mine, other in zip(on_cpu.views, on_gpu.views, strict=True)]  # type: ignore[misc]
    for mine, other in pairs:
        kind = torch.int16 if mine.element_size() == 2 else torch.int32
        same = mine.view(kind) == other.cpu().view(kind)
        same |= torch.isnan(mine) & torch.isnan(other.cpu())
        if not bool(same.all()):
            raise SystemExit(f"GPU and CPU differ: {what}, {int((~same).sum())} of {same.numel()} elements")


def spoil_updates() -> None:
    """Make one element of each update wrong in its last bit, as a fused multiply and add would."""
    from esmpi.noise.gpu import DeviceBlocks

    right = DeviceBlocks.update

    def wrong(self: DeviceBlocks, seeds: torch.Tensor, coefficients: torch.Tensor) -> None:
        right(self, seeds, coefficients)
        theta = self._blocks[0].theta
        theta[0, -1] = torch.nextafter(theta[0, -1], theta.new_tensor(1e9))

    DeviceBlocks.update = wrong  # type: ignore[method-assign]


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


def placements(device: torch.device) -> dict[str, Any]:
    """Compare the three placements of theta: bits, and seconds of a member and of an update."""
    from esmpi.weights.streamed import StreamedWeights

    shape = (8, 1031) if device.type == "cpu" else (250_000, 2048)
    theta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    view = View.whole("weight", torch.empty(shape, dtype=torch.bfloat16, device=device))
    seeds, factors = member_seeds(0, 0, 4), np.array([0.1, -0.2, 0.3, -0.4], np.float32)
    found: dict[str, Any] = {"elements": theta.numel()}
    digests, lives = {}, {}
    for name, kind, bf16 in (
        ("device", DeviceWeights, False),
        ("host", StreamedWeights, False),
        ("host+bf16", StreamedWeights, True),
    ):
        weights = kind([view], lambda _: theta.clone(), len(os.sched_getaffinity(0)), bf16_base=bf16)
        found[f"perturb_s.{name}"] = timed(device, partial(weights.perturb, int(seeds[0]), SIGMA))
        assert view.live is not None
        lives[name] = view.live.cpu()
        found[f"update_s.{name}"] = timed(device, partial(weights.update, seeds, factors))
        digests[name] = weights.digest()
        weights.close()
    found["gb_per_s_host_to_gpu"] = round(4e-9 * theta.numel() / found["perturb_s.host"], 2)
    if len(set(digests.values())) != 1 or not torch.equal(lives["device"], lives["host"]):
        raise SystemExit(f"placements differ: {digests}")
    live = torch.empty(shape, dtype=torch.bfloat16)
    on_cpu = Weights(
        [View.whole("weight", live)], lambda _: theta.clone(), len(os.sched_getaffinity(0)), bf16_base=True
    )
    on_cpu.perturb(int(seeds[0]), SIGMA)
    if not torch.equal(lives["host+bf16"], live):
        raise SystemExit("host+bf16: live weights are not those of a CPU")
    return found | {"placements_equal": True}


def timed(device: torch.device, work: Callable[[], object], repeats: int = 3) -> float:
    """Return the least seconds of some calls."""
    seconds = []
    for _ in range(repeats):
        settle(device)
        started = time.perf_counter()
        work()
        settle(device)
        seconds.append(time.perf_counter() - started)
    return round(min(seconds), 6)


def settle(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def large_tensor(device: torch.device) -> dict[str, Any]:
    """Compare stretches of a tensor with more than 2^31 elements, around the places where an int32 would fail."""
    size = 20_003 if device.type == "cpu" else 2**31 + 100_003
    view = View.whole("large", torch.empty((1, size), dtype=torch.bfloat16, device=device))
    weights = DeviceWeights([view], lambda _: torch.zeros((1, size)), 1)
    seeds, factors = member_seeds(5, 0, 3), np.array([0.5, -0.25, 0.125], np.float32)
    weights.update(seeds, factors)
    weights.perturb(member_seed(5, 0, 1), SIGMA)
    _, made = next(iter(weights.theta()))
    assert view.live is not None
    key = weights._blocks[0].key
    for first in sorted({0, size // 2, min(2**30, size // 3), max(0, 2**31 - 5_000) % size, size - 10_000}):
        stop = min(first + 10_000, size)
        theta = np.zeros((1, stop - first), np.float32)
        cpu.update(theta, first, 0, key, seeds, factors)
        live = np.zeros((1, stop - first), np.uint16)
        cpu.perturb(live, theta, first, 0, key, member_seed(5, 0, 1), SIGMA)
        mine = view.live[:, first:stop].contiguous().view(torch.int16).cpu().numpy().view(np.uint16)
        if not np.array_equal(made[:, first:stop].cpu().numpy().view(np.int32), theta.view(np.int32)):
            raise SystemExit(f"update differs behind element {first:,} of {size:,}")
        if not np.array_equal(mine, live):
            raise SystemExit(f"perturbation differs behind element {first:,} of {size:,}")
    return {"bits_equal": True, "elements": size}


def kernels(device: torch.device) -> dict[str, Any]:
    """Time the kernels against copying and the public code's loop: tools/bench_kernels.py."""
    elements = "200000" if device.type == "cpu" else "1500000000"
    arguments = ["--device", device.type, "--dtype", "bfloat16", "--elements", elements, "--check", "1000000"]
    return benchmark("bench_kernels.py", *arguments, *(["--repeats", "1"] if device.type == "cpu" else []))


def update(device: torch.device) -> dict[str, Any]:
    """Time updates of 30 and of 1,000 members, with full noise and with noise of rank 1."""
    shape = (8, 8) if device.type == "cpu" else (250_000, 4_000)
    size, low = shape[0] * shape[1], Noise(1)
    view = View.whole("weight", torch.empty(shape, dtype=torch.bfloat16, device=device))
    weights = DeviceWeights([view], lambda _: torch.zeros(shape), 1)
    found: dict[str, Any] = {"elements": size}
    for name, members, noise in (("", 30, FULL), ("", 1000, FULL), ("rank_1_", 30, low), ("rank_1_", 1000, low)):
        seeds, factors = member_seeds(0, 0, members), np.full(members, 1e-3, np.float32)
        seconds = timed(device, partial(weights.update, seeds, factors, noise), 1 if members > 30 else 3)
        found[f"{name}seconds_{members}"] = seconds
        found[f"{name}ps_per_element_and_member_{members}"] = round(seconds / members / size * 1e12, 3)
    return found


def memory(device: torch.device) -> dict[str, Any]:
    """Compare the memory that a rank of engine hf takes with what the dry run says, for each placement of theta."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), device)
        for placement in ("device", "host", "host+bf16"):
            printed = called([sys.executable, __file__, "--memory-of", str(model), placement, device.type])
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
    """As `vllm_run` and `vllm_efficiency`, with live weights in int8; and a run in fp8."""
    found = {kind: trained_and_replayed(device, f"model.quantization={kind}") for kind in ("int8", "fp8")}
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
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    sys.stderr.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or ["?"]
        raise SystemExit(f"{Path(command[1]).name} {command[2]} ended with {done.returncode}: {words[-1]}")
    return done.stdout


PARTS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    part.__name__: part
    for part in (
        *(machine, bits, run, placements, large_tensor, kernels, update, memory, efficiency, waves),
        *(vllm_run, vllm_efficiency, vllm_batch_invariant, vllm_quantized),
    )
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory-of"]:
        print(json.dumps(memory_of(*sys.argv[2:])))
    else:
        main()
