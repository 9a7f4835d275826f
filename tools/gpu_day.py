"""Run the parts of tools/gpu_day_parts.py one after another, each in a process of its own, and keep what they find.

Each part has a limit of its own, within a budget for all. What a part found is a line of JSON in OUT/results.jsonl as
soon as it is done, with how long it took and what nvidia-smi saw meanwhile (power, clocks, memory). A part that fails
or hangs is a line with `error`, and the rest goes on. OUT/PART.log has what a part printed. Exit code 1 if any failed.
"""

import argparse
import csv
import ctypes
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parent
PARTS = {
    "machine": 20,
    "bits": 80,
    "run": 100,
    "placements": 60,
    "large_tensor": 60,
    "kernels": 90,
    "update": 40,
    "memory": 80,
    "efficiency": 90,
    "waves": 120,
}
"""Parts with the most seconds that each may take, in the order in which they run."""
VLLM_PARTS = {"machine": 20, "vllm_run": 250, "vllm_efficiency": 250}
MORE_VLLM_PARTS = {"machine": 20, "vllm_batch_invariant": 300, "vllm_quantized": 240}
ALL_PARTS = PARTS | VLLM_PARTS | MORE_VLLM_PARTS
GROUPS = {"all": PARTS, "vllm": VLLM_PARTS, "vllm_more": MORE_VLLM_PARTS}
SAMPLED = ("power.draw", "clocks.sm", "clocks.mem", "memory.used", "utilization.gpu")


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_day")), help="default: $OUT")
    parser.add_argument(
        "--parts", default="all", help="names with commas, all (default), or those that need vLLM: vllm, vllm_more"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a trial")
    parser.add_argument("--budget", type=float, default=570, help="seconds in all (default: %(default)s)")
    parser.add_argument("--limits", type=float, default=1.0, help="factor for each part's limit (default: %(default)s)")
    parser.add_argument("--fault", default="", help="PART=KIND, to see that it is reported: raise, hang or bits")
    arguments = parser.parse_args()
    limits = GROUPS.get(arguments.parts)
    if limits is None:
        unknown = [name for name in arguments.parts.split(",") if name not in ALL_PARTS]
        if unknown:
            parser.error(f"--parts: {', '.join(unknown)}: choose from {', '.join(ALL_PARTS)}")
        limits = {name: ALL_PARTS[name] for name in arguments.parts.split(",")}
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM), 0, 0, 0)  # tools/gpu_day.sh may be killed
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    failed = False
    with Sampler(arguments.out / "nvidia-smi.csv") as sampler:
        for name, limit in limits.items():
            left = arguments.budget - (time.monotonic() - started)
            found = run(name, min(limit * arguments.limits, left), arguments) if left > 1 else {"error": "no time left"}
            found = {"part": name} | found | sampler.since_last()
            line = json.dumps(found)
            print(line, flush=True)
            with open(arguments.out / "results.jsonl", "a") as file:
                file.write(f"{line}\n")
                file.flush()
                os.fsync(file.fileno())
            failed |= "error" in found
    sys.exit(1 if failed else 0)


def run(name: str, limit_s: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a part; return what it found, or what went wrong."""
    command = [sys.executable, str(TOOLS / "gpu_day_parts.py"), name, "--device", arguments.device]
    fault = dict([arguments.fault.split("=")]).get(name) if arguments.fault else None
    command += ["--fault", fault] if fault else []
    environment = dict(os.environ)
    if arguments.device == "cpu" and name not in VLLM_PARTS | MORE_VLLM_PARTS:
        environment["TRITON_INTERPRET"] = "1"
    started = time.monotonic()
    with open(arguments.out / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
        )
        try:
            printed, _ = process.communicate(timeout=limit_s)
        except BaseException as error:  # also if this script is ended: nothing may go on using the GPU
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return {"error": f"no end after {limit_s:.0f} s"}
            raise
    found: dict[str, Any] = {"seconds": round(time.monotonic() - started, 1)}
    if process.returncode != 0:
        words = (arguments.out / f"{name}.log").read_text().strip().splitlines()
        return found | {"error": (words or [f"exit code {process.returncode}"])[-1][:500]}
    return found | json.loads(printed.strip().splitlines()[-1])


class Sampler:
    """Samples of nvidia-smi, once a second, in a file; nothing where there is no nvidia-smi."""

    def __init__(self, path: Path):
        self._path, self._read = path, 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Sampler":
        if shutil.which("nvidia-smi"):
            query = f"--query-gpu={','.join(SAMPLED)}"
            with open(self._path, "w") as file:
                self._process = subprocess.Popen(
                    ["nvidia-smi", query, "--format=csv,noheader,nounits", "-l", "1"],
                    stdout=file,
                    stderr=subprocess.DEVNULL,
                )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()

    def since_last(self) -> dict[str, float]:
        """Return the mean of each sampled figure since the last call, and the most memory that was used."""
        if self._process is None:
            return {}
        with open(self._path) as file:
            rows = list(csv.reader(file))
        fresh, self._read = rows[self._read :], len(rows)
        columns: dict[str, list[float]] = {name: [] for name in SAMPLED}
        for row in fresh:
            for name, value in zip(SAMPLED, row, strict=False):
                try:
                    columns[name].append(float(value))
                except ValueError:  # "[N/A]", or a line that is half written
                    continue
        found = {f"smi.{name}": round(statistics.mean(values), 1) for name, values in columns.items() if values}
        return found | ({"smi.memory.most": max(columns["memory.used"])} if columns["memory.used"] else {})


if __name__ == "__main__":
    main()
