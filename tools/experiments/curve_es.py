"""Train with esmpi in this process; the last line, of rank 0, is a JSON object: the curve of held-out accuracy.

    [mpiexec -n RANKS] python tools/experiments/curve_es.py CONFIG [section.key=value ...]

Each point has the generation, the completions and tokens that training has made, its seconds by the clock and of the
processor (all threads of all ranks, without start and evaluations), and accuracy and mean reward.
"""

import json
import sys
import time
from typing import Any

import esmpi.run
import esmpi.train
from esmpi import open_run
from esmpi.config.reader import load_config
from esmpi.session import Session
from esmpi.stopwatch import Stopwatch


def main() -> None:
    """Train, and print the curve."""
    config = load_config(sys.argv[1], sys.argv[2:])
    spent = [(0.0, 0.0)]
    run_generation = esmpi.train.run_generation

    rank = 0

    def timed(session: Session, watch: Stopwatch) -> bool:
        nonlocal rank
        rank = session.comm.rank
        began = time.perf_counter(), time.process_time()
        stop = run_generation(session, watch)
        wall = time.perf_counter() - began[0]
        processor = sum(session.comm.allgather_object(time.process_time() - began[1]))
        spent.append((spent[-1][0] + wall, spent[-1][1] + processor))
        return stop

    esmpi.train.run_generation = timed
    code = esmpi.run.main(sys.argv[1:])
    if code != 0:
        raise SystemExit(code)
    if rank != 0:
        return
    run = open_run(config.directory)
    tokens = [0, *run.generations["tokens"].cumsum().tolist()]
    completions = config.es.population_size * config.data.batch_size * config.sampling.num_samples
    rows: list[dict[str, Any]] = run.evaluations.to_dict("records")
    print(json.dumps([point(row, spent, tokens, completions) for row in rows if row["suite"] == "held_out"]))


def point(row: dict[str, Any], spent: list[tuple[float, float]], tokens: list[int], completions: int) -> dict[str, Any]:
    """Return a point of the curve."""
    generation = int(row["generation"])
    return {
        "step": generation,
        "completions": generation * completions,
        "tokens": int(tokens[generation]),
        "seconds": round(spent[generation][0], 2),
        "processor_seconds": round(spent[generation][1], 2),
        "accuracy": round(float(row["accuracy"]), 4),
        "reward": round(float(row["reward_mean"]), 4),
    }


if __name__ == "__main__":
    main()
