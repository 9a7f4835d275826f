"""What rank 0 keeps of a run, in files and on the screen; on other ranks a recorder does nothing."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.es.exact_sums import mean_and_std
from esmpi.es.guard import Event
from esmpi.es.member_columns import FAILED, MEMBER_DTYPE, OK
from esmpi.es.population import FAILURES, Results, idle_seconds
from esmpi.files import ForbiddenError, FullError, write_whole
from esmpi.record.evaluation import Evaluation
from esmpi.record.past import GENERATION, figures_of, past_of
from esmpi.record.sinks import Sinks
from esmpi.stopwatch import Stopwatch
from esmpi.store.run_file import GENERATION_DTYPE, RunFile, member_samples_path, samples_path
from esmpi.wording import counted

log = logging.getLogger(__name__)

_SHOWN = ("kl_per_token", "theta_distance")
"""Further figures that are worth a place on the screen."""
_LEAST_WAIT = 0.1
"""Share of a generation that rank 0 waited for rewards, after generating, from which on it is shown."""
_ALIKE = 10
"""Generations in a row in which all members have the same fitness, after which a warning says what to change."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a generation did to theta."""

    coefficients: np.ndarray
    """(N,) float32."""
    sigma: float
    alpha: float
    shrink: float = 1.0
    """What the distance from the base model was multiplied with after the update."""
    digest: int
    """Of theta afterwards."""
    theta_fitness: float = np.nan
    """Of theta before, on the prompts of the members; NaN if it was not evaluated."""


class Recorder:
    """Commits generations and evaluations to the run file and prints a line for each.

    A thread writes each generation while the next one is evaluated, because a file server may be slow. At most one
    generation is being written, and any other change of the files waits for it. The file's bytes are made in the loop
    and not in the thread: Python switches between two busy threads only every 5 ms.

    Parameters
    ----------
    run : RunFile or None
        None on all ranks but 0.
    num_generations : int
        How many the run is to have, for the expected time left.
    sinks : sequence of str
        Names of `esmpi.record.sinks.SINKS`.
    num_ranks : int
        Of this start, for their idle time.
    """

    def __init__(self, run: RunFile | None, num_generations: int, sinks: Sequence[str] = (), num_ranks: int = 1):
        self._run = run
        self._sinks = Sinks(sinks, run.path.parent, run.attributes, run.num_generations) if run else None
        if run is not None and self._sinks is not None and self._sinks.lacks_from is not None:
            for past in past_of(run, self._sinks.lacks_from):
                self._sinks.repeat(past)
        self._num_generations = num_generations
        self._num_ranks = num_ranks
        self._generation_seconds: list[float] = []
        self._num_alike = 0
        self._thread = ThreadPoolExecutor(1, "esmpi-commit")
        self._pending: Future[None] | None = None

    def commit(
        self,
        generation: int,
        results: Results,
        step: Step,
        watch: Stopwatch,
        figures: Mapping[str, float] | None = None,
        samples: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Begin to make a generation durable, when the one before is: `wait` returns once it is.

        Parameters
        ----------
        generation : int
        results : Results
        step : Step
        watch : Stopwatch
        figures : mapping of str to float, optional
            Further numbers of the members' rewards.
        samples : sequence of mapping
            Completions of members that are kept.

        Raises
        ------
        ForbiddenError, FullError, OSError
            If the one before could not be written.
        """
        if self._run is None:
            return
        with watch.phase("commit"):
            self.wait()
            row = _generation_row(generation, results, step, watch)
            status = np.where(np.isnan(results["fitness"]), FAILED, OK)
            made_here = {"status": status, "coefficient": step.coefficients, "rank": results.ranks}
            members = np.empty(len(results), MEMBER_DTYPE)
            for name in MEMBER_DTYPE.names or ():
                members[name] = made_here[name] if name in made_here else results[name]
            idle = float(idle_seconds(members["rank"], members["seconds"], self._num_ranks).mean())
            kept = (member_samples_path(self._run.path, generation), samples)
            fitness = members["fitness"][status == OK]
            write = self._run.begin_commit(row, members, figures or {})
            # without a step size, members are a random search, which moves nothing
            alike = not step.coefficients.any() and step.alpha > 0
        self._pending = self._thread.submit(
            self._finish_commit, kept, write, row, figures or {}, fitness, idle, alike, watch
        )

    def _finish_commit(
        self,
        kept: tuple[Path, Sequence[Mapping[str, Any]]],
        write: Callable[[], None],
        row: np.void,
        further: Mapping[str, float],
        fitness: np.ndarray,
        idle: float,
        alike: bool,
        watch: Stopwatch,
    ) -> None:
        with watch.phase("write"):
            if kept[1]:
                write_lines(*kept)  # so that a committed generation has them
            write()
        self._log_generation(row, idle, alike)
        self._write_to_sinks(GENERATION, int(row["generation"]), figures_of(row, further, idle))
        if self._sinks is not None:
            self._sinks.write_members(int(row["generation"]), fitness, kept[1])

    def check(self) -> None:
        """Raise as `commit` does if a commit has failed; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when all generations are durable; raises as `commit` does."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def add_evaluation(self, suite: str, generation: int, result: Evaluation, samples: list[dict[str, Any]]) -> None:
        """Write an evaluation's samples as JSON lines, then its result."""
        if self._run is None:
            return
        self.wait()
        write_samples(self._run.path, suite, generation, samples)
        self._run.add_evaluation(suite, {"generation": generation} | result.to_row())
        self._write_to_sinks(suite, generation, result.to_row())
        log_evaluation(suite, generation, result, self._run.evaluations[suite][0])

    def add_event(self, event: Event) -> None:
        """Write what the guard did."""
        if self._run is not None:
            self.wait()
            self._run.attributes["events"] = [*self._run.attributes["events"], asdict(event)]
            self._run.write()

    def add_profile(self, intervals: np.ndarray) -> None:
        """Keep the profile of a generation, (n,) of PROFILE_DTYPE, in place of an older one."""
        if self._run is None:
            return
        self.wait()
        self._run.profile = intervals
        self._run.write()
        log.info("profile of generation %d: esmpi report draws it", intervals["generation"][0])

    def close(self) -> None:
        """Finish what is under way, and close the sinks."""
        try:
            self.wait()
        except (ForbiddenError, FullError, OSError) as error:
            log.error("the last generation is not committed: %s", error)  # another error has already ended the run
        finally:
            self._thread.shutdown()
            if self._sinks is not None:
                self._sinks.close()

    def _write_to_sinks(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        if self._sinks is not None:
            self._sinks.write(group, generation, figures)

    def _log_generation(self, row: np.void, idle: float, alike: bool) -> None:
        seconds = float(row["seconds_total"])
        self._generation_seconds.append(seconds)
        recent = self._generation_seconds[-10:]
        done = int(row["generation"]) + 1
        left = sum(recent) / len(recent) * (self._num_generations - done)
        waited = f"  idle {100 * idle / seconds:.0f} %" if self._num_ranks > 1 else ""
        if row["seconds_score"] > _LEAST_WAIT * row["seconds_generate"]:
            waited += f"  generating {row['seconds_generate']:.1f} s, rewards {row['seconds_score']:.1f} s"
        if row["seconds_wait"] > _LEAST_WAIT * seconds:
            waited += f"  waiting for rewards {100 * row['seconds_wait'] / seconds:.0f} %"
        num_rewards = sum(int(row[f"num_score_{kind}"]) for kind in FAILURES)
        failed = f"  {counted(num_rewards, 'reward')} failed" if num_rewards else ""
        failed += f"  {counted(int(row['num_failed']), 'member')} failed" if row["num_failed"] else ""
        failed += "  no signal: all members have the same fitness" if alike else ""
        self._num_alike = self._num_alike + 1 if alike else 0
        theta = "" if np.isnan(row["fitness_theta"]) else f" theta {row['fitness_theta']:.3f}"
        log.info(
            "generation %d  fitness mean %.3f best %.3f%s  %.1f s  %.0f tokens/s%s  %d/%d done, left %s%s",
            row["generation"],
            row["fitness_mean"],
            row["fitness_max"],
            theta,
            seconds,
            row["tokens"] / seconds,
            waited,
            done,
            self._num_generations,
            _clock(left),
            failed,
        )
        if alike and self._num_alike % _ALIKE == 0:
            log.warning(
                "%d generations without a signal: all members have the same fitness, so nothing is learned. Make the "
                "task easier or its reward finer, or raise es.sigma, data.batch_size or sampling.max_tokens",
                self._num_alike,
            )


def write_samples(run_file: Path, suite: str, generation: int, samples: list[dict[str, Any]]) -> None:
    """Write an evaluation's samples beside a run file, as JSON lines."""
    write_lines(samples_path(run_file, suite, generation), samples)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def log_evaluation(suite: str, generation: int, result: Evaluation, first: Mapping[str, float] | None = None) -> None:
    """Log the results of an evaluation on one line, and how far accuracy is from that of the suite's first one."""
    since = ""
    if first is not None and first["generation"] < generation:
        since = f" ({100 * (result.accuracy - first['accuracy']):+.1f} since generation {first['generation']})"
    further = "".join(f", {name} {value:.4g}" for name, value in result.figures.items() if name in _SHOWN)
    log.info(
        "%s at generation %d: accuracy %.1f %%%s, mean reward %.3f%s (%s, %d cut off%s, %.1f s)",
        suite.replace("_", "-"),
        generation,
        100 * result.accuracy,
        since,
        result.reward_mean,
        further,
        counted(result.num_problems, "problem"),
        result.num_truncated,
        f", {counted(result.num_failed, 'reward')} failed" if result.num_failed else "",
        result.seconds,
    )


def _generation_row(generation: int, results: Results, step: Step, watch: Stopwatch) -> np.void:
    fitness = results["fitness"]
    failed = np.isnan(fitness)
    if not failed.all():
        fitness = fitness[~failed]
    row = np.zeros(1, GENERATION_DTYPE)[0]
    row["generation"] = generation
    row["fitness_mean"], row["fitness_std"] = mean_and_std(fitness)
    row["fitness_min"], row["fitness_max"] = fitness.min(), fitness.max()
    row["theta_digest"] = step.digest
    row["sigma"], row["alpha"], row["shrink"] = step.sigma, step.alpha, step.shrink
    row["fitness_theta"] = step.theta_fitness
    for phase in ("generate", "score", "perturb", "update", "exchange", "wait"):
        row[f"seconds_{phase}"] = watch.seconds.get(phase, 0.0)
    row["seconds_update"] += watch.seconds.get("digest", 0.0)
    row["seconds_total"] = watch.total()
    row["tokens"] = results["tokens"].sum()
    row["num_failed"] = failed.sum()
    for kind in FAILURES:
        row[f"num_score_{kind}"] = results.total(f"score_{kind}")
    row["unix_time"] = time.time()
    return row


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
