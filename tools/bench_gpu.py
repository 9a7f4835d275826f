"""Do all that a GPU is wanted for, in one call of at most ten minutes. The last line is one JSON object.

    python tools/bench_gpu.py                       # kernels, bits, efficiency with hf
    python tools/bench_gpu.py --config MY.yaml      # efficiency with another model

1. `bench_kernels.py --device cuda` for 1.5 billion float32 -> bfloat16 weights, which also compares the bits of CPU and
   GPU on 10^8 elements, and for 7 billion. Wanted: perturb_of_copy_bandwidth at least 0.7, ratio_update at least 5.
2. `bench_generation.py CONFIG engine.kind=hf`, and with vllm where it can be imported. Wanted: efficiency at least 0.95
   and 0.97. The default config has the tiny model that ships with esmpi, the smallest inference that ES has to hide
   behind; a real model says more (`--config configs/bench_smollm2.yaml` after get_smollm2.py).

Each part has a limit of its own (`--limits`, seconds); one that fails or takes longer is told, and the rest goes on.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parent


def main() -> None:
    """Run the parts one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml", help="default: %(default)s")
    parser.add_argument("--elements", default="1500000000,7000000000", help="default: %(default)s")
    parser.add_argument("--check", default="100000000", help="elements whose bits are compared (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this script itself")
    parser.add_argument("--limits", default="150,200,110,120", help="seconds of the parts (default: %(default)s)")
    arguments = parser.parse_args()
    kernels = [str(TOOLS / "bench_kernels.py"), "--device", arguments.device, "--dtype", "bfloat16", "--repeats", "5"]
    parts: dict[str, list[str]] = {}
    for number, elements in enumerate(arguments.elements.split(",")):
        check = arguments.check if number == 0 else "1000000"
        parts[f"kernels_{elements}"] = [*kernels, "--elements", elements, "--check", check]
    generation = [str(TOOLS / "bench_generation.py"), arguments.config, "model.dtype=bfloat16"]
    parts["efficiency_hf"] = [*generation, "engine.kind=hf"]
    if importlib.util.find_spec("vllm") is not None:
        parts["efficiency_vllm"] = [*generation, "engine.kind=vllm"]
    limits = [float(limit) for limit in arguments.limits.split(",")]
    limits += limits[-1:] * (len(parts) - len(limits))
    found = {name: run(name, command, limit) for (name, command), limit in zip(parts.items(), limits, strict=False)}
    print(json.dumps(found))
    if any("error" in figures for figures in found.values()):
        sys.exit(1)


def run(name: str, command: list[str], limit_s: float) -> dict[str, Any]:
    """Run a part, show what it prints, and return its JSON."""
    print(f"\n{name}: python {' '.join(command)}", flush=True)
    started = time.perf_counter()
    try:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        print(f"no end after {limit_s:g} s", flush=True)
        return {"error": f"no end after {limit_s:g} s"}
    print(f"{done.stdout}({time.perf_counter() - started:.0f} s)", flush=True)
    if done.returncode != 0:
        print(done.stderr, flush=True)
        return {"error": (done.stderr.strip().splitlines() or ["?"])[-1]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
