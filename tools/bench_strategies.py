"""Compare strategies: the same work with other keys of `es`, with several run seeds. The last line is one JSON object.

Every run is a run of esmpi with one thread, in a process of its own. The runs are kept in --folder: the same command
again skips those that are finished and resumes the others, so settings and seeds can be added later. After a change of
esmpi itself name another folder, because finished runs are taken as they are.

    python tools/bench_strategies.py --seeds 5
    python tools/bench_strategies.py --settings default rank_1 --keys es.population_size=16
    python tools/bench_strategies.py --config configs/quickstart.yaml --keys es.generations=12 --after 4 8 12

The table has the accuracy on held-out problems, in percent, after some generations and as the mean of all evaluations
but the one of the base model; mean and standard deviation (ddof 1) over the run seeds. The differences are those of
the mean and of the last accuracy from the first setting, paired by run seed, with their standard errors. With
--seconds there is the accuracy after so many seconds of training, too, interpolated between evaluations. There a
generation takes the median seconds of the setting's runs in --timed, which should be runs that took turns on an idle
machine.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.config.differences import differences
from esmpi.config.problems import HELD_OUT
from esmpi.config.reader import load_config
from esmpi.config.sections import Config
from esmpi.errors import UserError
from esmpi.report.view import open_run
from esmpi.store.run_file import RUN_FILE
from esmpi.wording import counted

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Setting:
    """How a strategy changes the config."""

    keys: tuple[str, ...] = ()
    """Overrides."""
    step: float = 1.0
    """Alpha as a multiple of the config's."""


SETTINGS = {
    "default": Setting(),
    "rank_1": Setting(("es.noise=low_rank", "es.rank=1")),
    "rank_4": Setting(("es.noise=low_rank", "es.rank=4")),
    "rank_16": Setting(("es.noise=low_rank", "es.rank=16")),
    "larger_alpha": Setting(step=1.5),
    # as long as the perturbations and updates of `std`: the root mean square of its factors, times 0.1, is 0.0037
    "larger_both": Setting(("es.sigma=0.0037",), step=1.23),
    "antithetic": Setting(("es.antithetic=true",)),
    # Steps undo the shaping's own scale at N 30, so that an update is about as long as with z-scores.
    "centered_rank": Setting(("es.shaping=centered_rank",), step=3.35),
    "log_rank": Setting(("es.shaping=log_rank",), step=0.65),
    "top_k": Setting(("es.shaping=top_k",), step=0.55),
    "per_prompt": Setting(("es.shaping=per_prompt",), step=2.5),
    "raw": Setting(("es.shaping=raw",), step=10.0),
    # The deviations of the tensors are 0.03 on average, so that sigma and alpha are about as large as without.
    "std": Setting(("es.sigma_per_tensor=std", "es.sigma=0.1"), step=33.0),
    "no_embeddings": Setting(("es.exclude=['*embed_tokens*']",)),
    "cosine_alpha": Setting(("es.alpha_schedule=cosine",)),
    "cosine_both": Setting(("es.alpha_schedule=cosine", "es.sigma_schedule=cosine", "es.sigma_end=0.3")),
    "warmup": Setting(("es.warmup=5",)),
    "anchored": Setting(("es.anchor=1.0",)),
    "restore": Setting(("guard.max_drop=0.05", "guard.action=restore")),
}
"""The strategies. The first of those that are run is what the others are compared with."""


@dataclass(frozen=True)
class Job:
    """A run: a setting with a run seed."""

    config: Config
    command: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    accuracies: dict[int, float]
    """Share of the held-out problems that are right, by generation."""
    tokens: int
    seconds: list[float]
    """Seconds of each generation, without evaluations."""

    @property
    def mean(self) -> float:
        """Mean accuracy of all evaluations but the one of the base model."""
        return float(np.mean([accuracy for generation, accuracy in self.accuracies.items() if generation > 0]))

    def at(self, generation: float) -> float | None:
        """Return the accuracy after a generation, interpolated between evaluations; None after the last of them."""
        if generation > max(self.accuracies):
            return None
        return float(np.interp(generation, list(self.accuracies), list(self.accuracies.values())))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "bench_strategies.yaml")
    parser.add_argument("--keys", nargs="+", default=[], metavar="section.key=value", help="overrides for all settings")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="number of run seeds (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_strategies"), help="default: %(default)s")
    parser.add_argument("--after", type=int, nargs="+", default=[10, 20, 30], help="generations (default: 10 20 30)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[], help="of training (default: none)")
    parser.add_argument("--timed", type=Path, help="folder of the runs that tell seconds (default: that of --folder)")
    arguments = parser.parse_args()
    try:
        found = compare(arguments)
    except UserError as error:
        raise SystemExit(f"bench_strategies: {error}") from None
    print(table(found, arguments))
    said = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    print(json.dumps(said | {"found": found}))


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Do all runs that are not finished, and return the summary of each setting."""
    seeds = range(arguments.seeds)
    jobs = {name: [job_of(name, seed, arguments) for seed in seeds] for name in arguments.settings}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        # seed by seed: the settings take turns, so that a slow hour of the machine meets all of them
        list(pool.map(finish, [jobs[name][seed] for seed in seeds for name in jobs]))
    results = {name: [result_of(job.config.directory) for job in own] for name, own in jobs.items()}
    first = results[arguments.settings[0]]
    found = {}
    for name, own in results.items():
        duration = median_seconds(timed_runs(arguments.timed, jobs[name][0]) if arguments.timed else own)
        found[name] = summary(own, first, arguments.after)
        found[name]["seconds_per_generation"] = round(duration, 3)
        found[name]["after_seconds"] = {at: [run.at(at / duration) for run in own] for at in arguments.seconds}
    return found


def job_of(name: str, seed: int, arguments: argparse.Namespace) -> Job:
    """Return the run of a setting with a run seed."""
    setting = SETTINGS[name]
    keys = [*arguments.keys, *setting.keys]
    base = load_config(arguments.config, keys)
    keys += [f"run.seed={seed}", f"run.name={base.run.name}-{name}-{seed}", f"run.output_dir={arguments.folder}"]
    keys += ["run.export_dtype=none", "engine.num_threads=1"]
    if setting.step != 1:
        keys.append(f"es.alpha={setting.step * base.es.step_size!r}")
    return Job(load_config(arguments.config, keys), (sys.executable, "-m", "esmpi.run", str(arguments.config), *keys))


def finish(job: Job) -> None:
    """Do a run, or what it lacks; esmpi refuses if the directory holds a run with another config."""
    directory = job.config.directory
    if not is_finished(job):
        done = subprocess.run(job.command, capture_output=True, text=True)
        if done.returncode != 0:
            raise UserError(f"{' '.join(job.command)}\n{done.stdout}{done.stderr}")
    result = result_of(directory)
    last = max(result.accuracies)
    print(f"{directory}: {result.accuracies[last]:.1%} after {counted(last, 'generation')}", flush=True)


def is_finished(job: Job) -> bool:
    """Return whether there is a run with this config that has all its generations, and an evaluation of the last."""
    if not (job.config.directory / RUN_FILE).exists():
        return False
    run = open_run(job.config.directory)
    changed = any(difference.matters for difference in differences(run.config, job.config.to_dict()))
    last = job.config.es.generations
    return not changed and run.num_generations == last and last in result_of(job.config.directory).accuracies


def result_of(directory: Path) -> Result:
    """Read what came of a run."""
    run = open_run(directory)
    rows = run.evaluations[run.evaluations["suite"] == HELD_OUT]
    accuracies = dict(sorted(zip(map(int, rows["generation"]), map(float, rows["accuracy"]), strict=True)))
    return Result(accuracies, int(run.generations["tokens"].sum()), run.generations["seconds_total"].tolist())


def timed_runs(folder: Path, job: Job) -> list[Result]:
    """Return what came of a setting's runs in another folder."""
    names = job.config.run.name.removesuffix("0") + "*"
    found = [result_of(directory) for directory in sorted(folder.glob(names))]
    if not found:
        raise UserError(f"--timed: {folder} has no run {names}")
    return found


def median_seconds(runs: Sequence[Result]) -> float:
    """Return the median seconds of all generations of some runs."""
    return float(np.median([seconds for run in runs for seconds in run.seconds]))


def summary(runs: Sequence[Result], first: Sequence[Result], after: Sequence[int]) -> dict[str, Any]:
    """Return the figures of a setting, by run seed, and its differences from the first setting."""
    for at in after:
        missing = [run for run in runs if at not in run.accuracies]
        if missing:
            known = ", ".join(map(str, missing[0].accuracies))
            raise UserError(f"--after: runs were evaluated after generations {known}, not after {at}")
    last = after[-1]
    differences = {
        "mean": paired([run.mean for run in runs], [run.mean for run in first]),
        f"after {last}": paired([run.accuracies[last] for run in runs], [run.accuracies[last] for run in first]),
    }
    return {
        "after": {at: [run.accuracies[at] for run in runs] for at in after},
        "mean": [run.mean for run in runs],
        "differences": differences,
        "tokens": [run.tokens for run in runs],
        "seconds": [round(sum(run.seconds), 1) for run in runs],
    }


def paired(values: Sequence[float], others: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of the differences of pairs, and its standard error, which one pair does not have."""
    difference = np.subtract(values, others)
    error = float(difference.std(ddof=1) / len(difference) ** 0.5) if len(difference) > 1 else None
    return float(difference.mean()), error


def table(found: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return the figures of all settings as text."""
    head = ["setting", *(f"after {at}" for at in arguments.after), "mean", "difference: mean"]
    head += [f"after {arguments.after[-1]}", *(f"at {at:g} s" for at in arguments.seconds)]
    lines = [[*head, "tokens", "seconds", "of a generation"]]
    for name, figures in found.items():
        cells = [name, *(spread(values) for values in figures["after"].values()), spread(figures["mean"])]
        cells += [plus_minus(value, error, "+") for value, error in figures["differences"].values()]
        cells += [spread(values) for values in figures["after_seconds"].values()]
        cells += [f"{np.mean(figures['tokens']):,.0f}", f"{np.mean(figures['seconds']):.1f}"]
        lines.append([*cells, f"{figures['seconds_per_generation']:.2f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def spread(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation in percent; nothing if some runs do not reach so far."""
    reached = [value for value in values if value is not None]
    if len(reached) < len(values):
        return "-"
    return plus_minus(float(np.mean(reached)), float(np.std(reached, ddof=1)) if len(reached) > 1 else None)


def plus_minus(value: float, deviation: float | None, sign: str = "") -> str:
    """Return a value with its deviation, in percent."""
    text = f"{100 * value:{sign}.1f}"
    return text if deviation is None else f"{text} ± {100 * deviation:.1f}"


if __name__ == "__main__":
    main()
