"""How a run goes on: the run file that is there, or one that begins as another run's, and the theta it leads to."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esmpi.config.differences import differences
from esmpi.config.sections import GENERATED, Config
from esmpi.engines import Engine
from esmpi.errors import UserError
from esmpi.store.run_file import RUN_FILE, RunFile, run_file_path

if TYPE_CHECKING:
    from esmpi.session import Session, Setup

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Of what a start of a run has read, besides the model."""

    data: str
    """Of what training and choosing the best depend on: training and held-out problems, few-shot examples."""
    suites: dict[str, str]
    """Of each suite's problems."""
    task: str
    """Of the user's own file that computes the rewards; empty without one."""


def open_run(config: Config, engine: Engine, digests: Digests) -> RunFile:
    """Read the run file that is there, or begin one; nothing is written yet.

    Raises
    ------
    UserError
        If the run that is there, or the one to fork, is another one than config, model and problems say.
    """
    path = config.directory / RUN_FILE
    if path.exists():
        run = RunFile.open(path)
        _check_same(run, config, engine.weights.digest(), digests)
        run.attributes["config"] = _resumed(run, config)
        run.attributes["task_digest"] = digests.task
        run.attributes["suite_digests"] = run.attributes["suite_digests"] | digests.suites
        return run
    names = [name for name, _ in engine.weights.tensors()]
    run = RunFile.create(path, config.to_dict(), engine.weights.digest(), digests.data, names, engine.weights.aliases)
    run.attributes |= {"task_digest": digests.task, "suite_digests": digests.suites}
    if config.run.fork is not None:
        _fork(run, *config.run.fork, config)
    return run


def _resumed(run: RunFile, config: Config) -> dict[str, Any]:
    """Return the config that a run goes on with: where it was forked from need not be said again."""
    resumed = config.to_dict()
    if config.run.fork_from is None:
        resumed["run"]["fork_from"] = run.attributes["config"]["run"].get("fork_from")
    return resumed


def _check_same(run: RunFile, config: Config, model_digest: int, digests: Digests) -> None:
    here = run.path.parent
    changed = differences(run.attributes["config"], _resumed(run, config))
    refused = [
        str(one)
        for one in changed
        if one.matters(sampled=max(config.sampling.temperature, config.eval.temperature) > 0)
    ]
    advice = f"to go on from it otherwise, run.name=NEW run.fork_from={here}@{run.num_generations}"
    if refused:
        raise UserError(
            f"{here} holds a run with another config; choose another run.name, or go back to what it had, or, "
            f"{advice}:\n  " + "\n  ".join(refused)
        )
    if run.attributes["model_digest"] != model_digest:
        raise UserError(
            f"{here} holds a run of another base model: digest {run.attributes['model_digest']:016x}, "
            f"{config.model.path} has {model_digest:016x}; choose another run.name"
        )
    begun = run.num_generations > 0 or run.evaluations
    # a run of an esmpi that kept no such digest has none
    if begun and run.attributes["task_digest"] not in ("", digests.task):
        raise UserError(
            f"task.name: {config.task.name} is not the file that {here} was begun with, and may give other rewards: "
            f"take back what was changed, choose another run.name, or, {advice}"
        )
    if run.attributes["data_digest"] != digests.data:
        hint = ""
        if config.data.train == GENERATED and config.eval.suites != run.attributes["config"]["eval"].get("suites", {}):
            hint = " (a suite that shares problems with the generated training problems changes these)"
        raise UserError(
            f"data.train, data.eval: {here} holds a run on other problems, or on the same in another order{hint}; "
            f"{advice}"
        )
    for suite in sorted(run.evaluations.keys() & digests.suites.keys()):
        if run.attributes["suite_digests"].get(suite, digests.suites[suite]) != digests.suites[suite]:
            raise UserError(
                f"eval.suites: {suite}: {here} has evaluations of other problems under this name: give the suite "
                f"a new one"
            )
    if run.num_generations > config.es.generations:
        raise UserError(
            f"es.generations: {here} already has {run.num_generations} generations, more than {config.es.generations}"
        )


def _fork(run: RunFile, directory: Path, generation: int, config: Config) -> None:
    """Begin a run with another one's first generations."""
    try:
        parent = RunFile.open(run_file_path(directory))
        beginning = parent.cut(run.path, generation)
    except UserError as error:
        raise UserError(f"run.fork_from: {error}") from error
    if parent.attributes["model_digest"] != run.attributes["model_digest"]:
        raise UserError(
            f"run.fork_from: {directory} is a run of another base model: digest "
            f"{parent.attributes['model_digest']:016x}, {config.model.path} has {run.attributes['model_digest']:016x}"
        )
    if generation > config.es.generations:
        raise UserError(f"es.generations: {config.es.generations} in all, but the fork is to begin with {generation}")
    run.generations, run.members = beginning.generations, beginning.members
    origin = {
        "run_uuid": parent.attributes["run_uuid"],
        "generation": generation,
        "path": str(parent.path.absolute()),
        "config": parent.attributes["config"],
    }
    run.attributes["forks"] = [
        *(fork for fork in parent.attributes["forks"] if fork["generation"] < generation),
        origin,
    ]
    log.info("forked from %s at generation %d", directory, generation)


def catch_up(session: "Session") -> None:
    """Collective. Take theta to the last committed generation, on all ranks."""
    run, comm = session.run, session.comm
    said = []
    if run is not None:
        evaluated = [[suite, row["generation"]] for suite, rows in run.evaluations.items() for row in rows]
        forked_at = run.attributes["forks"][-1]["generation"] if run.attributes["forks"] else 0
        said = [evaluated, forked_at, run.num_generations]
    evaluated, session.first_generation, session.generation = comm.allgather_object(said)[0]
    session.evaluated = {(suite, generation) for suite, generation in evaluated}
    snapshots = session.snapshots.good() if session.snapshots is not None else iter(())
    session.digest = take_theta(session, run, session.generation, snapshots)
    if session.snapshots is not None:
        session.snapshots.tidy()
    if session.generation:
        left = session.config.es.generations - session.generation
        advice = f"{left} to go" if left else "none to go; a larger es.generations prolongs the run"
        log.info("going on from generation %d, theta %016x, %s", session.generation, session.digest, advice)


def take_theta(setup: "Setup", run: RunFile | None, generation: int, snapshots: Iterator[tuple[int, Path, int]]) -> int:
    """Collective. Take theta from the base model to a generation of a run; return its digest, which all ranks have.

    From the first of the snapshots that all can load, or else from the base model, each rank replays by itself.

    Parameters
    ----------
    setup : Setup
    run : RunFile or None
        On rank 0; None on the others.
    generation : int
    snapshots : iterator of (generation, path, digest)
        On rank 0, those to try, none later than `generation`.

    Raises
    ------
    SharedError
        If the digest is not the recorded one.
    """
    comm, engine = setup.comm, setup.engine
    rows = [] if run is None else run.members[:generation]
    rows = rows[_load_snapshot(setup, snapshots) :]
    # where members differ in number, the missing ones count nothing
    shape = (len(rows), max(map(len, rows), default=0))
    seeds, factors = np.zeros(shape, np.uint64), np.zeros(shape, np.float32)
    for i, members in enumerate(rows):
        seeds[i, : len(members)], factors[i, : len(members)] = members["seed"], members["coefficient"]
    for one, other in zip(comm.broadcast_array(seeds), comm.broadcast_array(factors), strict=True):
        engine.weights.update(one, other)
    engine.weights.restore()
    digest = setup.agreed_digest()
    with comm.together():
        if run is not None and digest != run.digest_after(generation):
            raise UserError(
                f"replaying {run.path} gives theta {digest:016x}, but it recorded {run.digest_after(generation):016x}: "
                f"a machine computed wrongly, then or now. Start a new run (run.name), or restore a backup"
            )
    return digest


def _load_snapshot(setup: "Setup", snapshots: Iterator[tuple[int, Path, int]]) -> int:
    """Collective. Replace theta by the first snapshot that all ranks can load; return its generation, 0 without one.

    Rank 0 alone checks the files; that all ranks read the same, and what the run had, the digest tells.
    """
    comm, engine = setup.comm, setup.engine
    touched = False
    while True:
        found = next(snapshots, None)
        chosen = None if found is None else [found[0], str(found[1].absolute()), found[2]]
        chosen = comm.allgather_object(chosen)[0]
        if chosen is None:
            if touched:
                engine.weights.load(None)
            return 0
        generation, name, digest = chosen
        touched, error = True, None
        try:
            engine.weights.load(Path(name))
            if engine.weights.digest() != digest:
                error = f"theta from it is {engine.weights.digest():016x}, the run had {digest:016x}"
        except UserError as refusal:
            error = str(refusal)
        errors = comm.allgather_object(error)
        if not any(errors):
            log.info("theta of generation %d loaded from %s", generation, name)
            return int(generation)
        for rank, text in enumerate(errors):
            if text:
                log.warning("snapshot %s cannot be used on rank %d: %s", name, rank, text)
