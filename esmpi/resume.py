"""How a run resumes: the run file that is there, or one that begins as another run's, and the theta it leads to."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esmpi.config.sections import Config
from esmpi.engines import Engine
from esmpi.errors import UserError
from esmpi.es.guard import Event
from esmpi.identity import Digests, check_forkable, check_resumable, recorded, resumed_config
from esmpi.model.noise_settings import NoiseSettings
from esmpi.progress import Progress
from esmpi.store.history import steps_after
from esmpi.store.run_file import RUN_FILE, RunFile, run_file_path
from esmpi.store.snapshot_keeper import good_snapshots

if TYPE_CHECKING:
    from esmpi.session import Session, Setup

log = logging.getLogger(__name__)


def open_run_file(config: Config, engine: Engine, digests: Digests) -> RunFile:
    """Read the run file that is there, or begin one; nothing is written yet.

    Raises
    ------
    UserError
        If the run that is there, or the one to fork, is another one than config, model and problems say.
    """
    path = config.directory / RUN_FILE
    if path.exists():
        run = RunFile.open(path)
        check_resumable(run, config, engine.weights.digest(), digests)
        run.attributes["config"] = resumed_config(run, config)
        run.attributes["task_digest"] = digests.task
        run.attributes["suite_digests"] = run.attributes["suite_digests"] | digests.suites
        return run
    names = [name for name, _ in engine.weights.tensors()]
    run = RunFile.create(path, recorded(config), engine.weights.digest(), digests.data, names, engine.weights.aliases)
    run.attributes |= {"task_digest": digests.task, "suite_digests": digests.suites}
    if config.run.fork is not None:
        _fork(run, *config.run.fork, config)
    return run


def _fork(run: RunFile, directory: Path, generation: int, config: Config) -> None:
    """Begin a run with another one's first generations."""
    try:
        parent = RunFile.open(run_file_path(directory))
        beginning = parent.cut(run.path, generation)
    except UserError as error:
        raise UserError(f"run.fork_from: {error}") from error
    check_forkable(parent, directory, run, generation, config)
    run.generations, run.members, run.figures = beginning.generations, beginning.members, beginning.figures
    run.attributes["events"] = [event for event in parent.attributes["events"] if event["generation"] < generation]
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
    versions = parent.attributes["noise_version"], run.attributes["noise_version"]
    run.attributes["noise_version"] = max(versions)
    log.info("forked from %s at generation %d", directory, generation)


def catch_up(session: "Session") -> None:
    """Collective. Take theta to the last committed generation, on all ranks."""
    run, comm = session.run, session.comm
    said: list[Any] = []
    if run is not None:
        forked_at = run.attributes["forks"][-1]["generation"] if run.attributes["forks"] else 0
        said = [run.evaluations, run.attributes["events"], forked_at, run.num_generations]
    evaluations, events, session.first_generation, session.generation = comm.allgather_object(said)[0]
    # those before are another run's, from which this one was forked
    session.events = [Event(**event) for event in events if event["generation"] >= session.first_generation]
    for suite, rows in evaluations.items():
        session.results[suite].update({row["generation"]: row for row in rows})
    snapshots = session.snapshots.good() if session.snapshots is not None else iter(())
    session.digest = take_theta(session, run, session.generation, snapshots)
    if session.snapshots is not None:
        session.snapshots.tidy()
    if session.generation:
        left = session.config.es.generations - session.generation
        advice = f"{left} to go" if left else "none to go; a larger es.generations prolongs the run"
        if ended := next((event for event in session.events if event.action == "stop"), None):
            advice = f"where its guard has ended the run: {ended.reason}"
        log.info("resuming from generation %d, theta %016x, %s", session.generation, session.digest, advice)


def go_to(session: "Session", generation: int) -> None:
    """Collective. Take theta to an earlier generation of the run."""
    session.engine.weights.load(None)
    snapshots = iter(()) if session.run is None else good_snapshots(session.run, generation)
    session.digest = take_theta(session, session.run, generation, snapshots)


def take_theta(setup: "Setup", run: RunFile | None, generation: int, snapshots: Iterator[tuple[int, Path, int]]) -> int:
    """Collective. Take theta from the base model to a generation of a run; return its digest, which all ranks have.

    Theta must be the base model's. From the first of the snapshots that all can load, or else from there, each rank
    replays by itself.

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
    path = [] if run is None else run.steps_to(generation)
    first = _load_snapshot(setup, (found for found in snapshots if found[0] - 1 in path))
    steps = [] if run is None else steps_after(path, first)
    rows = [] if run is None else [run.members[i] for i in steps]
    # the noise of each stretch of generations, and how many they are
    noises = [] if run is None else [run.noise(i) for i in steps]
    stretches = [[asdict(settings), len(list(same))] for settings, same in groupby(noises)]
    # where members differ in number, the missing ones count nothing
    shape = (len(rows), max(map(len, rows), default=0))
    seeds, factors = np.zeros(shape, np.uint64), np.zeros(shape, np.float32)
    for i, members in enumerate(rows):
        seeds[i, : len(members)], factors[i, : len(members)] = members["seed"], members["coefficient"]
    shrinks = np.array([] if run is None else [run.generations[i]["shrink"] for i in steps], np.float32)
    seeds, factors, shrinks = (comm.broadcast_array(array) for array in (seeds, factors, shrinks))
    place = 0
    with Progress("generations replayed") as progress:
        for settings, count in comm.allgather_object(stretches)[0]:
            noise = NoiseSettings.from_json(settings).noise(setup.base)
            for i in range(place, place + count):
                engine.weights.update(seeds[i], factors[i], noise)
                if shrinks[i] != 1:
                    engine.weights.shrink(float(shrinks[i]), noise)
                progress(i + 1, len(seeds))
            place += count
    engine.weights.restore()
    digest = setup.agreed_digest()
    with comm.together():
        if run is not None and digest != run.digest_after(generation):
            raise UserError(
                f"replaying {run.path} gives theta {digest:016x}, but it recorded {run.digest_after(generation):016x}: "
                f"a machine computed wrongly, then or now. Run `esmpi replay {run.path} --verify` on another node"
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
