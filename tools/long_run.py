"""Run the tiny model for very many generations on several ranks, and kill a process of it again and again.

An unbroken run of one process comes first. Then the same run on several ranks: whenever so many generations are done, a
process that a seed chooses (a rank, or the launcher) gets SIGKILL, and the same command resumes the run. Memory, open
files and processes are recorded all the time. In the end both runs must have the same theta. The last line is one JSON
object; `--plot` draws the record.

    python tools/long_run.py --generations 2000 --kill-every 100 --plot tools/pictures/long_run.png
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.errors import UserError
from esmpi.store.run_file import RunFile

CONFIG = {
    "model": {"path": "esmpi:tiny_countdown", "dtype": "float32"},
    "engine": {"num_threads": 1},
    "es": {"population_size": 4, "sigma": 3e-3, "alpha": 2e-4},
    "task": {"name": "countdown", "num_numbers": [3], "number_range": [1, 20], "target_range": [1, 99]},
    "data": {"num_train": 40, "num_eval": 2, "batch_size": 2},
    "sampling": {"max_tokens": 34, "temperature": 1.0},
    "eval": {"every": 500},
    "snapshot": {"every": 50, "keep": 2},
}
_LOOK_S = 0.5
_END_S = 60


def main() -> int:
    """Run both runs; return 0 if both have learned, with the same theta, and nothing of a killed one is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=2000)
    parser.add_argument("--kill-every", type=int, default=100, help="generations between two kills")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="which process is killed")
    parser.add_argument("--folder", type=Path, help="where both runs are kept; by default they are deleted")
    parser.add_argument("--plot", type=Path, help="draw the record into this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "long.yaml"
        config.write_text(json.dumps({**CONFIG, "run": {"output_dir": str(folder)}}))  # JSON is YAML
        words = [sys.executable, "-m", "esmpi.run", str(config), f"es.generations={arguments.generations}"]
        subprocess.run([*words, "run.name=unbroken"], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        launcher = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "mpiexec"
        broken = Broken(
            [launcher, "-n", str(arguments.ranks), *words, "run.name=broken"], folder / "broken", arguments.seed
        )
        broken.run(arguments.generations, arguments.kill_every)
        whole, other = (RunFile.open(folder / name / "run.h5") for name in ("unbroken", "broken"))
    found = broken.summary(other)
    digests = [[row["theta_digest"] for row in run.generations] for run in (whole, other)]
    found["same_theta"] = digests[0] == digests[1]
    found["updates"] = sum(int(before != after) for before, after in itertools.pairwise(digests[0]))
    if arguments.plot:
        draw(broken.record, other, arguments.plot)
    print(json.dumps(found))
    good = found["same_theta"] and found["left_over"] == 0 and found["updates"] >= arguments.generations / 10
    return 0 if good else 1


class Broken:
    """A run that is killed again and again.

    Parameters
    ----------
    command : sequence of str
        Starts or resumes the run.
    directory : Path
        Of the run.
    seed : int
        Chooses the processes that are killed.

    Attributes
    ----------
    record : list of dict
        What was seen: `start`, `generation`, `processes`, their `memory_mb` and the `files` that they have open.
    """

    def __init__(self, command: list[str], directory: Path, seed: int):
        self.command, self.directory = command, directory
        self.record: list[dict[str, float]] = []
        self.num_killed = self.num_left_over = 0
        self._rng = random.Random(seed)
        self._mark = f"ESMPI_LONG_RUN={uuid.uuid4()}"
        self._begun = time.monotonic()

    def run(self, generations: int, kill_every: int) -> None:
        """Run to the end, with a kill each time so many generations are done."""
        log = self.directory.with_suffix(".log")
        for until in (*range(kill_every, generations, kill_every), None):
            with log.open("ab") as file:
                marked = os.environ | dict([self._mark.split("=")])
                job = subprocess.Popen(self.command, stdout=file, stderr=file, start_new_session=True, env=marked)
            while job.poll() is None:
                time.sleep(_LOOK_S)
                done = self._look()
                if until is not None and done >= until:
                    self._kill(job)
                    break
            self._wait_for_end(job)
            if until is None and job.returncode != 0:
                sys.exit(f"the last start ended with exit code {job.returncode}:\n{log.read_text()[-2000:]}")

    def summary(self, run: RunFile) -> dict[str, Any]:
        """Return figures of the whole run: the first and the last quarter beside each other."""
        seconds = np.array([row["seconds_total"] for row in run.generations])
        figures: dict[str, Any] = {
            "generations": run.num_generations,
            "kills": self.num_killed,
            "starts": len(run.attributes["provenance"]),
            "left_over": self.num_left_over,
            "hours": round((time.monotonic() - self._begun) / 3600, 3),
            "seconds_per_generation": [float(f"{np.median(part):.4g}") for part in np.array_split(seconds, 4)[::3]],
        }
        for name in ("memory_mb", "files", "processes"):
            values = [sample[name] for sample in self.record if sample["generation"] >= 1]
            part = max(1, len(values) // 4)
            figures[name] = [float(np.median(values[:part])), float(np.median(values[-part:])), max(values)]
        return figures

    def _look(self) -> int:
        """Record what the run's processes use; return how many generations are committed."""
        done = 0
        with suppress(UserError):  # there is none yet
            done = RunFile.open(self.directory / "run.h5").num_generations
        pids = list(_processes_with(self._mark))
        sample: dict[str, float] = {"start": self.num_killed, "generation": done, "processes": len(pids)}
        sample |= {"memory_mb": 0, "files": 0, "seconds": time.monotonic() - self._begun}
        for pid in pids:
            with suppress(OSError):  # it has just ended
                sample["memory_mb"] += _memory_mb(pid)
                sample["files"] += len(os.listdir(f"/proc/{pid}/fd"))
        self.record.append(sample)
        return done

    def _kill(self, job: "subprocess.Popen[bytes]") -> None:
        victims = sorted(pid for pid in _processes_with(self._mark) if pid == job.pid or _is_rank(pid))
        os.kill(self._rng.choice(victims), signal.SIGKILL)
        self.num_killed += 1

    def _wait_for_end(self, job: "subprocess.Popen[bytes]") -> None:
        job.wait(_END_S)
        deadline = time.monotonic() + _END_S
        while (left := list(_processes_with(self._mark))) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.num_left_over += len(left)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes_with(mark: str) -> Iterator[int]:
    """Yield the processes that have inherited a mark in their environment, whatever session they are in."""
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdecimal() and mark.encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                yield int(entry)


def _is_rank(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:3] == [b"-m", b"esmpi.run"]
    return False


def _memory_mb(pid: int) -> float:
    """Return a process's share of memory: pages that several processes have count in parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1000
    return 0.0


def draw(record: list[dict[str, float]], run: RunFile, path: Path) -> None:
    """Draw memory, open files, processes and the time of a generation over generations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(4, sharex=True)
    warm = [sample for sample in record if sample["generation"] >= 1]
    x = [sample["generation"] for sample in warm]
    for axis, name, label in zip(
        axes, ("memory_mb", "files", "processes"), ("memory (MB)", "open files", "processes"), strict=False
    ):
        axis.plot(x, [sample[name] for sample in warm], ".", markersize=2)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    seconds = [row["seconds_total"] for row in run.generations]
    axes[3].plot(range(len(seconds)), seconds, ".", markersize=2)
    axes[3].set_ylabel("s per generation")
    axes[3].set_ylim(0, float(np.quantile(seconds, 0.99)) * 1.5)
    axes[3].set_xlabel("generation")
    axes[0].set_title(f"{run.num_generations:,} generations, {int(record[-1]['start'])} kills: all processes together")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
