"""Run files with everything that a report shows, written by the program's own store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.config.reader import parse_config
from esmpi.es.member_columns import MEMBER_DTYPE
from esmpi.record.recorder import write_lines, write_samples
from esmpi.store.run_file import GENERATION_DTYPE, PROFILE_DTYPE, RunFile, member_samples_path

PHASES = {"seconds_generate": 2.0, "seconds_perturb": 0.1, "seconds_update": 0.2, "seconds_exchange": 0.3}


def make_run(
    folder: Path,
    *overrides: str,
    generations: int = 12,
    members: int = 8,
    seed: int = 0,
    texts: Sequence[str] = (),
    num_problems: int = 20,
    every: int = 4,
) -> RunFile:
    """Write a run that learns: failures, events, two ranks, varying alpha, KL, a second suite, and samples.

    Parameters
    ----------
    folder : Path
        The run directory.
    *overrides
        Changes of the config.
    generations, members : int
    seed : int
        Of the figures, and of the run.
    texts : sequence of str
        What the model and strangers wrote: they stand in the problems, prompts, completions and the guard's reason.
    num_problems : int
    every : int
        Generations between evaluations.
    """
    rng = np.random.default_rng(seed)
    words = [
        *("run.name=made", "model.path=esmpi:tiny_countdown", f"es.generations={generations}", f"run.seed={seed}"),
        *("task.name=countdown", "es.alpha_schedule=cosine", f"es.population_size={members}", "data.batch_size=5"),
    ]
    run = RunFile.create(folder / "run.h5", parse_config({}, [*words, *overrides]).to_dict(), 1, "d", ["w"], {})
    run.attributes["provenance"] = [
        {
            **{"unix_time": 1.0, "host": "node1", "ranks": 2, "command": ["python", *texts], "python": "3.12"},
            **{"packages": {"esmpi": "1"}, "slurm": {}, "source_sha256": "ab" * 32},
        }
    ]
    run.attributes["events"] = [
        {"generation": 8, "action": "shrink", "reason": "; ".join(["accuracy fell", *texts]), "to": None}
    ]
    for generation in range(generations):
        run.generations.append(row_of(generation, rng, generations))
        run.members.append(members_of(members, rng, generation / generations))
        share = generation / generations
        run.figures.append({"generation": generation, "format_mean": 0.5 + share / 2, "format_std": 0.1})
        if generation % max(1, generations // 100) == 0:  # of a long run some
            write_lines(member_samples_path(run.path, generation), member_samples(generation, rng, texts))
    fill(run, rng, range(0, generations + 1, every), texts, num_problems)
    spans = [(1, rank, phase, t, t + 0.5) for rank in (0, 1) for t, phase in enumerate((b"generate", b"update"))]
    run.profile = np.array(spans, PROFILE_DTYPE)
    run.write()
    return run


def row_of(generation: int, rng: np.random.Generator, generations: int) -> np.void:
    """Return a generation whose fitness rises."""
    row = np.zeros(1, GENERATION_DTYPE)[0]
    mean = generation / generations + rng.normal(0, 0.02)
    row["generation"], row["fitness_mean"], row["fitness_std"] = generation, mean, 0.1
    row["fitness_min"], row["fitness_max"], row["fitness_theta"] = mean - 0.3, mean + 0.3, np.nan
    if generation % 3 == 0:
        row["fitness_theta"] = mean + 0.05
    row["sigma"], row["alpha"], row["shrink"] = 1e-3, 5e-4 * (1 - generation / (2 * generations)), 1
    for name, seconds in PHASES.items():
        row[name] = seconds * rng.uniform(0.9, 1.1)
    row["seconds_score"], row["seconds_total"], row["unix_time"] = 0.4, 3.0, 10 + 3 * generation
    row["tokens"] = rng.integers(9_000, 11_000)
    row["num_score_raised"], row["num_score_timed_out"] = generation % 3, generation % 2
    return row


def members_of(count: int, rng: np.random.Generator, mean: float) -> np.ndarray:
    """Return members of a generation that two ranks evaluated, the first one faster than the second."""
    table = np.zeros(count, MEMBER_DTYPE)
    table["fitness"] = mean + rng.normal(0, 0.1, count)
    table["rank"] = np.arange(count) >= count // 2
    table["seconds"], table["tokens"], table["sign"] = 0.2 + 0.1 * table["rank"], 200, 1
    return table


def member_samples(generation: int, rng: np.random.Generator, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the lines of a generation's file: two completions each of the best, the worst and a random member."""
    return [
        {"which": which, "member": member, "fitness": fitness}
        | sample_of(i, generation, which == "best", rng, texts)
        | {"figures": {"format": 0.25}}
        for member, (which, fitness) in enumerate((("best", 0.9), ("worst", 0.1), ("random", 0.5)))
        for i in range(2)
    ]


def fill(
    run: RunFile, rng: np.random.Generator, generations: Sequence[int], texts: Sequence[str], num_problems: int
) -> None:
    """Add evaluations of two suites, with the samples of the held-out problems."""
    last = max(1, *generations)
    for generation in generations:
        share = 0.2 + 0.6 * generation / last
        samples = [sample_of(i, generation, i < share * num_problems, rng, texts) for i in range(num_problems)]
        write_samples(run.path, "held_out", generation, samples)
        common: dict[str, Any] = {"generation": generation, "num_samples": num_problems, "num_problems": num_problems}
        common |= {"tokens_mean": 30 - 10 * generation / last, "tokens_max": 40, "num_truncated": 2, "num_unparsed": 1}
        right = float(np.mean([sample["correct"] for sample in samples]))
        held_out = common | {"accuracy": right, "reward_mean": right / 2, "kl_per_token": 0.01 * generation}
        held_out |= {"theta_distance": 0.1 * generation, "format_mean": 0.5, "answer_mean": right, "num_failed": 0}
        run.evaluations.setdefault("held_out", []).append(held_out)
        other = common | {"accuracy": 0.9 - 0.1 * generation / last, "reward_mean": 0.5}
        run.evaluations.setdefault("kept", []).append(other)


def sample_of(
    index: int, generation: int, correct: bool, rng: np.random.Generator, texts: Sequence[str]
) -> dict[str, Any]:
    """Return a line of an evaluation's file; the first problem is right at first and wrong later."""
    right = correct if index else generation == 0
    text = texts[index % len(texts)] if texts else "plain words"
    completion = f"problem {index}: {text} at generation {generation} gives {int(rng.integers(100))}"
    return {
        **{"index": index, "sample": 0, "example": {"question": f"what is {index}? {text}", "solution": "secret"}},
        **{"prompt": f"Answer {index}. {text}", "completion": completion, "tokens": 9, "truncated": False},
        **{"reward": float(right), "correct": right, "parsed": True, "figures": {}},
    }
