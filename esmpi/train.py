"""The training loop: one generation after another, the same on every rank."""

import logging
import time
from concurrent.futures import Future

import numpy as np

from esmpi.data.batch import batch
from esmpi.engines import Sampling
from esmpi.es.population import Members, check, message_dtype, plan
from esmpi.es.random_streams import stream_seed
from esmpi.es.shaping import coefficients
from esmpi.evaluate import evaluate
from esmpi.record.profile import gather_profile
from esmpi.scoring import FAILURES, Scored
from esmpi.session import Session
from esmpi.stopwatch import Stopwatch
from esmpi.tasks import Example

log = logging.getLogger(__name__)


def train(session: Session) -> None:
    """Collective. Run the generations that are left.

    Ends early, on all ranks alike, when any rank was asked to stop or the job's time is nearly over.
    """
    stop = evaluate_if_due(session, session.generation)
    snapshot_if_due(session, stop)
    last = session.config.es.generations
    profiled = min(session.generation + 1, last - 1) if session.config.run.profile else None  # the first one warms up
    while not stop and session.generation < last:
        if session.generation == profiled:
            stop = profile_generation(session)
        else:
            stop = run_generation(session, Stopwatch()) or evaluate_if_due(session, session.generation)
            snapshot_if_due(session, stop)
    session.recorder.wait()
    if not session.finished:
        log.info(
            "%s: generation %d is committed, the same command goes on from it",
            session.stop_reason(),
            session.generation,
        )


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
    """Collective. Take theta one generation on and commit it; return whether any rank wants to stop."""
    config, comm, engine, generation = session.config, session.comm, session.engine, session.generation
    with watch.phase("plan"):
        members = plan(config.run.seed, generation, config.es.population_size, config.es.antithetic)
        examples = batch(config.data, session.problems.train, config.run.seed, generation)
    message = evaluate_members(session, members, examples, watch)
    with watch.phase("exchange"):
        messages = comm.allgather_array(message)
    with watch.phase("shape"):
        results = check(messages, members)
        session.dispatch.learn(results)
        factors = coefficients(results["fitness"], members.signs, config.es.shaping, config.es.step_size)
    with watch.phase("update"):
        engine.update(members.seeds, factors)
    with watch.phase("digest"):
        # before the commit: what is committed is what all ranks have
        session.digest = session.agreed_digest()
    session.recorder.commit(generation, results, factors, session.digest, watch)
    session.generation += 1
    return bool(messages["stop"].any())


def evaluate_members(session: Session, members: Members, examples: list[Example], watch: Stopwatch) -> np.ndarray:
    """Collective. Perturb, generate and score this rank's members; return the message about it, () of message_dtype."""
    config, engine = session.config, session.engine
    prompts = [session.prompt(example) for example in examples]
    size = config.data.mini_batch_size or len(prompts)
    seed = stream_seed(config.run.seed, "sampling", session.generation)
    mini_batches = [
        (
            prompts[start : start + size],
            Sampling(
                max_tokens=config.sampling.max_tokens,
                temperature=config.sampling.temperature,
                top_p=config.sampling.top_p,
                # The same for all members, as the prompts are: their fitness differs by their weights alone. vLLM
                # counts on from here prompt by prompt, so that mini-batches change nothing.
                seed=(seed + start) % 2**63,
            ),
        )
        for start in range(0, len(prompts), size)
    ]
    mine: list[int] = []
    times: list[tuple[float, float, float]] = []  # of each: perturbing began, generating began, it ended
    tokens: list[int] = []
    pending: list[Future[Scored]] = []
    with session.dispatch.members(len(members)) as dealt:
        for index in dealt:
            session.recorder.check()  # what cannot be committed need not be gone on with
            began = time.perf_counter()
            engine.perturb(members.seeds.item(index), members.signs.item(index) * config.es.sigma)
            perturbed = time.perf_counter()
            completions = [one for some, sampling in mini_batches for one in engine.generate(some, sampling)]
            times.append((began, perturbed, time.perf_counter()))
            mine.append(index)
            tokens.append(sum(completion.num_tokens for completion in completions))
            pending.append(session.scorer.submit(completions, examples))
        with watch.phase("wait"):
            scores = [future.result() for future in pending]
    began_at, perturbed_at, ended_at = np.array(times, np.float64).reshape(-1, 3).T
    watch.add_all("perturb", began_at, perturbed_at)
    watch.add_all("generate", perturbed_at, ended_at)
    for scored in scores:
        for span in scored.spans:
            watch.add("score", *span)
    with watch.phase("exchange"):
        length = session.dispatch.most_members(len(members), len(mine))
    message = np.zeros((), message_dtype(length))
    message["digest"], message["stop"] = session.digest, session.wants_stop()
    for kind in FAILURES:
        message[f"score_{kind}"] = sum(scored.failures[kind] for scored in scores)
    message["member"] = -1
    columns = {"member": mine, "seed": members.seeds[mine], "sign": members.signs[mine], "seconds": ended_at - began_at}
    columns |= {"tokens": tokens, "fitness": [scored.fitness for scored in scores]}
    for name, column in columns.items():
        message[name][: len(mine)] = column
    return message


def evaluate_if_due(session: Session, generation: int) -> bool:
    """Collective. Evaluate theta of a generation on all suites if the config asks for it.

    Returns whether any rank was asked to stop meanwhile; what is then not evaluated yet is at the next start.
    """
    every, last = session.config.eval.every, session.config.es.generations
    if generation not in (session.first_generation, last) and (every is None or generation % every):
        return False
    for suite in session.problems.suites:
        if (suite, generation) in session.evaluated:
            continue
        session.evaluated.add((suite, generation))
        result, samples = evaluate(session, suite, generation)
        session.recorder.add_evaluation(suite, generation, result, samples)
        if session.comm.allgather_array(np.array([bool(session.stop)])).any():
            return True
    return False


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
        session.recorder.wait()  # theta of a generation that is not committed would be nobody's
        session.snapshots.save(generation, session.engine.tensors(), last=last, best=is_best)
