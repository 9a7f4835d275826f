"""All that a run works with, and how it is put in place: model, problems, run directory, resumed theta."""

import hashlib
import json
import logging
import os
import platform
import reprlib
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from esmpi.checkpoint import Checkpoint, fetch_model
from esmpi.comm import Comm
from esmpi.config import Config, changed_keys
from esmpi.data import Problems, load_problems
from esmpi.engines import Engine, load_engine
from esmpi.errors import SharedError, UserError
from esmpi.launch.signals import StopFlag
from esmpi.population import ExchangeError, describe_digests
from esmpi.recorder import Recorder
from esmpi.scoring import Scorer
from esmpi.store.export import export
from esmpi.store.files import locked
from esmpi.store.run_file import RunFile
from esmpi.tasks import TASKS, Task

log = logging.getLogger(__name__)

SUITE = "held_out"
"""Name of the suite that the held-out problems make."""

MAY_CHANGE = (
    *("engine.", "eval.every", "log.", "es.generations", "run.output_dir", "run.export_dtype"),
    # where model and problems lie does not matter: their digests tell whether they are the same
    *("model.path", "model.revision", "model.trust_remote_code", "data.train", "data.eval"),
)
"""Sections and keys that the next start of a run may have otherwise."""


@dataclass(kw_only=True)
class Session:
    """What the loop works with. All ranks have the same, but only rank 0 has the run file."""

    config: Config
    comm: Comm
    checkpoint: Checkpoint
    engine: Engine
    task: Task
    problems: Problems
    scorer: Scorer
    recorder: Recorder
    stop: StopFlag
    run: RunFile | None
    """On rank 0 only."""
    generation: int = 0
    """Of theta: how many updates it has had."""
    digest: int = 0
    """Of theta."""
    evaluated: set[int] = field(default_factory=set)
    """Generations that were evaluated before."""

    def agreed_digest(self) -> int:
        """Collective. Return theta's digest; raise ExchangeError, naming the ranks, unless all have the same."""
        digests = self.comm.allgather_array(np.array([self.engine.digest()], np.uint64))[:, 0].tolist()
        if len(set(digests)) > 1:
            raise ExchangeError(describe_digests(digests))
        return int(digests[0])

    def finish(self) -> None:
        """Export theta as a model folder, on rank 0, if the run has all its generations."""
        if self.run is None or self.generation < self.config.es.generations:
            return
        dtype = self.config.run.export_dtype
        if dtype != "none":
            out = self.config.directory / "model"
            export(
                self.checkpoint,
                self.engine.tensors(),
                self.engine.aliases(),
                out,
                dtype,
                self.run.describe(self.generation),
            )
            log.info("theta of generation %d exported to %s (%s)", self.generation, out, dtype)
        log.info("done: %s, theta %016x", self.run.path, self.run.theta_digest)


def open_session(config: Config, comm: Comm, stack: ExitStack) -> Session:
    """Collective. Put everything in place, with theta of the run's last committed generation.

    `stack` takes what has to be closed at the end.
    """
    started = time.perf_counter()
    _agree_on_config(config, comm)
    stop = StopFlag()
    stop.install()
    with comm.together():
        if comm.is_root:
            stack.enter_context(locked(config.directory))
    place = comm.place()
    with comm.together():
        task = TASKS[config.task.name](config.task)
        problems = load_problems(config.data, task, config.run.seed)
        checkpoint = Checkpoint(fetch_model(config.model.path, config.model.revision))
        engine = load_engine(config, checkpoint, place)
        _check_prompts(config, engine, task, problems)
    data_digest = _agreed_data_digest(comm, problems)
    run = None
    with comm.together():
        if comm.is_root:
            run = _open_run(config, comm, engine, data_digest)
        recorder = Recorder(run, config.es.generations, config.log.sinks)
    stack.callback(recorder.close)
    session = Session(
        config=config,
        comm=comm,
        checkpoint=checkpoint,
        engine=engine,
        task=task,
        problems=problems,
        scorer=Scorer(task),
        recorder=recorder,
        stop=stop,
        run=run,
    )
    session.digest = session.agreed_digest()
    log.info(
        "%s: %s weights, theta %016x, %d ranks x %d threads, %d members, ready in %.1f s",
        config.run.name,
        f"{engine.num_weights:,}",
        session.digest,
        comm.size,
        config.engine.num_threads or len(place.cores),
        config.es.population_size,
        time.perf_counter() - started,
    )
    _catch_up(session)
    return session


def start_logging(level: str, comm: Comm) -> None:
    """Send esmpi's messages to standard output: all of rank 0's, and warnings of the others with their number."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s" if comm.is_root else f"[rank {comm.rank}] %(message)s"))
    logger = logging.getLogger("esmpi")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level.upper() if comm.is_root else max(logging.WARNING, logging.getLevelName(level.upper())))


def _agree_on_config(config: Config, comm: Comm) -> None:
    said = comm.allgather_object(config.to_dict())
    for rank, other in enumerate(said):
        if changed := changed_keys(said[0], other):
            raise RuntimeError(f"rank {rank} has another config than rank 0: {'; '.join(changed)}")


def _agreed_data_digest(comm: Comm, problems: Problems) -> str:
    """Collective. Return a digest of all problems; raise if ranks read different ones."""
    text = json.dumps([problems.train, problems.held_out], sort_keys=True)
    digests = comm.allgather_object(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise SharedError(f"data: rank {rank} reads other problems than rank 0: is the file the same on its node?")
    return str(digests[0])


def _check_prompts(config: Config, engine: Engine, task: Task, problems: Problems) -> None:
    """Raise UserError for a prompt that the model has no room for: now, not in the middle of a run."""
    for part, examples in (("train", problems.train), ("eval", problems.held_out)):
        lengths = engine.prompt_lengths([task.prompt(example) for example in examples])
        for example, length in zip(examples, lengths, strict=True):
            if length == 0:
                raise UserError(f"model.path: {config.model.path} has no tokenizer that reads the prompts")
            if engine.max_length is not None and length + config.sampling.max_tokens > engine.max_length:
                raise UserError(
                    f"sampling.max_tokens: a prompt of {length} tokens (data.{part}: {reprlib.repr(example)}) and "
                    f"{config.sampling.max_tokens} new ones are more than the model's {engine.max_length} positions"
                )


def _open_run(config: Config, comm: Comm, engine: Engine, data_digest: str) -> RunFile:
    """Read the run file that is there, or start one."""
    path = config.directory / "run.h5"
    resolved, digest = config.to_dict(), engine.digest()
    if path.exists():
        run = RunFile.open(path)
        changed = changed_keys(run.attributes["config"], resolved)
        may_change = MAY_CHANGE if config.sampling.temperature > 0 else (*MAY_CHANGE, "data.mini_batch_size")
        refused = [line for line in changed if not line.startswith(may_change)]
        if refused:
            raise UserError(
                f"{path.parent} holds a run with another config; choose another run.name, or go back to what "
                f"it had:\n  " + "\n  ".join(refused)
            )
        if run.attributes["model_digest"] != digest:
            raise UserError(
                f"{path.parent} holds a run of another base model: digest {run.attributes['model_digest']:016x}, "
                f"{config.model.path} has {digest:016x}"
            )
        if run.attributes["data_digest"] != data_digest:
            raise UserError(
                f"data.train, data.eval: {path.parent} holds a run on other problems, or on the same in another order"
            )
        if run.num_generations > config.es.generations:
            raise UserError(
                f"es.generations: {path.parent} already has {run.num_generations} generations, "
                f"more than {config.es.generations}"
            )
        run.attributes["config"] = resolved
    else:
        names = [name for name, _ in engine.tensors()]
        run = RunFile.create(path, resolved, digest, data_digest, names, engine.aliases())
    run.attributes["provenance"].append(_provenance(comm))
    run.write()
    return run


def _catch_up(session: Session) -> None:
    """Collective. Take theta from the base model to the last committed generation, on all ranks by themselves."""
    run, comm = session.run, session.comm
    population_size = session.config.es.population_size
    seeds, factors = np.empty((0, population_size), np.uint64), np.empty((0, population_size), np.float32)
    if run is not None and run.num_generations:
        seeds = np.stack([members["seed"] for members in run.members])
        factors = np.stack([members["coefficient"] for members in run.members])
    said = [] if run is None else [row["generation"] for row in run.evaluations.get(SUITE, ())]
    session.evaluated = set(comm.allgather_object(said)[0])
    seeds, factors = comm.broadcast_array(seeds), comm.broadcast_array(factors)
    for generation in range(len(seeds)):
        session.engine.update(seeds[generation], factors[generation])
    session.generation = len(seeds)
    session.engine.restore()
    session.digest = digest = session.agreed_digest()
    with comm.together():
        if run is not None and digest != run.theta_digest:
            raise UserError(
                f"replaying {run.path} gives theta {digest:016x}, but it recorded {run.theta_digest:016x}: "
                f"a machine computed wrongly, then or now. Start a new run (run.name), or restore a backup"
            )
    if run is not None and run.num_generations:
        left = session.config.es.generations - session.generation
        advice = f"{left} to go" if left else "none to go; a larger es.generations prolongs the run"
        log.info("going on from generation %d, theta %016x, %s", session.generation, digest, advice)


def _provenance(comm: Comm) -> dict[str, Any]:
    """Return who, where and with what this start of the run is made."""
    packages = {}
    for name in ("esmpi", "numpy", "numba", "torch", "transformers", "h5py", "mpi4py"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    slurm = {key: value for key, value in os.environ.items() if key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")}
    return {
        "unix_time": time.time(),
        "command": sys.argv,
        "host": platform.node(),
        "ranks": comm.size,
        "python": platform.python_version(),
        "packages": packages,
        "slurm": slurm,
        "source_sha256": _source_digest(),
    }


def _source_digest() -> str:
    """Return a digest of esmpi's own source: two runs with the same one ran the same program."""
    import esmpi

    root = os.path.dirname(esmpi.__file__)
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                with open(os.path.join(folder, name), "rb") as file:
                    digest.update(json.dumps([os.path.relpath(file.name, root)]).encode() + file.read())
    return digest.hexdigest()
