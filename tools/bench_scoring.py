"""Measure what it costs to have completions scored, beside the reward itself, in each of the forms of a reward.

    python tools/bench_scoring.py [--completions 2000] [--rounds 5]

The rewards return a constant at once. Each figure is the median over rounds, in milliseconds per completion, of one
process that scores; the forms take turns. The last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from esmpi.config.problems import ScoringConfig
from esmpi.scoring import RemoteScorer, Scored, Scorer
from esmpi.scoring.shared import Invitation
from esmpi.tasks import Sample, TaskConfig, Turns, make_task
from esmpi.tasks.env import EnvConfig
from esmpi.tasks.python import PythonTaskConfig

FILE = """
import esmpi

def one(completion, example):
    return 1.0

def lists(completions, prompts, **columns):
    return [1.0] * len(completions)

async def coroutine(completion, example):
    return 1.0

class Environment(esmpi.Environment):
    def reset(self, example, seed):
        return "Begin:"

    def step(self, completion):
        return 1.0
"""
GROUP = 8
TEXT = "So 17 + 4 = 21, and 21 is what was asked for. " * 10


def configs(file: Path) -> dict[str, TaskConfig]:
    """Return a task of each form."""
    return {
        "one": PythonTaskConfig(name=f"{file}:one"),
        "lists, batch": PythonTaskConfig(name=f"{file}:lists"),
        f"lists, group of {GROUP}": PythonTaskConfig(name=f"{file}:lists", reward_scope="group"),
        "coroutine": PythonTaskConfig(name=f"{file}:coroutine"),
        "environment, a turn": EnvConfig(name=f"env:{file}:Environment"),
    }


def open_scorer(config: TaskConfig, stack: ExitStack, is_remote: bool) -> Callable[[list[Sample]], Scored]:
    """Return what has completions scored by one process, of this rank or, over a socket, of another one."""
    task = make_task(config)
    make, settings = partial(make_task, config, task.source), ScoringConfig(num_processes=1)
    own = Scorer(make, settings, scope=task.scope, is_async=task.is_async, takes_turns=task.takes_turns)
    stack.callback(own.close)
    scorer: Scorer | RemoteScorer = own
    if is_remote:
        invitation = stack.enter_context(Invitation(own, 1))
        scorer = RemoteScorer(invitation.address, invitation.key)
        stack.callback(scorer.close)
    return lambda samples: scorer.submit(samples, GROUP).result()


def samples_of(config: TaskConfig, count: int, start: int) -> list[Sample]:
    """Return completions of a size as they are in mathematics; episodes are new ones."""
    turns = isinstance(config, EnvConfig)
    return [
        Sample(
            completion=TEXT,
            example={"prompt": "What is 17 + 4?", "answer": "21"},
            turns=Turns(seed=start + place, completions=(TEXT,), place=place) if turns else None,
        )
        for place in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder, "rewards.py")
        file.write_text(FILE, encoding="utf-8")
        known = configs(file)
        forms = {name: (config, open_scorer(config, stack, False)) for name, config in known.items()}
        forms["one, of another rank"] = known["one"], open_scorer(known["one"], stack, True)
        found: dict[str, list[float]] = {name: [] for name in forms}
        for round_ in range(-1, arguments.rounds):  # the first one warms up
            for name, (config, score) in forms.items():
                samples = samples_of(config, arguments.completions, round_ * arguments.completions)
                started = time.perf_counter()
                scored = score(samples)
                if scored.num_failed:
                    raise SystemExit(f"{name}: {scored.error}")
                if round_ >= 0:
                    found[name].append(1e3 * (time.perf_counter() - started) / arguments.completions)
    medians = {name: round(statistics.median(values), 4) for name, values in found.items()}
    for name, value in medians.items():
        print(f"{name:24} {value:.4f} ms")
    print(json.dumps({"completions": arguments.completions, "rounds": arguments.rounds, "ms_per_completion": medians}))


if __name__ == "__main__":
    main()
