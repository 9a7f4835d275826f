"""The training loop: one generation after another, the same on every rank."""

import logging
import math
import time
from concurrent.futures import Future

import numpy as np

from esmpi.data import batch
from esmpi.engines import Sampling
from esmpi.evaluate import evaluate
from esmpi.population import FAILED, OK, RECORD_DTYPE, check, pad, plan, shard
from esmpi.scoring import Scored
from esmpi.session import SUITE, Session
from esmpi.shaping import coefficients
from esmpi.stopwatch import Stopwatch
from esmpi.streams import stream_seed
from esmpi.tasks import Example

log = logging.getLogger(__name__)


def train(session: Session) -> None:
    """Collective. Run the generations that are left.

    Ends early, on all ranks alike, when any rank was asked to stop.
    """
    evaluate_if_due(session, session.generation)
    while session.generation < session.config.es.generations:
        stop = run_generation(session)
        if stop:
            log.info("asked to stop: generation %d is committed, the same command goes on from it", session.generation)
            return
        evaluate_if_due(session, session.generation)


def run_generation(session: Session) -> bool:
    """Collective. Take theta one generation on and commit it; return whether any rank was asked to stop."""
    config, comm, engine, generation = session.config, session.comm, session.engine, session.generation
    watch = Stopwatch()
    members = plan(config.run.seed, generation, config.es.population_size, config.es.antithetic)
    examples = batch(config.data, session.problems.train, config.run.seed, generation)
    records = evaluate_members(session, members, examples, watch)
    with watch.phase("exchange"):
        gathered = comm.allgather_array(records)
    results = check(gathered, members)
    failed = results["status"] == FAILED
    factors = coefficients(results["fitness"], failed, results["sign"], config.es.shaping, config.es.step_size)
    with watch.phase("update"):
        engine.update(members["seed"], factors)
        # before the commit: what is committed is what all ranks have
        session.digest = session.agreed_digest()
    session.recorder.commit(generation, results, factors, session.digest, watch)
    session.generation += 1
    return bool(gathered["stop"].any())


def evaluate_members(session: Session, members: np.ndarray, examples: list[Example], watch: Stopwatch) -> np.ndarray:
    """Perturb, generate and score for each member of this rank's shard; return the records to exchange."""
    config, comm, engine = session.config, session.comm, session.engine
    prompts = [session.task.prompt(example) for example in examples]
    size = config.data.mini_batch_size or len(prompts)
    mini_batches = [
        (
            prompts[start : start + size],
            Sampling(
                max_tokens=config.sampling.max_tokens,
                temperature=config.sampling.temperature,
                top_p=config.sampling.top_p,
                # the same for all members, as the prompts are: their fitness differs by their weights alone
                seed=stream_seed(config.run.seed, "sampling", session.generation, start),
            ),
        )
        for start in range(0, len(prompts), size)
    ]
    # what this rank says even if it has no member: which theta it has
    blank = np.zeros(1, RECORD_DTYPE)
    blank["digest"], blank["rank"] = session.digest, comm.rank
    mine = members[list(shard(len(members), comm.rank, comm.size))]
    records = np.repeat(blank, len(mine))
    pending: list[Future[Scored]] = []
    for record, (member, seed, sign) in zip(records, mine.tolist(), strict=True):
        started = time.perf_counter()
        with watch.phase("perturb"):
            engine.perturb(seed, sign * config.es.sigma)
        with watch.phase("generate"):
            completions = [one for some, sampling in mini_batches for one in engine.generate(some, sampling)]
        record["member"], record["seed"], record["sign"] = member, seed, sign
        record["tokens"] = sum(completion.num_tokens for completion in completions)
        record["seconds"] = time.perf_counter() - started
        pending.append(session.scorer.submit(completions, examples))
    for record, future in zip(records, pending, strict=True):
        scored = future.result()
        watch.add("score", scored.seconds)
        record["fitness"] = scored.fitness
        record["status"] = FAILED if math.isnan(scored.fitness) else OK
        record["score_failures"] = scored.failures
    padded = pad(records, len(members), comm.size, blank)
    padded["stop"] = bool(session.stop)
    return padded


def evaluate_if_due(session: Session, generation: int) -> None:
    """Collective. Evaluate theta of a generation on the held-out problems if the config asks for it."""
    every, last = session.config.eval.every, session.config.es.generations
    due = generation in (0, last) or (every is not None and generation % every == 0)
    if not due or generation in session.evaluated:
        return
    session.evaluated.add(generation)
    result, samples = evaluate(
        session.config,
        session.comm,
        session.engine,
        session.task,
        session.scorer,
        session.problems.held_out,
        generation,
    )
    session.recorder.add_evaluation(SUITE, generation, result, samples)
