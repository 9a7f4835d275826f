"""Measure what the durable store costs. The last line is one JSON object.

Commits: seconds a commit of a run of so many generations, for a small and a large population. Long: seconds and bytes
of a commit when a run has very many generations already (`--only-long` measures nothing else). Snapshots: bytes per
second beside what `dd conv=fsync` reaches in the same folder, turn by turn, and how long the loop is held. Replay:
seconds a generation and billion weights, at 30 members.
"""

import argparse
import json
import logging
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esmpi.es.member_columns import MEMBER_DTYPE
from esmpi.noise import member_seed
from esmpi.store.run_file import GENERATION_DTYPE, RunFile
from esmpi.store.snapshot_keeper import SnapshotKeeper, snapshot_path
from esmpi.store.snapshot_writer import check_seal
from esmpi.weights.host import Weights
from esmpi.weights.views import View

NUM_MEMBERS = 30
LONG = (10, 1_000, 10_000, 100_000)
"""Generations of a run whose commits are timed."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("."), help="where to write: the file system to measure")
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--populations", type=int, nargs="*", default=[NUM_MEMBERS, 10_000])
    parser.add_argument("--only-long", action="store_true")
    parser.add_argument("--gib", type=float, default=1.0, help="size of theta in the snapshots, GiB")
    parser.add_argument("--rounds", type=int, default=5, help="snapshots that count, after one that does not")
    parser.add_argument("--threads", type=int, default=1, help="for replay")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures |= long(Path(folder) / "long", NUM_MEMBERS)
        if not arguments.only_long:
            for size in arguments.populations:
                figures |= commits(Path(folder) / str(size), size, arguments.generations)
            figures |= snapshots(Path(folder) / "snapshots", arguments.gib, arguments.rounds)
            figures |= replay(arguments.threads)
    for name, value in figures.items():
        print(f"{name:45s} {value:14.6g}")
    print(json.dumps({name: float(f"{value:.5g}") for name, value in figures.items()}))


def new_run(folder: Path) -> RunFile:
    """Return a run file with a config of usual size."""
    config: dict[str, Any] = {"run": {"name": "bench"}, "model": {"path": "m"}, "es": {"generations": 1}}
    config |= {"task": {"name": "t"}, "rest": {f"key{i}": i for i in range(70)}}
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(290)]
    return RunFile.create(folder / "run.h5", config, 1, "d", names, {})


def commits(folder: Path, size: int, generations: int) -> dict[str, float]:
    """Time each commit of a run."""
    run, rng = new_run(folder), np.random.default_rng(0)
    seconds = []
    for generation in range(generations):
        row, members = np.zeros(1, GENERATION_DTYPE)[0], np.zeros(size, MEMBER_DTYPE)
        row["generation"] = generation
        members["seed"] = rng.integers(2**63, size=size)
        members["coefficient"] = rng.random(size)
        started = time.perf_counter()
        run.commit(row, members)
        seconds.append(time.perf_counter() - started)
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    quarter = max(1, generations // 4)
    return {
        f"commit_seconds_n{size}": statistics.median(seconds),
        f"commit_seconds_first_quarter_n{size}": statistics.median(seconds[:quarter]),
        f"commit_seconds_last_quarter_n{size}": statistics.median(seconds[-quarter:]),
        f"commit_seconds_worst_n{size}": max(seconds),
        f"log_bytes_n{size}": used,
    }


def long(folder: Path, size: int, rounds: int = 21) -> dict[str, float]:
    """Time commits of a run that has so many generations already, and count the bytes of its run file."""
    run = new_run(folder)
    row, members = np.zeros(1, GENERATION_DTYPE)[0], np.zeros(size, MEMBER_DTYPE)
    figures = {}
    for at in LONG:
        while run.num_generations < at:
            made = row.copy()
            made["generation"] = run.num_generations
            run.generations.append(made)
            run.members.append(members)
        run.write()
        seconds, written = [], []
        for _ in range(rounds):
            made = row.copy()
            made["generation"] = run.num_generations
            started = time.perf_counter()
            run.commit(made, members)
            seconds.append(time.perf_counter() - started)
            written.append(run.path.stat().st_size)
        figures[f"commit_seconds_at_{at}"] = statistics.median(seconds)
        figures[f"commit_bytes_at_{at}"] = statistics.median(written)
    return figures


def snapshots(folder: Path, gib: float, rounds: int) -> dict[str, float]:
    """Write snapshots and, in turn, as many bytes by dd."""
    run = new_run(folder)
    run.write()
    generator = torch.Generator().manual_seed(0)
    count = max(1, round(gib * 2**30 / 2**26))
    theta = {f"model.layers.{i}.mlp.weight": torch.randn(4096, 4096, generator=generator) for i in range(count)}
    size = sum(tensor.nbytes for tensor in theta.values())
    writer = SnapshotKeeper(run, keep=1)
    mine, others, held, checking = [], [], [], []
    for generation in range(rounds + 1):
        row = np.zeros(1, GENERATION_DTYPE)[0]
        row["generation"] = generation
        run.commit(row, np.zeros(NUM_MEMBERS, MEMBER_DTYPE))
        started = time.perf_counter()
        writer.save(generation + 1, theta.items(), last=True)
        held.append(time.perf_counter() - started)
        started = time.perf_counter()
        writer.wait()
        mine.append(size / (time.perf_counter() - started))
        started = time.perf_counter()
        check_seal(snapshot_path(run.path, generation + 1))
        checking.append(size / (time.perf_counter() - started))
        target = folder / "dd.bin"
        command = ["dd", "if=/dev/zero", f"of={target}", "bs=4M", f"count={size // 2**22}", "conv=fsync", "status=none"]
        started = time.perf_counter()
        subprocess.run(command, check=True)
        others.append(size / (time.perf_counter() - started))
        target.unlink()
    writer.close()
    return {
        "snapshot_bytes": size,
        "snapshot_bytes_per_second": statistics.median(mine[1:]),
        "dd_bytes_per_second": statistics.median(others[1:]),
        "snapshot_over_dd": statistics.median(mine[1:]) / statistics.median(others[1:]),
        "snapshot_check_bytes_per_second": statistics.median(checking[1:]),
        "loop_stall_seconds": statistics.median(held[1:]),
        "loop_stall_seconds_per_gib": statistics.median(held[1:]) / (size / 2**30),
    }


def replay(threads: int, rows: int = 4096, cols: int = 8192) -> dict[str, float]:
    """Time the update of one matrix."""
    view = View("model.layers.0.mlp.weight", (rows, cols), (0, rows), (0, cols), live=None)
    weights = Weights([view], lambda view: torch.zeros(rows, cols), threads)
    coefficients = np.full(NUM_MEMBERS, 1e-5, np.float32)
    seconds = []
    for generation in range(4):
        seeds = np.array([member_seed(0, generation, member) for member in range(NUM_MEMBERS)], np.uint64)
        started = time.perf_counter()
        weights.update(seeds, coefficients)
        seconds.append(time.perf_counter() - started)
    scale = 1e9 / weights.num_weights
    return {
        "replay_threads": threads,
        "replay_seconds_per_generation_per_billion_weights_n30": min(seconds[1:]) * scale,
    }


if __name__ == "__main__":
    main()
