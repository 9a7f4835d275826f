"""Time the noise kernels against the public code's loop, in one run. The last line is one JSON object.

The public loop draws `torch.randn` for a tensor and adds it in place: once to perturb, once to restore and once
for each member in the update. All figures are nanoseconds per element, the median of the repeats; what is compared
alternates, so that a change of the machine's speed meets all alike.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from esmpi.noise import member_seed
from esmpi.weights import View, Weights

SIGMA, ALPHA = 1e-3, 5e-4


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1 << 25, help="weights (default: %(default)s)")
    parser.add_argument("--members", type=int, default=30, help="members of the update (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the live weights")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    # matrices of a 1 B model's size, as the public loop meets them, not one vector
    shape = (max(1, arguments.elements // 2048), 2048)
    live = torch.zeros(shape, dtype=getattr(torch, arguments.dtype))
    weights = Weights([View.whole("weight", live)], lambda view: torch.zeros(shape), arguments.threads)
    other = torch.zeros(shape)
    seeds = np.array([member_seed(0, 0, member) for member in range(arguments.members)], np.uint64)
    factors = np.linspace(-1, 1, arguments.members).astype(np.float32)
    parameter = torch.zeros(shape, dtype=live.dtype)
    generator = torch.Generator()

    def torch_add(scale: float) -> None:
        generator.manual_seed(1)
        parameter.add_(torch.randn(shape, generator=generator, dtype=parameter.dtype), alpha=scale)

    timed: dict[str, Callable[[], object]] = {
        "perturb_ns": lambda: weights.perturb(int(seeds[0]), SIGMA),
        "update_ns_per_member": lambda: weights.update(seeds, factors),
        "digest_ns": weights.digest,
        "memcpy_ns": lambda: other.copy_(next(weights.theta())[1]),
        "torch_perturb_ns": lambda: torch_add(SIGMA),
        "torch_restore_ns": lambda: torch_add(-SIGMA),
        "torch_update_ns_per_member": lambda: torch_add(ALPHA / arguments.members),
    }
    figures = measure(timed, arguments.repeats, shape[0] * shape[1])
    figures["update_ns_per_member"] /= arguments.members
    ours = figures["perturb_ns"] + figures["update_ns_per_member"]
    public = sum(figures[f"torch_{name}"] for name in ("perturb_ns", "restore_ns", "update_ns_per_member"))
    figures["ratio_member"] = public / ours
    for name, value in figures.items():
        print(f"{name:28s} {value:8.3f}")
    settings = {key: getattr(arguments, key) for key in ("members", "threads", "dtype")} | {"elements": live.numel()}
    machine = {"machine": platform.machine(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    print(json.dumps(settings | machine | {name: round(value, 4) for name, value in figures.items()}))


def measure(timed: Mapping[str, Callable[[], object]], repeats: int, elements: int) -> dict[str, float]:
    """Return the median nanoseconds per element of each, after one round that does not count."""
    samples: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats + 1):
        for name, work in timed.items():
            started = time.perf_counter()
            work()
            samples[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) / elements * 1e9 for name, values in samples.items()}


if __name__ == "__main__":
    main()
