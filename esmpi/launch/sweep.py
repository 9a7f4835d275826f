"""A sweep: which runs it has, whether they can start, and how far they are. Imports no MPI and no torch."""

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esmpi.config.overrides import Override
from esmpi.config.problems import HELD_OUT
from esmpi.config.reader import parse_config, read_tree
from esmpi.config.sections import Config
from esmpi.errors import UserError
from esmpi.files import is_locked_elsewhere, write_whole
from esmpi.identity import check_same_config
from esmpi.launch.dry_run import plan_lines
from esmpi.launch.settings import SEED, name_of, overrides_of_setting, read_words, short_names, text_of
from esmpi.store.run_file import RUN_FILE, RunFile
from esmpi.wording import counted

_TAIL_BYTES = 20_000
"""The part of a log in which its last words are looked for."""


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A run of a sweep."""

    setting: Mapping[str, str]
    """The values of the keys that are swept, as text, by names that need no section; without the seed."""
    config: Config
    folder: Path
    """Of the sweep."""

    @property
    def name(self) -> str:
        """Name of the run and of its directory."""
        return self.config.run.name

    @property
    def log_file(self) -> Path:
        """What the run printed. Of a job it is a link to the job's output."""
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def error_file(self) -> Path:
        """What the ranks of a job printed on standard error, a link; elsewhere that is in `log_file`."""
        return self.folder / "logs" / f"{self.name}.err"

    def write_config(self) -> Path:
        """Write the resolved config, which is what starts, even if the user's file changes; return its path."""
        path = self.folder / "configs" / f"{self.name}.yaml"
        write_whole(path, self.config.to_yaml().encode())
        return path

    def read(self) -> RunFile | None:
        """Return what the run file holds; None if there is none that can be read."""
        try:
            return RunFile.open(self.config.directory / RUN_FILE)
        except UserError:
            return None

    def is_finished(self, file: RunFile | None) -> bool:
        """Return whether a start of the run would have nothing to do; `file` is what `read` gave."""
        if file is None:
            return False
        last = self.config.es.generations
        evaluated = {(suite, row["generation"]) for suite, rows in file.evaluations.items() for row in rows}
        is_complete = file.num_generations >= last and all(
            (suite, last) in evaluated for suite in (HELD_OUT, *self.config.eval.suites)
        )
        is_ended = any(event["action"] == "stop" for event in file.attributes["events"])  # by the guard
        has_model = self.config.run.export_dtype == "none" or (self.config.directory / "model").is_dir()
        return (is_complete or is_ended) and has_model

    def is_running(self) -> bool:
        """Return whether a process, here or on another node, has the run directory."""
        return self.config.directory.is_dir() and is_locked_elsewhere(self.config.directory)

    def job(self, queue: Collection[str]) -> str | None:
        """Return the run's job if it is among the jobs of a queue."""
        link = self.log_file
        job = os.readlink(link).rpartition("/")[2].partition("_log.")[0] if link.is_symlink() else ""
        return next((known for known in queue if job in (known, f"{known}_0")), None)

    def wants_start(self, file: RunFile | None, queue: Collection[str]) -> bool:
        """Return whether the run is neither finished, nor running, nor in a queue of jobs."""
        return not (self.is_finished(file) or self.is_running() or self.job(queue) is not None)

    def state(self, file: RunFile | None, queue: Collection[str]) -> str:
        """Return how far the run is, in words: with the last line that it printed, if it stopped too early."""
        done = f"{0 if file is None else file.num_generations} of {counted(self.config.es.generations, 'generation')}"
        if self.is_finished(file):
            return "finished"
        if self.is_running():
            return f"running, {done}"
        if job := self.job(queue):
            return f"job {job} in the queue, {done}"
        if file is None and not self.log_file.exists():
            return "not started"
        words = last_words(self.error_file) or last_words(self.log_file)
        return f"unfinished, {done}" + (f": {words}" if words else "")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The runs of a sweep, those of one setting one after another."""

    name: str
    folder: Path
    runs: list[SweepRun]

    def __str__(self) -> str:
        num_settings = len({tuple(run.setting.items()) for run in self.runs})
        return (
            f"{counted(len(self.runs), 'run')} in {self.folder}: {counted(num_settings, 'setting')} x "
            f"{counted(len(self.runs) // num_settings, 'seed')}"
        )

    def check(self, num_ranks: int | None) -> None:
        """Raise UserError, naming the run, if a run file is that of other settings, or if a run could not start.

        The latter as far as it shows without a start, and only if `num_ranks`, the ranks of each run, is given.
        """
        for run in self.runs:
            try:
                if num_ranks is not None:
                    plan_lines(run.config, num_ranks)
                if file := run.read():
                    check_same_config(file, run.config)
            except UserError as error:
                raise UserError(f"{run.name}: {error}") from error


def plan_sweep(
    config: str | Path,
    words: Sequence[str],
    *,
    num_seeds: int | None = None,
    num_draws: int | None = None,
    draw_seed: int = 0,
    notes: list[str] | None = None,
) -> Sweep:
    """Return the runs of a sweep, each with its config.

    No run writes a model folder unless `run.export_dtype` is given: `esmpi export` makes that of the best one later.

    Parameters
    ----------
    config : path
        A YAML file.
    words : sequence of str
        Changes, such as "es.sigma=1e-3,3e-3"; see `esmpi.launch.settings.read_words`.
    num_seeds : int, optional
        How many seeds each setting has, from `run.seed` of the config on; default: one, or those of the words.
    num_draws : int, optional
        Draw so many settings; default: the grid of all values.
    draw_seed : int
        Of the draws.
    notes : list of str, optional
        Receives a line for each group of the file's keys that a change left unused.

    Raises
    ------
    UserError
        If a word or the config of a setting is wrong.
    """
    search = read_words(words)
    if search.seeds is not None and num_seeds is not None:
        raise UserError(f"--seeds: {SEED} has several values already")
    settings = search.settings(num_draws, draw_seed)
    tree = _without_export(read_tree(config))
    found: list[str] = []
    runs: list[SweepRun] = []
    for number, setting in enumerate(settings, 1):
        changes = [*search.fixed, *overrides_of_setting(setting)]
        texts = {name: text_of(setting[key]) for key, name in short_names(list(setting)).items()}
        try:
            base = parse_config(tree, changes, found)
            folder = Path(base.run.output_dir) / f"{base.run.name}_sweep"
            for seed in search.seeds or range(base.run.seed, base.run.seed + (num_seeds or 1)):
                own = {"name": name_of(base.run.name, setting, seed), "output_dir": str(folder), "seed": seed}
                checked = parse_config(tree, [*changes, *(Override("run", key, value) for key, value in own.items())])
                runs.append(SweepRun(setting=texts, config=checked, folder=folder.expanduser()))
        except UserError as error:
            label = ", ".join(f"{name}={text}" for name, text in texts.items())
            where = f"setting {number} of {len(settings)} ({label}): " if label else ""
            raise UserError(f"{where}{error}") from error
    for name, count in Counter(run.name for run in runs).items():
        if count > 1:
            raise UserError(f"{counted(count, 'run')} would have the name {name}: give each value once")
    if notes is not None:
        notes += dict.fromkeys(found)
    return Sweep(name=base.run.name, folder=folder.expanduser(), runs=runs)


def last_words(path: Path) -> str:
    """Return the last error in a log, else its last line; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    # mpiexec has more to say after a rank has failed
    errors = [line for line in lines if re.match(r"esmpi: |[\w.]+(Error|Exception|Exit|Interrupt)\b", line)]
    return (errors or lines or [""])[-1]


def _without_export(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a config as it was read, in which no model is written at the end unless it says so."""
    run = tree.get("run")
    return tree | {"run": {"export_dtype": "none"} | run} if isinstance(run, dict) else tree
