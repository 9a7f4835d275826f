"""Measure how far perturbing, updating and so on go above theta and the live weights. The last line is one JSON object.

Each size is a fresh process: theta in float32 and live weights of one matrix, all of it written to, so that its pages
are there. Before each kind of work the process's peak (VmHWM of /proc/self/status) is put back to what it has. What the
peak then is above is all that the work needed, whoever allocated it: numba, torch, Python, threads' stacks. The base
model, which the last three kinds read, is a file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the benchmark, or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", default="1000000,135000000,1000000000", help="default: %(default)s")
    parser.add_argument("--members", type=int, default=4, help="default: %(default)s; they change time, not memory")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the live weights")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(int(arguments.elements), arguments.members, arguments.threads, arguments.dtype)))
        return
    rows = []
    for elements in arguments.elements.split(","):
        command = [sys.executable, __file__, "--one", "--elements", elements, "--members", str(arguments.members)]
        command += ["--threads", str(arguments.threads), "--dtype", arguments.dtype]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"{elements} elements: the process ended with {done.returncode}; is there memory for them?")
        rows.append(json.loads(done.stdout))
        print(
            f"{rows[-1]['elements']:>14,} weights  {rows[-1]['held_mib']:10.1f} MiB held  "
            + "  ".join(f"{name} +{above:.1f} MiB" for name, above in rows[-1]["above_mib"].items())
        )
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), "dtype": arguments.dtype, "rows": rows}))


def measure(elements: int, members: int, threads: int, dtype: str) -> dict[str, Any]:
    """Return what a process holds, and how far its peak goes above that with each kind of work."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from esmpi.model.base_model import BaseModel
    from esmpi.noise import member_seed
    from esmpi.noise.format import FULL, Noise
    from esmpi.weights.host import Weights
    from esmpi.weights.views import View

    shape, name = (max(1, elements // 1000), 1000), "model.layers.0.mlp.up_proj.weight"
    view = View.whole(name, torch.ones(shape, dtype=getattr(torch, dtype)))
    weights = Weights([view], lambda view: torch.ones(shape), threads)
    seeds = np.array([member_seed(0, 0, member) for member in range(members)], np.uint64)
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: torch.ones(shape, dtype=torch.bfloat16)}, Path(folder) / "model.safetensors")
        Path(folder, "config.json").write_text("{}")
        base = BaseModel(Path(folder))

        def generation(noise: Noise) -> None:
            for seed in seeds.tolist():
                weights.perturb(seed, 1e-3, noise=noise)
            weights.update(seeds, np.full(members, 1e-4, np.float32), noise)
            weights.digest()

        def read() -> torch.Tensor:
            return base.read(name, (0, shape[0]), (0, shape[1]))

        works: dict[str, Callable[[], object]] = {
            "full": lambda: generation(FULL),
            "full, with factors": lambda: generation(Noise(0, {name: 0.5})),
            "rank 1": lambda: generation(Noise(1)),
            "deviations": lambda: base.standard_deviation(name),
            "anchor": lambda: weights.shrink(lambda view: read(), 0.99),
            "distance": lambda: weights.squared_distance(lambda view: read()),
        }
        held_mib, above = memory_mib("VmRSS"), {}
        for kind, work in works.items():
            Path("/proc/self/clear_refs").write_text("5")
            before = memory_mib("VmRSS")
            work()
            above[kind] = memory_mib("VmHWM") - before
    return {"elements": shape[0] * shape[1], "held_mib": held_mib, "above_mib": above}


def memory_mib(name: str) -> float:
    """Return a figure of this process's memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


if __name__ == "__main__":
    main()
