"""The parts of tools/gpu_day.py: `python tools/gpu_day_parts.py PART`. The last line is one JSON object.

With `--device cpu` the sizes are small, and Triton's interpreter (TRITON_INTERPRET=1) runs the kernels: then only CUDA
itself is untried.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_day_runs import (
    benchmark,
    efficiency,
    end_with_parent,
    memory,
    memory_of,
    run,
    vllm_batch_invariant,
    vllm_efficiency,
    vllm_quantized,
    vllm_run,
    waves,
)

from esmpi.noise import cpu, member_seed
from esmpi.noise.format import FULL, Noise, member_seeds
from esmpi.weights.device import DeviceWeights, check_gpu
from esmpi.weights.host import Weights
from esmpi.weights.views import View

SIGMA = 1e-3


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--fault", choices=("raise", "hang", "bits"))
    arguments = parser.parse_args()
    end_with_parent()
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
    """Time updates of 30 and of 1,000 members (100 on a CPU), with full noise and with noise of rank 1."""
    shape, many = ((8, 8), 100) if device.type == "cpu" else ((250_000, 4_000), 1000)
    size, low = shape[0] * shape[1], Noise(1)
    view = View.whole("weight", torch.empty(shape, dtype=torch.bfloat16, device=device))
    weights = DeviceWeights([view], lambda _: torch.zeros(shape), 1)
    found: dict[str, Any] = {"elements": size}
    for name, members, noise in (("", 30, FULL), ("", many, FULL), ("rank_1_", 30, low), ("rank_1_", many, low)):
        seeds, factors = member_seeds(0, 0, members), np.full(members, 1e-3, np.float32)
        seconds = timed(device, partial(weights.update, seeds, factors, noise), 1 if members > 30 else 3)
        found[f"{name}seconds_{members}"] = seconds
        found[f"{name}ps_per_element_and_member_{members}"] = round(seconds / members / size * 1e12, 3)
    return found


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
