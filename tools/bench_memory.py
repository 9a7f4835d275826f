"""Measure how far perturbing and updating go above theta and the live weights. The last line is one JSON object.

Each size is a fresh process: theta in float32 and live weights, all of them written to, so that their pages are there.
Then the process's peak (VmHWM of /proc/self/status) is put back to what it has, and one generation of the given members
is perturbed and updated, with a digest. What the peak then is above is all that the work needed, whoever allocated it:
numba, torch, Python, threads' stacks.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path


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
            f"+{rows[-1]['above_mib']:.1f} MiB"
        )
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), "dtype": arguments.dtype, "rows": rows}))


def measure(elements: int, members: int, threads: int, dtype: str) -> dict[str, float]:
    """Return what a process holds, and how far its peak goes above that."""
    import numpy as np
    import torch

    from esmpi.noise import member_seed
    from esmpi.weights.host import Weights
    from esmpi.weights.views import View

    shape = (max(1, elements // 1000), 1000)
    view = View.whole("model.layers.0.mlp.up_proj.weight", torch.ones(shape, dtype=getattr(torch, dtype)))
    weights = Weights([view], lambda view: torch.ones(shape), threads)
    seeds = np.array([member_seed(0, 0, member) for member in range(members)], np.uint64)
    held_mib = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for seed in seeds.tolist():
        weights.perturb(seed, 1e-3)
    weights.update(seeds, np.full(members, 1e-4, np.float32))
    weights.digest()
    return {"elements": shape[0] * shape[1], "held_mib": held_mib, "above_mib": memory_mib("VmHWM") - held_mib}


def memory_mib(name: str) -> float:
    """Return a figure of this process's memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


if __name__ == "__main__":
    main()
