"""What `esmpi watch` knows of a run, by looking at its file again and again.

A look takes no lock and writes nothing. The run file is replaced as a whole, so whatever a look finds is a complete
one, unless somebody is copying it: then the look says so, and the next one tries again.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.config.problems import HELD_OUT
from esmpi.errors import UserError
from esmpi.es.population import idle_seconds
from esmpi.files import open_regular
from esmpi.report.of_run import rows_of, table_of
from esmpi.report.samples import Sample, read_samples
from esmpi.stop.time_limit import job_ends
from esmpi.store.history import History
from esmpi.store.reader import read_run, without_segment
from esmpi.store.run_file import RUN_FILE, run_file_path
from esmpi.store.seal import USERBLOCK
from esmpi.store.validation import shown

RECENT = 10
"""Generations that "recent" means."""
_MOST_LINES = 200
"""Of a file of samples that are read: files of large evaluations have many megabytes."""
_QUIET_S, _QUIET_FACTOR = 60.0, 5.0
"""A run is silent if its file is older than this, and than so many of its longest recent steps."""
_QUESTION_S = 60.0
"""Between two questions to Slurm."""
_PHASES = ("generate", "perturb", "update", "exchange")
_FAILURES = (
    ("member", "num_failed", "failed"),
    ("reward", "num_score_raised", "raised an exception"),
    ("reward", "num_score_timed_out", "out of time"),
    ("reward", "num_score_died", "died"),
)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Evaluations of a suite, ascending."""

    name: str
    generations: list[int]
    accuracies: np.ndarray
    """(n,) float64, from 0 to 1."""
    reward: float
    """Mean reward of the last one."""
    num_problems: int
    """Of the last one; 0 if an older esmpi made it, which did not record it."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run file says."""

    name: str
    about: str
    """Model, task and seed."""
    done: int
    planned: int
    fitness: np.ndarray
    """(G,) float64: the mean of each generation's members."""
    fitness_best: float
    fitness_std: float
    """Of the last generation."""
    suites: list[Suite]
    tokens_per_second: np.ndarray
    """(G,) float64, of all ranks."""
    seconds: np.ndarray
    """(G,) float64: of each generation."""
    step_s: float
    """Recent seconds from one generation to the next, with evaluations and snapshots; NaN before the first one."""
    longest_s: float
    """The longest recent step."""
    phases: dict[str, float]
    """Recent shares of a generation's time on rank 0."""
    idle: float
    """Recent share of the ranks' time; NaN if it is not known, or with a single rank."""
    ranks: int
    failures: list[tuple[str, str, int, int]]
    """For each kind that has occurred: the noun, what happened, how often recently, and how often in all."""
    no_signal: bool
    """Whether all members of the last generation have the same fitness."""
    events: list[str]
    """What the guard did."""
    stopped: bool
    """Whether the guard has stopped the run."""
    complete: bool
    """Whether the last generation is evaluated."""
    exports: bool
    """Whether a model is written at the end."""
    samples: list[Sample]
    """Some of the last evaluation, wrong and right ones by turns."""
    samples_of: str
    """Which evaluation that is, in words."""
    note: str
    """What could not be read beside the run file."""
    job: str
    """Slurm's number of the last start's job; empty if there is none."""


@dataclass(kw_only=True)
class View:
    """What a frame shows of a run."""

    directory: Path
    facts: Facts | None = None
    """None as long as the run file has never been readable."""
    trouble: str = ""
    """Why the file could not be read at the last look."""
    age_s: float = 0.0
    """Seconds since the file was replaced."""
    ends: float | None = None
    """When the job ends, in seconds of `time.time()`; None if that is not known."""
    seen: tuple[int, int, bytes] | None = field(default=None, repr=False)
    """Time, size and seal of the file that `facts` are of; None to read it at the next look."""

    @property
    def state(self) -> str:
        """waiting, unreadable, running, silent, stopped or finished."""
        if self.facts is None:
            return "unreadable" if self.trouble else "waiting"
        if self.facts.stopped:
            return "stopped"
        quiet = self.age_s > max(_QUIET_S, _QUIET_FACTOR * np.nan_to_num(self.facts.longest_s))
        if self.facts.complete and (quiet or not self.facts.exports or (self.directory / "model").is_dir()):
            return "finished"
        return "silent" if quiet else "running"

    @property
    def left_s(self) -> float:
        """How long the generations that are left will take; NaN if that is not known."""
        return np.nan if self.facts is None else self.facts.step_s * max(0, self.facts.planned - self.facts.done)


class Watcher:
    """Looks at runs.

    Parameters
    ----------
    paths : sequence of path
        Run directories, which need not exist yet; a folder of run directories stands for all of them.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self._paths = [Path(path) for path in paths]
        self._views: dict[Path, View] = {}
        self._ends: dict[str, float] = {}
        self._next_question = 0.0

    @property
    def has_folders(self) -> bool:
        """Whether further runs may appear, because a folder of runs is watched."""
        return any(_runs_in(path) for path in self._paths)

    def look(self) -> list[View]:
        """Return what the runs look like now; a file that has not changed is not read."""
        found = [run for path in self._paths for run in (_runs_in(path) or [path])]
        views = [self._views.setdefault(run, View(directory=_directory(run))) for run in dict.fromkeys(found)]
        for view in views:
            _update(view)
        self._ask_slurm(views)
        return views

    def _ask_slurm(self, views: Sequence[View]) -> None:
        """Find out when the jobs of the runs end; rarely, because a busy Slurm may be slow."""
        jobs = {view.directory: view.facts.job for view in views if view.facts and view.state in ("running", "silent")}
        wanted = set(jobs.values()) - {""}
        if wanted and time.monotonic() >= self._next_question:
            self._ends = job_ends(wanted)
            self._next_question = time.monotonic() + _QUESTION_S
        for view in views:
            view.ends = self._ends.get(jobs.get(view.directory, ""))


def _runs_in(folder: Path) -> list[Path]:
    """Return the run directories in a folder that is none itself."""
    try:
        if folder.is_file() or (folder / RUN_FILE).exists():
            return []
        return sorted(path.parent for path in folder.glob(f"*/{RUN_FILE}"))
    except OSError:
        return []


def _directory(run: Path) -> Path:
    return run.parent if run.name == RUN_FILE else run


def _update(view: View) -> None:
    path = run_file_path(view.directory)
    try:
        # Opened, because clients of NFS may answer a plain stat from what they knew a minute ago.
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            # Its seal: two commits of the same size may fall into one tick of a file server's clock.
            seen = (status.st_mtime_ns, status.st_size, file.read(USERBLOCK))
    except FileNotFoundError:
        view.trouble, view.seen = ("the run file is gone" if view.facts else ""), None
        return
    except (OSError, UserError) as error:
        reason = error if isinstance(error, UserError) else f"{path} cannot be read just now: {error.strerror}"
        view.trouble, view.seen = str(reason), None
        return
    view.age_s = max(0.0, time.time() - status.st_mtime)
    if seen == view.seen:
        return
    try:
        with shown(path):
            view.facts = facts_of(read_run(path, History, without_segment)[0])
        view.trouble, view.seen = "", seen
    except UserError as error:
        view.trouble, view.seen = str(error), None


def facts_of(run: History) -> Facts:
    """Return what a run file says, as a frame shows it.

    Raises
    ------
    UserError
        If it is a log-only file.
    LookupError, TypeError, ValueError
        If it is not as esmpi writes it.
    """
    if run.attributes["log_only"]:
        raise UserError(f"{run.path} is a log-only file, which has no figures of the training: watch the run itself")
    config, events = run.attributes["config"], run.attributes["events"]
    table = table_of(run)
    recent = table[-RECENT:]
    planned = int(config["es"]["generations"])
    total = table["seconds_total"]
    steps = _steps(run, table, config)
    names = sorted((name for name, rows in run.evaluations.items() if rows), key=lambda one: (one != HELD_OUT, one))
    suites = [_suite(name, rows_of(run, name)) for name in names]
    wanted = {HELD_OUT, *(config.get("eval", {}).get("suites") or ())}
    evaluated = {suite.name for suite in suites if suite.generations[-1] >= planned}
    samples, samples_of, note = _samples(run, suites)
    starts = run.attributes["provenance"]
    job = str((starts[-1].get("slurm") or {}).get("SLURM_JOB_ID", "")) if starts else ""
    return Facts(
        name=str(config["run"]["name"]),
        about=f"{config['model']['path']} on task {config['task']['name']}, seed {config['run'].get('seed', '-')}",
        done=len(table),
        planned=planned,
        fitness=table["fitness_mean"].astype(np.float64),
        fitness_best=float(table["fitness_max"][-1]) if len(table) else np.nan,
        fitness_std=float(table["fitness_std"][-1]) if len(table) else np.nan,
        suites=suites,
        tokens_per_second=np.divide(table["tokens"], total, out=np.full(len(table), np.nan), where=total > 0),
        seconds=total.astype(np.float64),
        step_s=float(steps.mean()) if steps.size else np.nan,
        longest_s=float(steps.max()) if steps.size else np.nan,
        phases=_phases(recent),
        idle=_idle(run),
        ranks=int(starts[-1].get("ranks", 1)) if starts else 1,
        failures=[
            (noun, what, int(recent[column].sum()), int(table[column].sum()))
            for noun, what, column in ((noun, what, column) for noun, column, what in _FAILURES)
            if table[column].any()
        ],
        no_signal=bool(len(table) and table["fitness_std"][-1] == 0),
        events=[_told(event) for event in events],
        stopped=any(event["action"] == "stop" for event in events),
        complete=len(table) >= planned and wanted <= evaluated,
        exports=config["run"].get("export_dtype", "none") != "none",
        samples=samples,
        samples_of=samples_of,
        note=note,
        job=job if job.isdigit() else "",
    )


def _steps(run: History, table: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Return the recent seconds from one generation to the next, within the last start, float64.

    They span two evaluations, if there are any, because an evaluation may take as long as many generations.
    """
    if not len(table):
        return np.empty(0)
    starts = run.attributes["provenance"]
    began = float(starts[-1].get("unix_time", 0)) if starts else 0.0
    times = table["unix_time"][table["unix_time"] >= began]
    every = config.get("eval", {}).get("every") or 0
    steps = np.diff(times)[-max(RECENT, 2 * int(every)) :]
    return steps if steps.size and (steps > 0).all() else table["seconds_total"][-1:].astype(np.float64)


def _phases(recent: np.ndarray) -> dict[str, float]:
    total = float(recent["seconds_total"].sum())
    if not total > 0:
        return {}
    shares = {name: float(recent[f"seconds_{name}"].sum()) / total for name in _PHASES}
    return shares | {"other": max(0.0, 1 - sum(shares.values()))}


def _idle(run: History) -> float:
    waited, there = 0.0, 0.0
    for generation, (row, members) in list(enumerate(zip(run.generations, run.members, strict=True)))[-RECENT:]:
        ranks = run.num_ranks(generation)
        if ranks > 1 and len(members):  # the members of older generations are in files that are not read
            waited += float(idle_seconds(members["rank"], members["seconds"], ranks).mean())
            there += float(row["seconds_total"])
    return waited / there if there > 0 else np.nan


def _suite(name: str, rows: Sequence[Mapping[str, Any]]) -> Suite:
    last = rows[-1]
    return Suite(
        name=name,
        generations=[int(row["generation"]) for row in rows],
        accuracies=np.array([row["accuracy"] for row in rows], np.float64),
        reward=float(last["reward_mean"]),
        num_problems=int(np.nan_to_num(last.get("num_problems", 0))),
    )


def _told(event: Mapping[str, Any]) -> str:
    to = f" generation {event['to']}" if event["action"] == "restore" else ""
    return f"{event['action']}{to} at generation {event['generation']}: {event['reason']}"


def _samples(run: History, suites: Sequence[Suite]) -> tuple[list[Sample], str, str]:
    """Return samples of the last evaluation, wrong and right ones by turns, which it is, and what went wrong."""
    if not suites:
        return [], "", ""
    suite, generation = suites[0].name, suites[0].generations[-1]
    try:
        found = read_samples(run, suite, generation, most=_MOST_LINES)
    except UserError as error:
        return [], "", str(error)
    # a sort is stable: the first wrong one, the first right one, the second wrong one and so on
    counts = {True: 0, False: 0}
    turns = []
    for sample in found:
        counts[sample["correct"]] += 1
        turns.append((counts[sample["correct"]], sample["correct"]))
    order = sorted(range(len(found)), key=turns.__getitem__)
    return [found[i] for i in order], f"{suite.replace('_', '-')} at generation {generation}", ""
