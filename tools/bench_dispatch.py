"""Measure es.dispatch: static against dynamic on recorded times of members. The last line is one JSON object.

    mpiexec -n 6 python tools/bench_dispatch.py [--plot FILE.png]

The whole program runs, on a small model, but for one thing: instead of generating, the engine sleeps for as long as
the record says and answers with what follows from the member's seed. So ranks may be more than cores. Static and
dynamic take turns, generation by generation, with the same times, and must end with the same theta.

The record is the new tokens of the members of a real run, tools/dispatch_tokens.json, which says by which command; or
those of a run of your own (--times RUN_DIRECTORY). From it members are drawn by --seed; each takes its tokens times
--seconds-per-token, as it is where one completion is made after the other. Beside what was measured stands what a
list scheduler without any overhead would take, for several orders, if all ranks were alike: so one sees what the
order from the last generation's times is worth.
"""

import argparse
import heapq
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.config.reader import load_config
from esmpi.es.population import idle_seconds, plan, share
from esmpi.es.random_streams import stream
from esmpi.mpi.comm import Comm
from esmpi.stop.signals import StopFlag

ROOT = Path(__file__).parents[1]
WAYS = ("static", "dynamic")


class Sleeping:
    """An engine whose members take the time that is said, and whose answers follow from the member's seed."""

    def __init__(self, engine: Any, seconds: dict[int, float]):
        self._engine, self._seconds, self._seed = engine, seconds, 0

        self._perturb, engine.weights.perturb = engine.weights.perturb, self.perturb

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def perturb(self, wave: Sequence[Any]) -> None:
        """Perturb, and remember whose turn it is."""
        [member] = wave
        self._seed = member.seed
        self._perturb(wave)

    def generate(self, requests: Sequence[Any], sampling: Any) -> list[Any]:
        """Sleep, then say what has the right form or not."""
        from esmpi.engines import Completion

        time.sleep(self._seconds[self._seed])
        well_formed = stream(self._seed % 2**32, "answers").random(len(requests)) < 0.5
        texts = ["1 + 1</think>\n<answer>1 + 1</answer>" if one else "1 + 1" for one in well_formed]
        return [Completion(text=text, num_tokens=1, truncated=False) for text in texts]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=Path, default=ROOT / "tools" / "dispatch_tokens.json", help="record or run")
    parser.add_argument("--seconds-per-token", type=float, default=5e-3, help="default: %(default)s")
    parser.add_argument("--members", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--generations", type=int, default=10, help="default: %(default)s, after a warm-up")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--slow", type=float, default=1.0, help="times as slow is the last rank (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="draw who was busy when into a PNG file, from the last generation")
    arguments = parser.parse_args()
    record = read_tokens(arguments.times)
    # the first generation is the warm-up, in which the times before are not known yet
    shape = (1 + arguments.generations, arguments.members)
    times = arguments.seconds_per_token * np.random.default_rng(arguments.seed).choice(record.ravel(), shape)
    comm = Comm()
    with ExitStack() as stack:
        sessions = {way: open_session_of(way, len(times), times.shape[1], comm, stack) for way in WAYS}
        speed = arguments.slow if comm.rank == comm.size - 1 else 1.0
        config = sessions["static"].config
        seconds = {
            int(seed): float(speed * times[generation, member])
            for generation in range(len(times))
            for member, seed in enumerate(plan(config.run.seed, generation, times.shape[1], False).seeds)
        }
        walls = measure(sessions, seconds, len(times), comm)
        if comm.is_root:
            runs = {way: session.run for way, session in sessions.items()}
            if arguments.plot is not None:
                plot(runs, times, comm.size, arguments.plot)
            report(runs, walls, times, record, arguments.slow)


def read_tokens(path: Path) -> np.ndarray:
    """Return the new tokens of members, (generations, N)."""
    if path.suffix == ".json":
        return np.array(json.loads(path.read_text())["tokens"])
    from esmpi.store.run_file import RunFile, run_file_path

    return np.array([row["tokens"] for row in RunFile.open(run_file_path(path)).members])


def open_session_of(way: str, generations: int, population_size: int, comm: Comm, stack: ExitStack) -> Any:
    """Collective. Return a session of the quickstart's model that shares members out in one way."""
    from esmpi.setup import open_session, start_logging

    start_logging("warning", comm)
    output = stack.enter_context(tempfile.TemporaryDirectory())
    output = comm.allgather_object(output)[0]
    overrides = (
        *(f"run.output_dir={output}", f"es.dispatch={way}", "run.export_dtype=none", "engine.num_threads=1"),
        *(f"es.generations={generations}", f"es.population_size={population_size}", "data.batch_size=8"),
        *("data.num_train=8", "data.num_eval=8"),
    )
    return open_session(load_config(ROOT / "configs" / "quickstart.yaml", overrides), comm, stack, StopFlag())


def measure(
    sessions: dict[str, Any], seconds: dict[int, float], generations: int, comm: Comm
) -> dict[str, list[float]]:
    """Collective. Run all generations in both ways by turns; return the seconds of each but the first."""
    from esmpi.stopwatch import Stopwatch
    from esmpi.train import run_generation

    walls: dict[str, list[float]] = {way: [] for way in WAYS}
    for session in sessions.values():
        session.engine = Sleeping(session.engine, seconds)
    for generation in range(generations):
        for way, session in sessions.items():
            comm.barrier()
            begin = time.perf_counter()
            run_generation(session, Stopwatch())
            comm.barrier()
            if generation:
                walls[way].append(time.perf_counter() - begin)
    return walls


def list_schedule(times: np.ndarray, order: Sequence[int] | np.ndarray, num_ranks: int) -> float:
    """Return when the last rank is done if whoever is free takes the next in the order."""
    free = [0.0] * num_ranks
    for member in order:
        heapq.heapreplace(free, free[0] + float(times[member]))
    return max(free)


def report(
    runs: dict[str, Any], walls: dict[str, list[float]], times: np.ndarray, record: np.ndarray, slow: float
) -> None:
    """Print what came out."""
    size, num_ranks = times.shape[1], int(runs["static"].attributes["provenance"][-1]["ranks"])
    result: dict[str, Any] = {"ranks": num_ranks, "members": size, "generations": len(times) - 1, "slow": slow}
    digests = {way: [int(row["theta_digest"]) for row in run.generations] for way, run in runs.items()}
    fitness = np.array([row["fitness"] for row in runs["static"].members])
    result["same_digest"] = digests["static"] == digests["dynamic"] and bool((fitness.std(axis=1) > 0).all())
    for way in WAYS:
        result[f"seconds_{way}"] = round(statistics.mean(walls[way]), 4)
        idle = [idle_seconds(row["rank"], row["seconds"], num_ranks).mean() for row in runs[way].members[1:]]
        result[f"idle_{way}"] = round(float(sum(idle)) / sum(walls[way]), 4)
    result["ratio"] = round(result["seconds_static"] / result["seconds_dynamic"], 4)
    by_generation = [one / other for one, other in zip(walls["static"], walls["dynamic"], strict=True)]
    result["ratio_by_generation"] = [round(one, 3) for one in by_generation]
    shares = [list(share(size, rank, num_ranks)) for rank in range(num_ranks)]
    pairs = list(itertools.pairwise(times))
    without_overhead = {
        "static": [max(float(now[part].sum()) for part in shares if part) for _, now in pairs],
        "dynamic, in order": [list_schedule(now, range(size), num_ranks) for _, now in pairs],
        "dynamic, by last": [list_schedule(now, np.argsort(-last, kind="stable"), num_ranks) for last, now in pairs],
        "dynamic, by true": [list_schedule(now, np.argsort(-now, kind="stable"), num_ranks) for _, now in pairs],
    }
    result["seconds_ideal"] = {name: round(statistics.mean(one), 4) for name, one in without_overhead.items()}
    # whether a member's time says something about the one with its number in the next generation
    result["correlation_in_record"] = round(
        float(np.mean([np.corrcoef(*pair)[0, 1] for pair in itertools.pairwise(record)])), 3
    )
    for name, value in result.items():
        print(f"{name:22s} {value}")
    print(json.dumps(result))


def plot(runs: dict[str, Any], times: np.ndarray, num_ranks: int, path: Path) -> None:
    """Draw what each rank did in the last generation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    order = {"static": np.arange(times.shape[1]), "dynamic": np.argsort(-runs["dynamic"].members[-2]["seconds"])}
    for axes, way in zip(figure.subplots(1, 2, sharex=True, sharey=True), WAYS, strict=True):
        row = runs[way].members[-1]
        begin = [0.0] * num_ranks
        for member in order[way]:
            rank, seconds = int(row["rank"][member]), float(row["seconds"][member])
            axes.barh(rank, seconds, left=begin[rank], edgecolor="white", linewidth=0.7, color="C0")
            begin[rank] += seconds
        axes.set(title=f"es.dispatch: {way}", xlabel="seconds", yticks=range(num_ranks))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("rank")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
