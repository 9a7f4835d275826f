"""Measure what ES costs beside inference. The last line is one JSON object.

Efficiency is the seconds that the untouched engine needs to complete a generation's prompts N times, over the
seconds of a whole generation: perturbing, generating, scoring, exchanging, updating, committing. The two
alternate in one run. Takes a config and overrides as esmpi.run does, and runs under mpiexec as well.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack

import numpy as np

from esmpi.comm import Comm
from esmpi.config import load_config
from esmpi.population import shard


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, such as configs/bench_smollm2.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--rounds", type=int, default=2, help="pairs that count, after one that does not")
    arguments = parser.parse_args()

    with ExitStack() as stack:
        output = stack.enter_context(tempfile.TemporaryDirectory())
        more = [f"run.output_dir={output}", f"es.generations={arguments.rounds + 1}", "run.export_dtype=none"]
        config = load_config(arguments.config, [*arguments.overrides, *more])
        comm = Comm()

        from esmpi.data import batch
        from esmpi.engines import Sampling
        from esmpi.session import open_session, start_logging
        from esmpi.train import run_generation

        start_logging("warning", comm)
        session = open_session(config, comm, stack)
        num_members = len(shard(config.es.population_size, comm.rank, comm.size))
        inference, generation, tokens = [], [], []
        for _ in range(arguments.rounds + 1):
            examples = batch(config.data, session.problems.train, config.run.seed, session.generation)
            prompts = [session.task.prompt(example) for example in examples]
            session.engine.restore()
            comm.allgather_array(np.zeros(1))
            started = time.perf_counter()
            plain = [
                session.engine.generate(prompts, Sampling(max_tokens=config.sampling.max_tokens))
                for _ in range(num_members)
            ]
            comm.allgather_array(np.zeros(1))
            inference.append(time.perf_counter() - started)
            started = time.perf_counter()
            run_generation(session)
            generation.append(time.perf_counter() - started)
            tokens.append(sum(one.num_tokens for completions in plain for one in completions))
        if session.run is not None:
            report(session.run.generations, inference, generation, tokens, comm.size)


def report(
    rows: list[np.void], inference: list[float], generation: list[float], tokens: list[int], num_ranks: int
) -> None:
    """Print the medians of the rounds that count."""
    ratios = [one / other for one, other in zip(inference[1:], generation[1:], strict=True)]
    figures: dict[str, float] = {
        "seconds_inference": statistics.median(inference[1:]),
        "seconds_generation": statistics.median(generation[1:]),
        "efficiency": statistics.median(ratios),
    }
    for part in ("perturb", "generate", "score", "exchange", "update"):
        figures[f"seconds_{part}"] = statistics.median(float(row[f"seconds_{part}"]) for row in rows[1:])
    for name, value in figures.items():
        print(f"{name:20s} {value:9.4f}")
    # if members say more or less than theta does, the two sides did not do the same work
    counts = {
        "ranks": num_ranks,
        "tokens_inference_rank0": tokens[1:],
        "tokens_generation": [int(r["tokens"]) for r in rows[1:]],
    }
    print(json.dumps({name: round(value, 5) for name, value in figures.items()} | counts))


if __name__ == "__main__":
    main()
