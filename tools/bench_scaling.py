"""Measure what a generation costs outside the engine, and how that grows. The last line is one JSON object.

The engine and the reward answer at once; all else is the program's own: seeds, messages, the exchange over MPI, checks,
shaping, the commit of the run file. Each number of ranks is one launch of mpiexec, and goes through all populations.
More ranks than cores share them, which is intended: what all ranks do alike then costs so many times as much.

Seconds are rank 0's medians over the generations, after one that does not count; processor time is that of all ranks,
shared out over the cores: what other work on the machine changes less. Bytes are what a rank gives and gets
in a generation. Memory is the largest rank's peak, and how far that is above what it had before.

The model of the curve has five constants, fitted by non-negative least squares of the relative errors to all that was
measured, with `crowd` = max(1, ranks / cores):

    seconds = crowd * (start + hop * log2(ranks) + own * N / ranks + all * N) + commit(N)

own: a member on the rank that evaluates it; all: a member on every rank (seeds, exchange, check, shaping); start and
hop: what a generation and a doubling of the ranks cost at any N. commit(N) = c0 + c1 * N is fitted before, to the
commits alone, which only rank 0 makes. A cluster has a network in place of shared memory, which this machine cannot
measure: the forecast adds `--latency-us` for each doubling of the nodes and the messages' bytes over `--bandwidth-gb`.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

RANKS, POPULATIONS = (1, 2, 4, 8, 16, 32, 64), (64, 1000, 10_000, 100_000)
CONSTANTS = ("start", "hop", "own", "all")


def main() -> None:
    """Run the benchmark, or be one of its ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=numbers, default=RANKS, help="default: 1,2,4,8,16,32,64")
    parser.add_argument("--population", type=numbers, default=POPULATIONS, help="default: 64,1000,10000,100000")
    parser.add_argument("--generations", type=int, default=7, help="that count (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where rank 0 commits; default: here")
    parser.add_argument("--plot", type=Path, help="PNG file to draw: measured, fitted, and the forecast")
    parser.add_argument("--nodes", type=int, default=1000, help="of the forecast (default: %(default)s)")
    parser.add_argument("--ranks-per-node", type=int, default=8, help="of the forecast (default: %(default)s)")
    parser.add_argument("--latency-us", type=float, default=5.0, help="of its network (default: %(default)s)")
    parser.add_argument("--bandwidth-gb", type=float, default=10.0, help="GB/s of a node (default: %(default)s)")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        from esmpi.mpi.world import on_all_ranks

        sys.exit(on_all_ranks(lambda comm: measure(comm, arguments.one, arguments.population, arguments.generations)))
    rows = [row for ranks in arguments.ranks for row in launch(ranks, arguments)]
    cores = len(os.sched_getaffinity(0))
    if len(rows) <= len(CONSTANTS):  # too few for a model
        print(json.dumps({"cores": cores, "rows": rows}))
        return
    constants = fit(rows, cores)
    forecast = forecasts(constants, arguments)
    report(constants, forecast, cores)
    if arguments.plot is not None:
        draw(arguments.plot, rows, constants, forecast, cores)
    machine = {"cores": cores, "date": time.strftime("%Y-%m-%d"), "generations": arguments.generations}
    print(json.dumps(machine | {"rows": rows, "constants": constants, "forecast": forecast}))


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as 1,2,4."""
    found = tuple(int(word) for word in text.split(","))
    if min(found) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return found


def launch(ranks: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure all populations on so many ranks."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        command = [sys.executable, __file__, "--one", folder, "--generations", str(arguments.generations)]
        # a run of ascending populations: the peak of memory is put back before each, what was allocated is not
        command += ["--population", ",".join(map(str, sorted(arguments.population)))]
        if ranks > 1:
            if shutil.which("mpiexec") is None:
                sys.exit("no mpiexec: pip install 'esmpi[mpich]'")
            command = ["mpiexec", "-n", str(ranks), *command]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            sys.exit(done.stderr)
        for line in done.stdout.splitlines():
            row = json.loads(line)
            print(
                f"{row['ranks']:4d} ranks  N {row['population']:7d}  {1e3 * row['seconds']:9.2f} ms  "
                f"of processors {1e3 * row['seconds_processor']:8.2f} ms  "
                f"commit {1e3 * row['seconds_commit']:8.2f} ms  {row['bytes_sent']:9d} B sent  "
                f"{row['bytes_received']:11d} B received  peak {row['peak_mib']:6.1f} MiB  "
                f"grown by {row['grown_mib']:5.1f} MiB",
                flush=True,
            )
            yield row


def measure(comm: Any, folder: Path, populations: Sequence[int], generations: int) -> int:
    """Collective. Be a rank: run generations of each population; rank 0 prints a line of JSON for each."""
    from esmpi.stopwatch import Stopwatch
    from esmpi.train import run_generation

    exchanged = np.zeros(2, np.int64)
    gather = comm.allgather_array

    def counting(array: np.ndarray) -> np.ndarray:
        gathered: np.ndarray = gather(array)
        exchanged[:] += array.nbytes, gathered.nbytes
        return gathered

    comm.allgather_array = counting
    for population in populations:
        session, commits = open_idle_session(comm, folder, population, generations + 1)
        before_mib = memory_mib("VmRSS")
        forget_peak()
        run_generation(session, Stopwatch())
        commits.clear()
        comm.barrier()
        exchanged[:] = 0
        seconds, worked = [], time.process_time()
        for _ in range(generations):
            started = time.perf_counter()
            run_generation(session, Stopwatch())
            seconds.append(time.perf_counter() - started)
        worked = (time.process_time() - worked) / generations
        sent, received = (exchanged // generations).tolist()
        peak_mib = memory_mib("VmHWM")
        told = comm.allgather_array(np.array([peak_mib, peak_mib - before_mib, worked]))
        if comm.is_root:
            row = {"ranks": comm.size, "population": population}
            row |= {"seconds": statistics.median(seconds), "seconds_commit": statistics.median(commits)}
            row |= {"bytes_sent": sent, "bytes_received": received}
            cores = min(comm.size, len(os.sched_getaffinity(0)))
            row |= {"seconds_processor": told[:, 2].sum() / cores}
            row |= {"peak_mib": round(told[:, 0].max(), 1), "grown_mib": round(told[:, 1].max(), 1)}
            print(json.dumps(row), flush=True)
    return 0


def open_idle_session(comm: Any, folder: Path, population: int, generations: int) -> tuple[Any, list[float]]:
    """Return a session whose engine and rewards answer at once, and a list that takes the seconds of its commits."""
    import torch

    from esmpi.config.reader import load_config
    from esmpi.data.problems import load_problems
    from esmpi.engines import Completion, Engine, Request, Sampling
    from esmpi.es.dispatch import DISPATCHES
    from esmpi.model.base_model import BaseModel
    from esmpi.model.find import fetch_model
    from esmpi.noise.format import FULL
    from esmpi.record.recorder import Recorder
    from esmpi.scoring import Scored, Scorer
    from esmpi.session import Session
    from esmpi.stop.signals import StopFlag
    from esmpi.store.run_file import RunFile
    from esmpi.tasks import Progress, Sample, Score, make_task
    from esmpi.weights.model_weights import Perturbation

    class IdleWeights:
        """Does nothing to no weights, and remembers whose turn it is."""

        num_weights, names, aliases = 1, ("w",), {}  # type: ignore[var-annotated]

        def __init__(self) -> None:
            self.seed, self._digest = 0, 1

        def perturb(self, wave: Sequence[Perturbation]) -> None:
            self.seed = wave[0].seed

        def restore(self) -> None:
            self.seed = 0

        def update(self, seeds: np.ndarray, coefficients: np.ndarray, rank: int = 0) -> None:
            self._digest += 1

        def load(self, snapshot: Path | None) -> None:
            self._digest = 1

        def digest(self) -> int:
            return self._digest

        def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
            return iter(())

    class IdleEngine(Engine):
        """Makes nothing and says so at once; a perturbation is but a number that the completion tells."""

        max_length = None

        def __init__(self) -> None:
            self.weights: Any = IdleWeights()
            self._answers = [[Completion(text=str(i), num_tokens=1, truncated=False)] for i in range(1024)]

        def render(self, prompt: str | list[dict[str, str]], /, **variables: Any) -> str:
            return str(prompt)

        def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
            return [1] * len(prompts)

        def logprobs(self, prompts: Sequence[str], completions: Sequence[Completion]) -> list[list[float]]:
            return [[0.0]] * len(prompts)

        def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
            return self._answers[self.weights.seed & 1023]

    class IdleScorer(Scorer):
        """Scores in place: what processes cost is a completion's price, not a generation's."""

        def __init__(self) -> None:  # no processes
            self._known: list[Future[Scored]] = [Future() for _ in range(1024)]
            for i, future in enumerate(self._known):
                future.set_result(Scored(scores=[Score(reward=float(i), correct=False)]))

        def close(self) -> None:
            pass

        def submit(
            self, samples: Sequence[Sample], group_size: int = 1, progress: Progress | None = None
        ) -> "Future[Scored]":
            return self._known[int(samples[0].completion)]

    seconds: list[float] = []

    class TimedRunFile(RunFile):
        """Notes how long a commit holds the loop; it is written beside the next generation."""

        def begin_commit(
            self, row: np.void, members: np.ndarray, figures: Mapping[str, float] | None = None
        ) -> Callable[[], None]:
            started = time.perf_counter()
            write = super().begin_commit(row, members, figures)
            seconds.append(time.perf_counter() - started)
            return write

    settings = ["data.num_train=1", "data.num_eval=1", "data.batch_size=1", "run.seed=0", "log.level=warning"]
    settings += [f"es.population_size={population}", f"es.generations={generations}", f"run.output_dir={folder}"]
    source = folder / f"bench-{comm.rank}.yaml"
    source.write_text(
        f"run: {{name: n{population}}}\nmodel: {{path: 'esmpi:tiny_countdown'}}\ntask: {{name: countdown}}\n"
    )
    config = load_config(str(source), settings)
    task = make_task(config.task)
    engine = IdleEngine()
    run = None
    if comm.is_root:
        run = TimedRunFile.create(config.directory / "run.h5", config.to_dict(), engine.weights.digest(), "", ["w"], {})
    session = Session(
        config=config,
        comm=comm,
        base=BaseModel(fetch_model(config.model.path)),
        engine=engine,
        task=task,
        problems=load_problems(config.data, task, config.run.seed, config.eval.sources),
        scorer=IdleScorer(),
        noise=FULL,
        recorder=Recorder(run, generations),
        dispatch=DISPATCHES[config.es.dispatch](comm),
        stop=StopFlag(),
        run=run,
        snapshots=None,
    )
    session.digest = session.agreed_digest()
    return session, seconds


def memory_mib(name: str) -> float:
    """Return a figure of this process's memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def forget_peak() -> None:
    """Let the peak of this process's memory begin anew from what it has now."""
    Path("/proc/self/clear_refs").write_text("5")


def fit(rows: Sequence[dict[str, Any]], cores: int) -> dict[str, float]:
    """Return the model's constants in seconds, and its median relative error."""
    commits = np.array([row["seconds_commit"] for row in rows])
    sizes = np.array([row["population"] for row in rows], float)
    c0, c1 = non_negative(np.stack([np.ones_like(sizes), sizes], 1) / commits[:, None], np.ones_like(commits))
    seconds = np.array([row["seconds"] for row in rows])
    terms = np.array([terms_of(row["ranks"], row["population"], cores) for row in rows])
    rest = np.maximum(seconds - (c0 + c1 * sizes), 0)
    found = non_negative(terms / seconds[:, None], rest / seconds)
    constants = dict(zip(CONSTANTS, map(float, found), strict=True)) | {"c0": float(c0), "c1": float(c1)}
    predicted = [model(constants, row["ranks"], row["population"], cores) for row in rows]
    return constants | {"median_error": float(np.median(np.abs(np.array(predicted) / seconds - 1)))}


def non_negative(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the x >= 0 with the least |matrix x - wanted|: of all choices of zeros the best; there are few columns."""
    columns = matrix.shape[1]
    best, error = np.zeros(columns), float(wanted @ wanted)
    for chosen in range(1, 1 << columns):
        used = [i for i in range(columns) if chosen >> i & 1]
        x = np.linalg.lstsq(matrix[:, used], wanted, rcond=None)[0]
        left = matrix[:, used] @ x - wanted
        if (x >= 0).all() and left @ left < error:
            best, error = np.zeros(columns), float(left @ left)
            best[used] = x
    return best


def terms_of(ranks: int, population: int, cores: int) -> list[float]:
    """Return what multiplies each of `CONSTANTS`."""
    crowd = max(1.0, ranks / cores)
    return [crowd, crowd * math.log2(ranks), crowd * population / ranks, crowd * population]


def model(constants: dict[str, float], ranks: int, population: int, cores: int) -> float:
    """Return the seconds that the model gives."""
    terms = zip(CONSTANTS, terms_of(ranks, population, cores), strict=True)
    return sum(constants[name] * term for name, term in terms) + constants["c0"] + constants["c1"] * population


def forecasts(constants: dict[str, float], arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Return the model's curve up to all nodes of a cluster, a core or more for each rank, with a network."""
    from esmpi.es.population import message_dtype

    rows = []
    nodes = sorted({*(2**i for i in range(arguments.nodes.bit_length())), arguments.nodes})
    for population in arguments.population:
        for count in nodes:
            ranks = count * arguments.ranks_per_node
            here = model(constants, ranks, population, cores=ranks)
            length = max(1, -(-population // ranks))  # a rank with fewer members pads its message
            network = 1e-6 * arguments.latency_us * math.ceil(math.log2(count))
            network += ranks * message_dtype(length).itemsize / (1e9 * arguments.bandwidth_gb)
            rows.append({"nodes": count, "ranks": ranks, "population": population, "seconds": here + network})
    return rows


def report(constants: dict[str, float], forecast: list[dict[str, float]], cores: int) -> None:
    """Print the fit and the forecast's end."""
    print(f"model, median error {100 * constants['median_error']:.0f} %, on {cores} cores:")
    print(f"  start {1e3 * constants['start']:.3f} ms, a doubling of the ranks {1e3 * constants['hop']:.3f} ms")
    print(f"  a member on its own rank {1e6 * constants['own']:.2f} us, on every rank {1e6 * constants['all']:.3f} us")
    print(f"  commit {1e3 * constants['c0']:.1f} ms + {1e6 * constants['c1']:.2f} us a member")
    last = max(row["nodes"] for row in forecast)
    for row in forecast:
        if row["nodes"] == last:
            print(f"forecast: {last} nodes, {row['ranks']} ranks, N {row['population']}: {1e3 * row['seconds']:.1f} ms")


def draw(
    path: Path, rows: list[dict[str, Any]], constants: dict[str, float], forecast: list[dict[str, float]], cores: int
) -> None:
    """Draw measured points with the fitted curves on the left, the forecast on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, population in enumerate(sorted({row["population"] for row in rows})):
        color = f"C{number}"
        mine = sorted((row for row in rows if row["population"] == population), key=lambda row: int(row["ranks"]))
        ranks = [row["ranks"] for row in mine]
        left.plot(ranks, [1e3 * row["seconds"] for row in mine], "o", color=color, label=f"N {population:,}")
        left.plot(ranks, [1e3 * model(constants, r, population, cores) for r in ranks], color=color, linewidth=1)
        curve = [row for row in forecast if row["population"] == population]
        right.plot([row["nodes"] for row in curve], [1e3 * row["seconds"] for row in curve], color=color)
    left.set(title=f"measured and fitted, {cores} cores", xlabel="ranks", ylabel="ms a generation, outside the engine")
    right.set(title="forecast, a core for each rank", xlabel="nodes")
    # there the curves leave room for it
    right.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8, loc="upper right", ncols=2)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
