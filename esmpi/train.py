"""The training loop: one generation after another, the same on every rank."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from esmpi.batches import Batch, batches
from esmpi.config.problems import HELD_OUT
from esmpi.data.batch import in_parts
from esmpi.engines import Completion, Sampling
from esmpi.es.fitness import Fitness
from esmpi.es.guard import Event, alpha_factor, decide
from esmpi.es.member_columns import SENT
from esmpi.es.population import Members, Results, check, message_of, plan
from esmpi.es.schedules import alpha_at, sigma_at
from esmpi.es.shaping import coefficients, find_shaping
from esmpi.evaluate import evaluate, require_rewards
from esmpi.evaluated import Evaluated, gather_figures, gather_samples
from esmpi.progress import Progress
from esmpi.record.evaluation import Evaluation
from esmpi.record.profile import gather_profile
from esmpi.record.recorder import Step
from esmpi.recovery import check_weights, is_checked, repaired, surviving
from esmpi.resume import go_to
from esmpi.scoring import Scored
from esmpi.session import Session
from esmpi.stopwatch import Stopwatch
from esmpi.weights.model_weights import Perturbation
from esmpi.wording import counted

log = logging.getLogger(__name__)


def train(session: Session) -> None:
    """Collective. Run the generations that are left.

    Ends early, on all ranks alike, when any rank was asked to stop or the job's time is nearly over.
    """
    surviving(session, partial(_train, session))


def _train(session: Session) -> None:
    stop = evaluate_if_due(session, session.generation)
    snapshot_if_due(session, stop)
    last = session.config.es.generations
    if session.noise.rank and session.generation < last:
        wave_size = wave_size_for(session, batches(session)(0))
        log.info("waves: %s", "one member at a time" if wave_size == 1 else f"up to {wave_size} members at once")
    profiled = min(session.generation + 1, last - 1) if session.config.run.profile else None  # the first one warms up
    while not stop and session.generation < last and not guard(session):
        if session.generation == profiled:
            stop = profile_generation(session)
        else:
            stop = run_generation(session, Stopwatch()) or evaluate_if_due(session, session.generation)
            snapshot_if_due(session, stop)
    session.recorder.wait()
    if session.finished and session.config.guard.acts and not guard(session):
        event = next((event for event in session.events if event.generation == last), None) or decide_here(session)
        if event is not None:
            log.warning("guard at generation %d: %s: the best generation is exported", last, event.reason)
            session.guarded = True
    if session.finished and session.config.run.export_dtype != "none":
        session.exported = session.generation
        if session.guarded or session.config.run.export == "best":
            session.exported = session.best
            log.info(
                "generation %d%s is the best one on the held-out problems",
                session.exported,
                "" if session.exported else ", the base model,",
            )
        if session.exported != session.generation:
            go_to(session, session.exported)
    if not session.finished:
        log.info(
            "%s: theta of generation %d is committed; rerun the same command to resume",
            session.stop_reason(),
            session.generation,
        )


def guard(session: Session) -> bool:
    """Collective. Do what the guard says of theta's evaluation, if it was due; return whether it ends the run.

    What was done before is in the run file, and stays as it is: a generation depends on it.
    """
    config, generation = session.config, session.generation
    if not config.guard.acts:
        return False
    if is_due(session, generation) and not any(event.generation == generation for event in session.events):
        event = decide_here(session)
        if event is not None:
            log.warning("guard at generation %d: %s: %s", generation, event.reason, _DONE[event.action])
            session.events.append(event)
            session.recorder.add_event(event)
    session.alpha_factor = alpha_factor(config.guard, session.events)
    for event in session.events:
        if event.generation == generation and event.to is not None and generation < config.es.generations:
            session.recorder.wait()
            go_to(session, event.to)
            log.info("theta is that of generation %d again, %016x", event.to, session.digest)
    session.guarded = any(event.action == "stop" for event in session.events)
    return session.guarded


def decide_here(session: Session) -> Event | None:
    """Return what the guard does after the evaluation of theta as it is, None if it does nothing."""
    guard, generation = session.config.guard, session.generation
    due = {
        suite: {one: results for one, results in session.results[suite].items() if is_due(session, one)}
        for suite in (HELD_OUT, *session.config.eval.retention)
    }
    for suite, results in due.items():  # of the last generation there is an evaluation in any case
        if generation in session.results[suite]:
            results[generation] = session.results[suite][generation]
    return decide(guard, due.pop(HELD_OUT), due, session.events, generation)


def is_due(session: Session, generation: int) -> bool:
    """Return whether evaluations of a generation are made by `eval.every`, or the first ones of the run."""
    every = session.config.eval.every
    return generation == session.first_generation or (every is not None and generation % every == 0)


_DONE = {"stop": "the run ends here", "shrink": "alpha is reduced", "restore": "theta is taken back, alpha is reduced"}


def profile_generation(session: Session) -> bool:
    """Collective. Do what is done for a generation, and add to the run file when each rank did what."""
    generation = session.generation
    session.comm.barrier()  # all clocks begin here
    watch = Stopwatch(profiled=True)
    stop = run_generation(session, watch)
    with watch.phase("evaluate"):
        stop = stop or evaluate_if_due(session, session.generation)
    with watch.phase("snapshot"):
        snapshot_if_due(session, stop)
    session.recorder.wait()  # the commit is a part of the profile
    session.recorder.add_profile(gather_profile(session.comm, generation, watch))
    return stop


def run_generation(session: Session, watch: Stopwatch) -> bool:
    """Collective. Take theta one generation on and commit it; return whether any rank was asked to stop."""
    return repaired(session, lambda: _run_generation(session, watch))


def _run_generation(session: Session, watch: Stopwatch) -> bool:
    config, generation, weights = session.config, session.generation, session.engine.weights
    with watch.phase("plan"):
        members = plan(config.run.seed, generation, config.es.population_size, config.es.antithetic)
        batch_of = batches(session)
    control = begin_control(session, batch_of, watch)
    mine = evaluate_members(session, members, batch_of, watch)
    if is_checked(session, generation):
        with watch.phase("digest"):
            check_weights(session, f"generation {generation + 1}")
    with watch.phase("exchange"):
        messages = exchange(session, mine)
    with watch.phase("shape"):
        results = check(messages, members)
        if np.isnan(results["fitness"]).all():
            errors = [member.scores.result().error for member in mine]
            require_rewards(session, errors, f"generation {generation}")
        session.dispatch.learn(results)
        shaping = find_shaping(config.es.shaping, config.es)
        fitness = exchange_rewards(session, mine, results) if shaping.by_prompt else results["fitness"]
        figures = gather_figures(session, mine, messages, results)
        samples = gather_samples(session, mine, results)
        alpha = session.alpha_factor * alpha_at(config.es, generation)
        factors = coefficients(fitness, members.signs, shaping, alpha)
    with watch.phase("update"):
        weights.update(members.seeds, factors, session.noise)
        shrink = shrink_theta(session, alpha)
    with watch.phase("digest"):
        # before the commit: what is committed is what all ranks have
        session.digest = session.agreed_digest()
    theta_fitness = math.nan if control is None else control.result().fitness(Fitness.of(config))
    step = Step(
        coefficients=factors,
        sigma=sigma_at(config.es, generation),
        alpha=alpha,
        shrink=shrink,
        digest=session.digest,
        theta_fitness=theta_fitness,
    )
    session.recorder.commit(generation, results, step, watch, figures, samples)
    session.generation += 1
    return bool(messages["stop"].any())


def shrink_theta(session: Session, alpha: float) -> float:
    """Collective. Move theta towards the base model as the config says.

    Returns the factor of its distance from the base model, 1 if it is not moved: a float32, and rank 0's, as the
    distance is a sum whose last bit depends on the machine.
    """
    es, weights = session.config.es, session.engine.weights
    factor = 1 - alpha * es.anchor
    if es.max_distance is not None and (distance := weights.distance(session.noise)) * factor > es.max_distance:
        factor = es.max_distance / distance
    if es.max_distance is not None:
        factor = session.comm.allgather_object(factor)[0]
    factor = float(np.float32(factor))
    if factor != 1:
        weights.shrink(factor, session.noise)
    return factor


def begin_control(session: Session, batch_of: Callable[[int], Batch], watch: Stopwatch) -> "Future[Scored] | None":
    """Complete the prompts of a generation with theta itself, on rank 0 and if it is due, and begin to score.

    What theta completes and how is the same as for a member. If members have prompts of their own, those of the first
    one are taken.
    """
    every = session.config.eval.control_every
    if not session.comm.is_root or every is None or session.generation % every:
        return None
    todo, completions = batch_of(0), list[Completion]()
    with watch.phase("evaluate"):
        session.engine.weights.restore()
        for part in in_parts(range(len(todo.requests)), session.config.data.mini_batch_size):
            requests = [todo.requests[i] for i in part]
            completions += session.complete(requests, [todo.examples[i] for i in part], session.sampling)
    return session.begin_scoring(completions, todo.examples)


def evaluate_members(
    session: Session, members: Members, batch_of: Callable[[int], Batch], watch: Stopwatch
) -> list[Evaluated]:
    """Collective. Perturb, generate and begin to score, wave by wave; return this rank's, once all are scored.

    Scoring of one wave overlaps the next one's generation.
    """
    mine: list[Evaluated] = []
    times: list[tuple[float, float, float]] = []
    wave_size = wave_size_for(session, batch_of(0))
    most = -(-len(members) // session.comm.size)
    here = "" if session.comm.size == 1 else f" on rank {session.comm.rank}"
    with session.dispatch.waves(len(members), wave_size) as dealt:
        with Progress(f"members of generation {session.generation} evaluated{here}") as progress:
            for wave in dealt:
                session.recorder.check()  # stop early if the last commit failed
                evaluated, spent = evaluate_wave(session, wave, members, batch_of)
                mine += evaluated
                times.append(spent)
                progress(len(mine), max(most, len(mine)))
                if session.config.model.dtype == "float16" and session.noise.rank and len(times) == 1:
                    warn_of_overflow(session, "theta", "set model.dtype=float32")
        waiting = f"members of generation {session.generation} have their rewards{here}"
        with watch.phase("wait"), Progress(waiting) as progress:
            for number, member in enumerate(mine, 1):
                member.scores.result()
                progress(number, len(mine))
    began_at, perturbed_at, ended_at = np.array(times, np.float64).reshape(-1, 3).T
    watch.add_all("perturb", began_at, perturbed_at)
    watch.add_all("generate", perturbed_at, ended_at)
    for member in mine:
        for span in member.scores.result().spans:
            watch.add("score", *span)
    return mine


def warn_of_overflow(session: Session, whose: str, advice: str) -> None:
    """Warn if live weights are infinite, as float16 makes those that are too large for it."""
    if num_infinite := session.engine.weights.num_infinite():
        log.warning("%s: %s overflowed float16 to infinity: %s", whose, counted(num_infinite, "live weight"), advice)


def wave_size_for(session: Session, batch: Batch) -> int:
    """Return how many members the engine of this rank evaluates at once."""
    es = session.config.es
    part = batch.requests[: session.config.data.mini_batch_size]
    if session.task.takes_turns:
        prompt = session.prompt(batch.examples[0])  # the task begins the others in processes for rewards
        part = [replace(request, prompt=prompt) for request in part]
    most = -(-es.population_size // session.comm.size)
    return min(most, session.engine.wave_size(part, longest_sampling(session), session.noise))


def longest_sampling(session: Session) -> Sampling:
    """Return a sampling with as many tokens as the conversation of an episode may have besides its first prompt."""
    task, sampling, room = session.task, session.sampling, session.engine.max_length
    num_tokens = task.max_turns * sampling.max_tokens
    if task.max_episode_tokens is not None:
        num_tokens = min(num_tokens, task.max_episode_tokens + sampling.max_tokens)
    return replace(sampling, max_tokens=num_tokens if room is None else min(num_tokens, room))


def evaluate_wave(
    session: Session, wave: Sequence[int], members: Members, batch_of: Callable[[int], Batch]
) -> tuple[list[Evaluated], tuple[float, float, float]]:
    """Complete the prompts with the weights of some members at once, and begin to score the completions.

    Returns the members; and when perturbing began, when generating began, and when it ended, by `time.perf_counter`.
    """
    config, engine = session.config, session.engine
    todo = [batch_of(member) for member in wave]
    seeds, signs = ([column.item(member) for member in wave] for column in (members.seeds, members.signs))
    began = time.perf_counter()
    sigma = sigma_at(config.es, session.generation)
    engine.perturb([Perturbation(seed, sign * sigma, session.noise) for seed, sign in zip(seeds, signs, strict=True)])
    if config.model.dtype == "float16" and not session.noise.rank:
        warn_of_overflow(session, f"member {wave[0]}", "lower es.sigma, or set model.dtype=float32")
    perturbed = time.perf_counter()
    completions: list[list[Completion]] = [[] for _ in wave]
    for part in in_parts(range(len(todo[0].requests)), config.data.mini_batch_size):
        asked = [replace(its.requests[i], member=place) for place, its in enumerate(todo) for i in part]
        made = session.complete(asked, [its.examples[i] for its in todo for i in part], session.sampling)
        for place, done in enumerate(in_parts(made, len(part))):
            completions[place] += done
    times = (began, perturbed, time.perf_counter())
    seconds = (times[2] - began) / len(wave)
    evaluated, how = [], Fitness.of(config)
    for member, seed, sign, its, done in zip(wave, seeds, signs, todo, completions, strict=True):
        scores = session.begin_scoring(done, its.examples)
        tokens = sum(completion.num_tokens for completion in done)
        one = Evaluated(member, seed, sign, seconds, tokens, scores, how)
        one.keep(its, done, config.log.samples)
        evaluated.append(one)
    return evaluated, times


def exchange(session: Session, mine: Sequence[Evaluated]) -> np.ndarray:
    """Collective. Send what this rank has evaluated; return the messages of all ranks, (ranks,) of message_dtype."""
    failures = Counter[str]()
    for member in mine:
        failures.update(member.scores.result().failures)
    columns = {column.name: [getattr(member, column.name) for member in mine] for column in SENT}
    length = session.dispatch.most_members(session.config.es.population_size, len(mine))
    message = message_of(length, session.digest, session.wants_stop(), failures, columns)
    message["figures"] = any(score.figures for member in mine for score in member.scores.result().scores)
    return session.comm.allgather_array(message)


def exchange_rewards(session: Session, mine: Sequence[Evaluated], results: Results) -> np.ndarray:
    """Collective. Send this rank's members' rewards for each prompt; return those of all, (N, prompts) float64."""
    length = session.dispatch.most_members(len(results), len(mine))
    rewards = np.full((length, session.config.data.batch_size), np.nan)
    for row, member in zip(rewards, mine, strict=False):
        row[:] = member.prompt_rewards
    return results.by_member(session.comm.allgather_array(rewards))


def evaluate_if_due(session: Session, generation: int) -> bool:
    """Collective. Evaluate theta of a generation on all suites if the config asks for it.

    Returns whether any rank was asked to stop meanwhile; what is then not evaluated yet is at the next start.
    """
    if not is_due(session, generation) and generation != session.config.es.generations:
        return False
    for suite in session.problems.suites:
        if generation in session.results[suite]:
            continue
        result, samples = repaired(session, partial(_evaluate, session, suite, generation))
        session.results[suite][generation] = result.to_row()
        session.recorder.add_evaluation(suite, generation, result, samples)
        if session.comm.allgather_array(np.array([bool(session.stop)])).any():
            return True
    return False


def _evaluate(session: Session, suite: str, generation: int) -> tuple[Evaluation, list[dict[str, Any]]]:
    result = evaluate(session, suite, generation)
    if session.config.engine.check_every:
        check_weights(session, f"evaluation of {suite} at generation {generation}")
    return result


def snapshot_if_due(session: Session, stop: bool) -> None:
    """Begin to write theta beside the run, on rank 0, if the config asks for it at this generation."""
    if session.snapshots is None or session.run is None:
        return
    config, generation = session.config.snapshot, session.generation
    end = stop or generation == session.config.es.generations
    last = config.every is not None and generation > 0 and (end or generation % config.every == 0)
    best = session.run.best() if config.best else None
    is_best = best is not None and best["generation"] == generation > 0
    if last or is_best:
        session.recorder.wait()  # a snapshot must not be ahead of what is committed
        session.snapshots.save(generation, session.engine.weights.tensors(), last=last, best=is_best)
