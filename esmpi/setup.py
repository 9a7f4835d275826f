"""Set up a run: model, problems, engine, run directory."""

import logging
import os
import reprlib
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from esmpi.config.differences import differences
from esmpi.config.problems import HELD_OUT, ScoringConfig
from esmpi.config.sections import Config
from esmpi.data.problems import load_problems
from esmpi.engines import Request, Sampling, Waves, engine_config, engine_packages
from esmpi.engines.base import require_numbers
from esmpi.errors import SharedError, UserError
from esmpi.es.dispatch import DISPATCHES
from esmpi.es.fitness import Fitness
from esmpi.files import clean_up, locked
from esmpi.harness import open_suites
from esmpi.identity import Digests, digest_of
from esmpi.launch.gpus import shared_gpus
from esmpi.masking import masked_text
from esmpi.model.base_model import BaseModel
from esmpi.model.find import fetch_model
from esmpi.model.noise_settings import NoiseSettings
from esmpi.model.staging import stage, staged_path
from esmpi.mpi.comm import Comm, Place
from esmpi.noise.format import Noise
from esmpi.plugins import digest_of_code, file_named_by
from esmpi.progress import AboveProgress, Progress
from esmpi.provenance import provenance
from esmpi.record.recorder import Recorder
from esmpi.resume import catch_up, open_run_file
from esmpi.scoring import Scorer, open_scorer
from esmpi.session import Session, Setup
from esmpi.stop.signals import StopFlag
from esmpi.stop.time_limit import TimeLimit, job_end
from esmpi.stopwatch import Stopwatch
from esmpi.store.snapshot_keeper import SnapshotKeeper
from esmpi.tasks import Task, make_task
from esmpi.wording import counted, visible

log = logging.getLogger(__name__)

_PATIENCE_S = 120.0
"""How long a requeued job waits for its earlier processes to release the run directory."""


def open_setup(
    config: Config,
    comm: Comm,
    stack: ExitStack,
    waves_of: Callable[[Noise], Waves] | None = None,
    noise: NoiseSettings | None = None,
    voting: str | None = None,
    share_theta: bool = False,
) -> Setup:
    """Collective. Load problems, model and engine, and start what scores.

    Parameters
    ----------
    config : Config
    comm : Comm
    stack : ExitStack
        Takes what has to be closed at the end.
    waves_of : callable, optional
        Returns the members that will be evaluated, from their noise; None if none will be.
    noise : NoiseSettings, optional
        Of the members, if it is not that of the config.
    voting : str, optional
        What lets completions vote, for messages. The scorer is then asked for their answers, too.
    share_theta : bool
        Whether ranks of a node have one theta together: all of them then have to change it together.
    """
    watch = Stopwatch()
    place = comm.place()
    with comm.together():
        task = make_task(config.task)
        if voting is not None and not task.has_answers:
            raise UserError(
                f"{voting}: task {config.task.name} does not say what the answer of a completion is, so completions "
                f"cannot vote: give it a function `answer(completion, example)`, or choose another task"
            )
        default = ScoringConfig()
        for name in ("concurrency", "retries", "rate_limit"):
            if not task.is_async and getattr(config.scoring, name) != getattr(default, name):
                raise UserError(
                    f"scoring.{name}: has no effect: no reward of task {config.task.name} is a coroutine (async def)"
                )
    for name in ("time_limit_s", "memory_gib"):
        own, limit = getattr(config.task, name, 0.0), getattr(config.scoring, name)
        if own >= limit:  # what the task starts is within the process that scores
            raise SharedError(f"task.{name}: must be below scoring.{name}, {limit:g}, got {own:g}")
    # by the source that was read just now: a process that is started in a week does not read another one
    make = partial(make_task, config.task, task.source)

    def start(make_task: Callable[[], Task], num_pools: int) -> Scorer:
        with_answers = voting is not None
        return Scorer(make_task, config.scoring, with_answers, task.scope, task.is_async, num_pools, task.takes_turns)

    scorer = open_scorer(start, make, config.scoring.per_node, comm, place, stack)
    with watch.phase("model"), Progress("fetching the model"):
        model = _model_folder(config, comm, place)
    with comm.together():
        problems = load_problems(config.data, task, config.run.seed, config.eval.sources)
        harness = open_suites(config.eval)
        problems.suites.update({name: suite.examples for name, suite in harness.items()})
        base = BaseModel(model)
    if share_theta:
        # of the addresses only: an engine may hold a tensor more than once
        place = comm.share_memory(place, 2 * 4 * base.num_weights)
    with comm.together():
        with watch.phase("engine"), Progress("loading the model, compiling and testing"):
            members_noise = (noise or NoiseSettings.of(asdict(config.es))).noise(base)
            waves = waves_of(members_noise) if waves_of is not None else None
            engine = engine_config(config).open(config.model, base, place, waves)
        setup = Setup(
            config=config,
            comm=comm,
            base=base,
            engine=engine,
            task=task,
            problems=problems,
            scorer=scorer,
            noise=members_noise,
            harness=harness,
        )
        _check_prompts(setup)
        _check_numbers(setup, comm)
    if place.memory is not None and not place.memory.num_taken:
        log.warning("engine.share_theta: has no effect, as theta is not in host memory")
    everyone = comm.allgather_object([place.host, engine.gpus()])
    for trouble in shared_gpus(*zip(*everyone, strict=True)) if comm.is_root else []:
        log.warning("%s: each gets a part of its time and memory", trouble)
    log.info(
        "%s: %s, %s x %s, %s, ready in %.1f s (%s)",
        config.run.name,
        counted(engine.weights.num_weights, "weight"),
        counted(comm.size, "rank"),
        counted(config.engine.num_threads or len(place.cores), "thread"),
        counted(config.es.population_size, "member"),
        watch.total(),
        ", ".join(f"{name} {seconds:.1f} s" for name, seconds in watch.seconds.items()),
    )
    return setup


def open_trial(config: Config, comm: Comm, stack: ExitStack) -> Session:
    """Collective. Put everything in place to evaluate members of the base model, without a run."""
    _agree_on_config(config, comm)
    setup = _open_for_members(config, comm, stack)
    recorder = Recorder(None, 0)
    stack.callback(recorder.close)
    dispatch = stack.enter_context(DISPATCHES[config.es.dispatch](comm))
    return Session(**vars(setup), recorder=recorder, dispatch=dispatch, stop=StopFlag(), run=None, snapshots=None)


def open_session(config: Config, comm: Comm, stack: ExitStack, stop: StopFlag) -> Session:
    """Collective. Put everything in place, with theta of the run's last committed generation.

    `stack` takes what has to be closed at the end; `stop` is asked for in the loop.
    """
    _agree_on_config(config, comm)
    with comm.together():
        if config.run.on_rank_loss == "shrink":
            comm.survive()
    with comm.together():
        if comm.is_root:
            # processes of the job's earlier start may take a while to die, or to be known as dead on a file server
            stack.enter_context(locked(config.directory, _PATIENCE_S if "SLURM_RESTART_COUNT" in os.environ else 0.0))
            clean_up(config.directory)
    setup = _open_for_members(config, comm, stack)
    digests = agreed_digests(setup)
    noise = NoiseSettings.of(asdict(config.es))
    run = None
    with comm.together():
        if comm.is_root:
            run = open_run_file(config, setup.engine, digests)
            start = provenance(comm.size, (*engine_packages(config), *(["lm_eval"] if setup.harness else [])))
            start["noise"] = noise.describe(setup.base)
            run.attributes["provenance"].append(start)
            run.write()
        recorder = Recorder(run, config.es.generations, config.log.sinks, comm.size)
    stack.callback(recorder.close)
    dispatch = stack.enter_context(DISPATCHES[config.es.dispatch](comm))
    snapshots = None
    if run is not None:
        snapshots = SnapshotKeeper(run, config.snapshot.keep)
        stack.callback(snapshots.close)
    session = Session(**vars(setup), recorder=recorder, dispatch=dispatch, stop=stop, run=run, snapshots=snapshots)
    session.digest = session.agreed_digest()
    log.info("base model: theta %016x", session.digest)
    log.info("noise: %s", noise.describe(session.base))
    started = time.perf_counter()
    catch_up(session)
    if session.generation:
        log.info("resumed in %.1f s", time.perf_counter() - started)
    reserve_s = config.run.stop_before_limit
    if comm.is_root and reserve_s is not None:
        session.time_limit = TimeLimit(job_end(), reserve_s)
    return session


def _open_for_members(config: Config, comm: Comm, stack: ExitStack) -> Setup:
    how = Fitness.of(config)
    voting = f"es.fitness: {how.kind}" if how.needs_answers else None
    waves = partial(_waves, config, comm)
    return open_setup(config, comm, stack, waves, voting=voting, share_theta=config.engine.share_theta)


def _waves(config: Config, comm: Comm, noise: Noise) -> Waves:
    es, all_at_once = config.es, config.completions_per_member
    return Waves(
        noise=noise,
        num_prompts=min(config.data.mini_batch_size or all_at_once, all_at_once),
        num_members=-(-es.population_size // comm.size),
    )


def _model_folder(config: Config, comm: Comm, place: Place) -> Path:
    """Collective. Return the folder that this rank reads the model from: see `model.stage_to`."""
    with comm.together():
        folder = fetch_model(config.model.path, config.model.revision)
        if config.model.stage_to is None:
            return folder
        staged = staged_path(folder, config.model.stage_to)
        if place.local_rank == 0:
            stage(folder, staged)
    return staged


class _Formatter(logging.Formatter):
    """Lets nothing act on a terminal that stands in a name or in what a model wrote, and leaves out secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(masked_text(super().format(record)))


def start_logging(level: str, comm: Comm) -> None:
    """Send esmpi's messages to standard output: all of rank 0's, and warnings of the others with their number."""
    logging.raiseExceptions = False  # a closed pipe is no reason to stop, nor for tracebacks
    handler = AboveProgress(sys.stdout)
    handler.setFormatter(_Formatter("%(message)s" if comm.is_root else f"[rank {comm.rank}] %(message)s"))
    logger = logging.getLogger("esmpi")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level.upper() if comm.is_root else max(logging.WARNING, logging.getLevelName(level.upper())))


def _agree_on_config(config: Config, comm: Comm) -> None:
    first, *others = comm.allgather_object(config.to_dict())
    for rank, other in enumerate(others, 1):
        if changed := [str(difference) for difference in differences(first, other)]:
            raise SharedError(f"rank {rank} has another config than rank 0: {'; '.join(changed)}")


def _digest_of_task(setup: Setup) -> str:
    path = file_named_by(setup.config.task.name)
    return digest_of_code(path, setup.task.source) if path is not None and setup.task.source else ""


def agreed_digests(setup: Setup) -> Digests:
    """Collective. Return digests of problems and task.

    Raises
    ------
    SharedError
        If ranks read different problems, or another task file.
    """
    problems = setup.problems
    decisive = [problems.train, problems.held_out, *([problems.shots] if problems.shots else [])]
    mine = Digests(
        data=digest_of(decisive),
        suites={suite: digest_of(examples) for suite, examples in problems.suites.items()},
        task=_digest_of_task(setup),
    )
    gathered = setup.comm.allgather_object(asdict(mine))
    for rank, other in enumerate(gathered):
        if other["task"] != gathered[0]["task"]:
            name = setup.config.task.name
            raise SharedError(f"task.name: rank {rank} reads another {name} than rank 0: is it the same on its node?")
        if other != gathered[0]:
            raise SharedError(f"data: rank {rank} reads other problems than rank 0: is the file the same on its node?")
    return mine


def _check_prompts(setup: Setup) -> None:
    """Raise UserError for a prompt that the model has no room for, or a sampling that it cannot do.

    Now, not in the middle of a run.
    """
    config, engine = setup.config, setup.engine
    for temperature in (config.sampling.temperature, config.eval.temperature):
        engine.check(Sampling.at(temperature, config.sampling))
    for suite in setup.harness.values():
        suite.check(engine)
    suites = {
        "data.eval" if suite == HELD_OUT else f"eval.suites: {suite}": examples
        for suite, examples in setup.problems.suites.items()
        if suite not in setup.harness
    }
    for part, examples in {"data.train": setup.problems.train, **suites}.items():
        lengths = engine.prompt_lengths([setup.prompt(example) for example in examples])
        for example, length in zip(examples, lengths, strict=True):
            if length == 0:
                raise UserError(f"model.path: {config.model.path} has no tokenizer that reads the prompts")
            if engine.max_length is not None and length + config.sampling.max_tokens > engine.max_length:
                raise UserError(
                    f"sampling.max_tokens: a prompt of {length} tokens ({part}: {reprlib.repr(example)}) and "
                    f"{config.sampling.max_tokens} new ones are more than the model's {engine.max_length} positions"
                )


def _check_numbers(setup: Setup, comm: Comm) -> None:
    """Warn of live weights that overflowed; raise UserError if the base model's outputs are not numbers."""
    model, engine, problems = setup.config.model, setup.engine, setup.problems
    # float32 holds what the checkpoint holds
    if model.dtype != "float32" and (num_infinite := engine.weights.num_infinite()):
        count = counted(num_infinite, "live weight")
        tell = log.warning if comm.is_root else log.info  # all ranks have the same
        tell("theta: %s overflowed %s to infinity: set model.dtype=float32", count, model.dtype)
    own = [examples for suite, examples in problems.suites.items() if suite not in setup.harness]
    if first := next(filter(None, (problems.train, *own)), None):
        prompt = setup.prompt(first[0])
        said = engine.generate([Request(prompt=prompt)], Sampling(max_tokens=1))
        [logprobs] = engine.logprobs([prompt], said)
        require_numbers(logprobs, model, setup.base)
