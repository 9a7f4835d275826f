"""Measure what ES costs beside inference. The last line is one JSON object.

Efficiency is the seconds that the untouched engine needs to complete a generation's prompts N times, over the
seconds of a whole generation: perturbing, generating, scoring, exchanging, updating, committing. Before each member
the untouched engine completes the same prompts, so that a machine that slows down favours neither; that time is taken
off the generation's. `efficiency_cpu` is the same of processor time, which other work on the machine changes less.
Takes a config and overrides as esmpi.run does, and runs under mpiexec as well; a rank measures itself.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from esmpi.config.reader import load_config
from esmpi.errors import UserError
from esmpi.mpi.comm import Comm
from esmpi.stop.signals import StopFlag

PARTS = ("perturb", "generate", "score", "exchange", "update")


class Alternating:
    """An engine that completes the prompts with theta itself before each perturbation, and notes the time of that."""

    def __init__(self, engine: Any, requests: Sequence[Any], sampling: Any):
        self._engine = engine
        self._requests, self._sampling = requests, sampling
        self._perturb = engine.weights.perturb
        self.inference = self.extra = Clock()
        self.num_tokens = 0

    def perturb(self, wave: Sequence[Any]) -> None:
        """Complete the prompts with theta, then perturb."""
        begin = Clock.now()
        self._engine.weights.restore()
        restored = Clock.now()
        completions = self._engine.generate(self._requests, self._sampling)
        end = Clock.now()
        self.inference += end - restored
        self.extra += end - begin
        self.num_tokens += sum(one.num_tokens for one in completions)
        self._perturb(wave)


class Clock:
    """Seconds on the wall and of the processors."""

    def __init__(self, wall: float = 0.0, cpu: float = 0.0):
        self.wall, self.cpu = wall, cpu

    @classmethod
    def now(cls) -> "Clock":
        """Return the time."""
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: "Clock") -> "Clock":
        return Clock(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Clock") -> "Clock":
        return Clock(self.wall - other.wall, self.cpu - other.cpu)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, such as configs/bench_smollm2.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--rounds", type=int, default=1, help="generations (default: %(default)s), after a warm-up")
    arguments = parser.parse_intermixed_args()

    with ExitStack() as stack:
        comm = Comm()
        output = comm.allgather_object(stack.enter_context(tempfile.TemporaryDirectory()))[0]
        more = [f"run.output_dir={output}", f"es.generations={arguments.rounds}", "run.export_dtype=none"]
        try:
            config = load_config(arguments.config, [*arguments.overrides, *more])
        except UserError as error:
            parser.error(str(error))

        from esmpi.batches import make_requests
        from esmpi.data.batch import batch
        from esmpi.engines import Sampling
        from esmpi.setup import open_session, start_logging
        from esmpi.stopwatch import Stopwatch
        from esmpi.train import run_generation
        from esmpi.weights.model_weights import Perturbation

        start_logging("warning", comm)
        session = open_session(config, comm, stack, StopFlag())
        engine: Any = session.engine
        sampling = Sampling(max_tokens=config.sampling.max_tokens)
        rounds = []
        for number in range(arguments.rounds):
            examples = batch(config.data, session.problems.train, config.run.seed, session.generation)
            requests = make_requests(session, examples)
            if number == 0:
                engine.weights.perturb([Perturbation(1, config.es.sigma)])
                engine.generate(requests, sampling)
            alternating = Alternating(engine, requests, sampling)
            engine.weights.perturb = alternating.perturb
            comm.barrier()
            begin = Clock.now()
            run_generation(session, Stopwatch())
            del engine.weights.perturb  # the instance's, in front of the class's own
            rounds.append((alternating, Clock.now() - begin - alternating.extra))
        if session.run is not None:
            report(session.run.generations, rounds, comm.size)


def report(rows: list[Any], rounds: list[tuple[Alternating, Clock]], num_ranks: int) -> None:
    """Print the medians of the rounds."""
    figures: dict[str, float] = {
        "seconds_inference": statistics.median(one.inference.wall for one, _ in rounds),
        "seconds_generation": statistics.median(whole.wall for _, whole in rounds),
        "efficiency": statistics.median(one.inference.wall / whole.wall for one, whole in rounds),
        "efficiency_cpu": statistics.median(one.inference.cpu / whole.cpu for one, whole in rounds),
    }
    for part in PARTS:
        figures[f"seconds_{part}"] = statistics.median(float(row[f"seconds_{part}"]) for row in rows)
    # what the untouched engine did between the members is not the generation's perturbing
    figures["seconds_perturb"] -= statistics.median(one.extra.wall for one, _ in rounds)
    for name, value in figures.items():
        print(f"{name:20s} {value:9.4f}")
    # if members say more or less than theta does, the two sides did not do the same work
    counts = {
        "ranks": num_ranks,
        "tokens_inference_rank0": [one.num_tokens for one, _ in rounds],
        "tokens_generation": [int(row["tokens"]) for row in rows],
    }
    print(json.dumps({name: round(value, 5) for name, value in figures.items()} | counts))


if __name__ == "__main__":
    main()
