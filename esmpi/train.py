"""The training loop: one generation after another, the same on every rank."""

import logging
import math
import time
from concurrent.futures import Future

import numpy as np

from esmpi.data import batch
from esmpi.engines import Sampling
from esmpi.evaluate import evaluate
from esmpi.population import FAILED, OK, RECORD_DTYPE, check, pad, plan
from esmpi.scoring import Scored
from esmpi.session import Session
from esmpi.shaping import coefficients
from esmpi.stopwatch import Stopwatch
from esmpi.streams import stream_seed
from esmpi.tasks import Example

log = logging.getLogger(__name__)


def train(session: Session) -> None:
    """Collective. Run the generations that are left.

    Ends early, on all ranks alike, when any rank was asked to stop or the job's time is nearly over.
    """
    stop = evaluate_if_due(session, session.generation)
    snapshot_if_due(session, stop)
    while not stop and session.generation < session.config.es.generations:
        stop = run_generation(session) or evaluate_if_due(session, session.generation)
        snapshot_if_due(session, stop)
    if not session.finished:
        log.info(
            "%s: generation %d is committed, the same command goes on from it",
            session.stop_reason(),
            session.generation,
        )


def run_generation(session: Session) -> bool:
    """Collective. Take theta one generation on and commit it; return whether any rank wants to stop."""
    config, comm, engine, generation = session.config, session.comm, session.engine, session.generation
    watch = Stopwatch()
    members = plan(config.run.seed, generation, config.es.population_size, config.es.antithetic)
    examples = batch(config.data, session.problems.train, config.run.seed, generation)
    records = evaluate_members(session, members, examples, watch)
    with watch.phase("exchange"):
        gathered = comm.allgather_array(records)
    results = check(gathered, members)
    session.dispatch.learn(results["seconds"])
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
    """Collective. Perturb, generate and score this rank's members; return the records to exchange."""
    config, comm, engine = session.config, session.comm, session.engine
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
    # what this rank says even if it has no member: which theta it has
    blank = np.zeros(1, RECORD_DTYPE)
    blank["digest"], blank["rank"] = session.digest, comm.rank
    records = [blank[:0]]
    pending: list[Future[Scored]] = []
    with session.dispatch.members(len(members)) as mine:
        for member, seed, sign in (members[index].tolist() for index in mine):
            started = time.perf_counter()
            with watch.phase("perturb"):
                engine.perturb(seed, sign * config.es.sigma)
            with watch.phase("generate"):
                completions = [one for some, sampling in mini_batches for one in engine.generate(some, sampling)]
            record = blank.copy()
            record["member"], record["seed"], record["sign"] = member, seed, sign
            record["tokens"] = sum(completion.num_tokens for completion in completions)
            record["seconds"] = time.perf_counter() - started
            records.append(record)
            pending.append(session.scorer.submit(completions, examples))
        for record, future in zip(records[1:], pending, strict=True):
            scored = future.result()
            watch.add("score", scored.seconds)
            record["fitness"] = scored.fitness
            record["status"] = FAILED if math.isnan(scored.fitness) else OK
            for kind, count in scored.failures.items():
                record[f"score_{kind}"] = count
    with watch.phase("exchange"):
        length = session.dispatch.most_members(len(members), len(pending))
    padded = pad(np.concatenate(records), length, blank)
    padded["stop"] = session.wants_stop()
    return padded


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
    due = stop or generation == session.config.es.generations or (config.every and generation % config.every == 0)
    best = session.run.best() if config.best else None
    session.snapshots.save(
        generation,
        session.engine.tensors(),
        last=config.every is not None and generation > 0 and bool(due),
        best=best is not None and best["generation"] == generation > 0,
    )
