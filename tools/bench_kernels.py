"""Time the noise kernels against the public code's loop, in one run. The last line is one JSON object.

The public loop draws `torch.randn` for a tensor and adds it in place: once to perturb, once to restore and once
for each member in the update. All figures are nanoseconds per element, the median of the repeats; what is compared
alternates, so that a change of the machine's speed meets all alike.

The counted floor of a kernel is the larger of two times. Its bytes (each of theta and live read or written once) over
the bandwidth that memcpy reaches here. And its integer operations over their rate, which is measured with Philox
alone, in registers: ten rounds of two high and two low products, four exclusive ors and two additions to the key make
12.5 operations an element, and turning its word into a normal 5 more. `*_over_floor` is measured over that.

On a GPU (`--device cuda`) it also compares the bits of CPU and GPU on `--check` elements: live weights of a
perturbation in both types, theta of an update, and the digest. `tools/gpu_day.sh` does all that a GPU is wanted for in
ten minutes.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from esmpi.noise import member_seed
from esmpi.weights.host import Weights
from esmpi.weights.open import open_weights
from esmpi.weights.views import View

SIGMA, ALPHA = 1e-3, 5e-4
PHILOX_OPERATIONS, NORMAL_OPERATIONS = 12.5, 5.0
"""Integer operations an element."""
_RATE_ELEMENTS = 1 << 26
COLUMNS = 2048
_COPY_ROWS = 1 << 19


def main() -> None:  # noqa: PLR0915  # what is timed, in order
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--elements", type=int, default=1 << 25, help="weights (default: %(default)s)")
    parser.add_argument("--members", type=int, default=30, help="members of the update (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the live weights")
    parser.add_argument(
        "--check", type=int, default=10**8, help="with cuda: elements whose bits are compared (default: %(default)s)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")

    # matrices of a 1 B model's size, as the public loop meets them, not one vector
    shape = (max(1, arguments.elements // COLUMNS), COLUMNS)
    live = torch.zeros(shape, dtype=getattr(torch, arguments.dtype), device=device)
    weights = held(live, arguments.threads)
    seeds = np.array([member_seed(0, 0, member) for member in range(arguments.members)], np.uint64)
    factors = np.linspace(-1, 1, arguments.members).astype(np.float32)
    if not factors.all():
        raise SystemExit("--members: an even number, so that no coefficient is 0 and skipped")
    generator = torch.Generator(device)
    parameter = torch.zeros(shape, dtype=live.dtype, device=device)
    # of a large model a part is enough, and leaves room for it on a GPU
    source, target = (torch.ones(min(shape[0], _COPY_ROWS), COLUMNS, device=device) for _ in range(2))

    def torch_add(scale: float) -> None:
        generator.manual_seed(1)
        parameter.add_(torch.randn(shape, generator=generator, dtype=parameter.dtype, device=device), alpha=scale)

    timed: dict[str, Callable[[], object]] = {
        "perturb_ns": lambda: weights.perturb(int(seeds[0]), SIGMA),
        "update_ns_per_member": lambda: weights.update(seeds, factors),
        "digest_ns": weights.digest,
        "memcpy_ns": lambda: target.copy_(source),
        "torch_perturb_ns": lambda: torch_add(SIGMA),
        "torch_restore_ns": lambda: torch_add(-SIGMA),
        "torch_update_ns_per_member": lambda: torch_add(ALPHA / arguments.members),
    }
    figures = measure(timed, arguments.repeats, live.numel(), device)
    figures["update_ns_per_member"] /= arguments.members
    figures["memcpy_ns"] *= live.numel() / source.numel()
    rate: Callable[[], object] = gpu_philox(device) if device.type == "cuda" else cpu_philox(arguments.threads)
    philox_ns = measure({"philox_ns": rate}, arguments.repeats, _RATE_ELEMENTS, device)["philox_ns"]
    figures |= {"philox_ns": philox_ns, "integer_operations_per_ns": PHILOX_OPERATIONS / philox_ns}
    figures |= floors(figures, live.element_size(), arguments.members)
    ours = figures["perturb_ns"] + figures["update_ns_per_member"]
    public = sum(figures[f"torch_{name}"] for name in ("perturb_ns", "restore_ns", "update_ns_per_member"))
    figures["ratio_member"] = public / ours
    figures["ratio_update"] = figures["torch_update_ns_per_member"] / figures["update_ns_per_member"]
    figures["digest_over_memcpy"] = figures["digest_ns"] / figures["memcpy_ns"]
    # of the bandwidth that memcpy reaches: 8 bytes an element there, theta and live here
    moved = 4 + live.element_size()
    figures["perturb_of_copy_bandwidth"] = moved / figures["perturb_ns"] / (8 / figures["memcpy_ns"])
    for name, value in figures.items():
        print(f"{name:28s} {value:8.3f}")
    settings = {key: getattr(arguments, key) for key in ("device", "members", "threads", "dtype")}
    settings |= {"elements": live.numel()}
    machine = {"machine": platform.machine(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    checked: dict[str, object] = {}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
        del weights, live, parameter, source, target, timed
        torch.cuda.empty_cache()
        checked = {"bits_equal": same_bits(arguments.check, arguments.threads), "bits_elements": arguments.check}
        print(f"bits of CPU and GPU equal on {arguments.check:,} elements: {checked['bits_equal']}")
    print(json.dumps(settings | machine | {name: round(value, 4) for name, value in figures.items()} | checked))


def held(live: torch.Tensor, threads: int) -> Weights:
    """Return weights whose theta, zeros, is beside the live tensor."""
    view = View.whole("weight", live)
    return open_weights([view], lambda view: torch.zeros(live.shape, device=live.device), threads, "device")


def measure(
    timed: Mapping[str, Callable[[], object]], repeats: int, elements: int, device: torch.device
) -> dict[str, float]:
    """Return the median nanoseconds per element of each, after one round that does not count."""
    samples: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats + 1):
        for name, work in timed.items():
            settle(device)
            started = time.perf_counter()
            work()
            settle(device)
            samples[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) / elements * 1e9 for name, values in samples.items()}


def settle(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def floors(figures: Mapping[str, float], live_bytes: int, members: int) -> dict[str, float]:
    """Return the counted floor of each kernel, nanoseconds an element, and measured over floor."""
    byte_ns = figures["memcpy_ns"] / 8
    operation_ns = figures["philox_ns"] / PHILOX_OPERATIONS
    noise_ns = (PHILOX_OPERATIONS + NORMAL_OPERATIONS) * operation_ns
    counted = {
        "perturb": ("perturb_ns", (4 + live_bytes) * byte_ns, noise_ns),
        "update": ("update_ns_per_member", 8 / members * byte_ns, noise_ns),
        "digest": ("digest_ns", 4 * byte_ns, 0.0),
    }
    found: dict[str, float] = {}
    for name, (measured, byte_floor, operation_floor) in counted.items():
        floor = max(byte_floor, operation_floor)
        found |= {f"{name}_floor_bytes_ns": byte_floor, f"{name}_floor_operations_ns": operation_floor}
        found[f"{name}_over_floor"] = figures[measured] / floor
    return found


def cpu_philox(threads: int) -> Callable[[], object]:
    """Return a function that makes the words of _RATE_ELEMENTS elements on all threads and keeps their sum."""
    import numba as nb

    from esmpi.noise import cpu

    round_, weyl_0, weyl_1 = cpu._round, tuple(cpu._WEYL_0), tuple(cpu._WEYL_1)
    a0, a1, a2, a3, a4, a5, a6, a7, a8, a9 = weyl_0
    b0, b1, b2, b3, b4, b5, b6, b7, b8, b9 = weyl_1

    @nb.njit(nogil=True)  # type: ignore[untyped-decorator]  # numba has no types
    def words(first: int, stop: int, s0: np.uint32, s1: np.uint32) -> int:
        total = np.zeros(32, np.uint32)
        for tile in range(first, stop):
            low = nb.uint32(tile * 32)
            for lane in range(32):
                x0, x1, x2, x3 = nb.uint32(low + nb.uint32(lane)), np.uint32(0), np.uint32(7), np.uint32(9)
                x0, x1, x2, x3 = round_(x0, x1, x2, x3, s0 + a0, s1 + b0)
                x0, x1, x2, x3 = round_(x0, x1, x2, x3, s0 + a1, s1 + b1)
                x0, x1, x2, x3 = round_(x0, x1, x2, x3, s0 + a2, s1 + b2)
                x0, x1, x2, x3 = round_(x0, x1, x2, x3, s0 + a3, s1 + b3)
                x0, x1, x2, x3 = round_(x0, x1, x2, x3, s0 + a4, s1 + b4)
                x0, x1, x2, x3 = round_(x0, x1, x2, x3, s0 + a5, s1 + b5)
                x0, x1, x2, x3 = round_(x0, x1, x2, x3, s0 + a6, s1 + b6)
                x0, x1, x2, x3 = round_(x0, x1, x2, x3, s0 + a7, s1 + b7)
                x0, x1, x2, x3 = round_(x0, x1, x2, x3, s0 + a8, s1 + b8)
                x0, x1, x2, x3 = round_(x0, x1, x2, x3, s0 + a9, s1 + b9)
                total[lane] ^= x0 ^ x1 ^ x2 ^ x3
        return int(total.sum())

    pool = ThreadPoolExecutor(threads)
    tiles = _RATE_ELEMENTS // 256
    parts = [(tiles * i // threads, tiles * (i + 1) // threads) for i in range(threads)]
    seed = np.uint32(12345)
    return lambda: [*pool.map(lambda part: words(*part, seed, seed), parts)]


def gpu_philox(device: torch.device) -> Callable[[], object]:
    """Return a function that launches as much of Philox on a GPU, with a number a program as its result."""
    from philox_rate import TILES, philox_words

    programs = _RATE_ELEMENTS // (256 * TILES)
    out = torch.empty(programs, dtype=torch.int32, device=device)
    return lambda: philox_words[(programs,)](out, 12345)


def same_bits(elements: int, threads: int) -> bool:
    """Return whether CPU and GPU write the same bits: perturbation in both types, update, digest."""
    shape = (max(1, elements // COLUMNS), COLUMNS)
    seeds = np.array([member_seed(1, 2, member) for member in range(3)], np.uint64)
    factors = np.array([0.3, -0.7, 1.1], np.float32)
    same = True
    for dtype, bits in ((torch.float32, torch.int32), (torch.bfloat16, torch.int16)):
        both = [held(torch.zeros(shape, dtype=dtype, device=kind), threads) for kind in ("cpu", "cuda")]
        for weights in both:
            weights.update(seeds, factors)
            weights.perturb(int(seeds[1]), -SIGMA)
        pairs = [[view.live for view in weights.views] + [theta for _, theta in weights.theta()] for weights in both]
        for mine, other in zip(*pairs, strict=True):
            assert mine is not None
            assert other is not None
            kind = bits if mine.dtype == dtype else torch.int32
            same &= torch.equal(mine.view(kind), other.cpu().view(kind))
        same &= both[0].digest() == both[1].digest()
    return same


if __name__ == "__main__":
    main()
