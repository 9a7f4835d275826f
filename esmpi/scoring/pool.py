"""The pool of processes that score: a thread feeds each of them, and replaces it when it is lost."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from esmpi.config.problems import ScoringConfig
from esmpi.scoring.process import Process, Result, Unit
from esmpi.scoring.scored import Scored
from esmpi.tasks import Progress, Sample, Scope, Score, Task
from esmpi.wording import counted

log = logging.getLogger(__name__)

_CHUNK = 32
"""Completions that a process gets at once: enough to hide the pipe, few enough to share out evenly."""


@dataclass
class _Batch:
    """Completions that were submitted together."""

    scored: Scored
    future: "Future[Scored]"
    left: int
    first_failed: int
    """The place of the first completion that failed so far; as many as there are if none has."""


@dataclass
class _Chunk:
    """A part of a batch."""

    batch: _Batch
    places: Sequence[int]
    """Of the units' samples in the batch."""
    units: list[Unit]
    progress: Progress


class Scorer:
    """A pool of processes that score.

    Parameters
    ----------
    make_task : callable
        Makes the task in each process. It is pickled.
    config : ScoringConfig
    with_answers : bool
        Whether to ask the task for the answers, too. It must have some.
    scope : Scope
        The task's.
    is_async : bool
        Whether the task has coroutines.
    num_pools : int
        How many pools share the rate limit.
    takes_turns : bool
        Whether samples are turns of episodes. Each episode has a process of its own, which knows what came before.
    """

    def __init__(
        self,
        make_task: Callable[[], Task],
        config: ScoringConfig,
        with_answers: bool = False,
        scope: Scope = "completion",
        is_async: bool = False,
        num_pools: int = 1,
        takes_turns: bool = False,
    ):
        num_processes = num_pools * config.num_processes
        self._start_process = partial(Process, make_task, config, num_processes, with_answers)
        self._config, self._scope, self._is_async = config, scope, is_async
        self._takes_turns = takes_turns
        shared: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._queues = [queue.SimpleQueue() if takes_turns else shared for _ in range(config.num_processes)]
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._death_is_known = False
        self._threads = [
            threading.Thread(target=self._run, args=(self._queues[i],), daemon=True, name=f"esmpi-scorer-{i}")
            for i in range(config.num_processes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, samples: Sequence[Sample], group_size: int = 1, progress: Progress | None = None
    ) -> "Future[Scored]":
        """Start scoring completions.

        Parameters
        ----------
        samples : sequence of Sample
            With the scope "batch", the task gets all of them at once.
        group_size : int
            How many samples in a row are of one prompt. With the scope "group", the task gets these at once.
        progress : Progress, optional
            Of the run.
        """
        failed = Score(reward=self._config.failure_reward, correct=False)
        scored = Scored(scores=[failed] * len(samples), answers=[None] * len(samples))
        batch = _Batch(scored, Future(), len(samples), len(samples))
        if not samples:
            batch.future.set_result(scored)
            return batch.future
        if self._takes_turns:
            for number, own in enumerate(self._queues):
                places = [i for i, one in enumerate(samples) if _episode_of(one) % len(self._queues) == number]
                if places:
                    own.put(_Chunk(batch, places, [[samples[i]] for i in places], progress or Progress()))
            return batch.future
        size = {"completion": 1, "group": group_size, "batch": len(samples)}[self._scope]
        # coroutines are under way at once, so a process best has all of them
        chunk = -(-len(samples) // self._config.num_processes) if self._is_async else _CHUNK
        step = size * max(1, chunk // size)
        for start in range(0, len(samples), step):
            end = min(start + step, len(samples))
            units = [samples[first : min(first + size, end)] for first in range(start, end, size)]
            self._queues[0].put(_Chunk(batch, range(start, end), units, progress or Progress()))
        return batch.future

    def close(self) -> None:
        """End the processes."""
        for own in self._queues:
            own.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, chunks: "queue.SimpleQueue[_Chunk | None]") -> None:
        """Feed one process, and replace it when it is lost. Runs in a thread for each."""
        process = self._start_process()
        try:
            while (chunk := chunks.get()) is not None:
                try:
                    process = self._score(process, chunk)
                except Exception as error:  # a fault of the pool itself: raised where the result is awaited
                    if not chunk.batch.future.done():  # another part of the batch may have met the same
                        chunk.batch.future.set_exception(error)
        finally:
            process.end()

    def _score(self, process: Process, chunk: _Chunk) -> Process:
        """Score a chunk; return the process that is there afterwards."""
        started = time.perf_counter()
        # an episode may have to be played again from its beginning
        turns = [len(one.turns.completions) for unit in chunk.units for one in unit if one.turns is not None]
        limit_s = self._config.time_limit_s * max([1, *turns])
        done: dict[int, list[Result]] = {}
        # What was being scored when its process died is scored once more, each unit alone: the process may have been
        # killed from outside, for lack of memory for example. A second death is taken for the reward's own fault.
        suspects: list[int] = []
        while left := suspects[:1] or [place for place in range(len(chunk.units)) if place not in done]:
            begun: set[int] = set()
            try:
                _score_units(process, chunk, left, limit_s, begun, done)
                suspects = suspects[1:]
            except (TimeoutError, EOFError, OSError) as error:
                # a task without coroutines scores one unit after another
                lost = (begun - done.keys()) or {next(place for place in left if place not in done)}
                if suspects or isinstance(error, TimeoutError):
                    for place in lost:
                        size = len(chunk.units[place])
                        done[place] = [self._lost(process, error, size, limit_s)] * size
                    suspects = suspects[1:]
                else:
                    suspects = sorted(lost)
                    self._warn_of_death(process, [sample for place in suspects for sample in chunk.units[place]])
                process.end()
                process = self._start_process()
        results = [result for place in range(len(chunk.units)) for result in done[place]]
        samples = [sample for unit in chunk.units for sample in unit]
        with self._lock:
            batch, scored = chunk.batch, chunk.batch.scored
            for place, sample, (kind, what) in zip(chunk.places, samples, results, strict=True):
                if isinstance(what, tuple):
                    scored.scores[place], scored.answers[place] = what
                else:
                    scored.failures[kind] += 1
                    scored.failed[place] = kind, what
                    if place < batch.first_failed:
                        batch.first_failed, scored.error = place, what
                    self._log_once(kind, what, sample.completion)
            scored.spans.append((started, time.perf_counter()))
            batch.left -= len(results)
            if batch.left == 0:
                batch.future.set_result(scored)
        return process

    def _lost(self, process: Process, error: Exception, size: int, limit_s: float) -> Result:
        """Return the fate of what a process was scoring when it was lost: `size` completions."""
        of = f" ({counted(size, 'completion')})" if size > 1 else ""
        if isinstance(error, TimeoutError):
            return "timed_out", f"no reward after {limit_s:g} s{of}"
        return "died", f"the process that computed the reward ended with {process.exit_code}{of}"

    def _warn_of_death(self, process: Process, samples: Sequence[Sample]) -> None:
        with self._lock:
            if self._death_is_known:
                return
            self._death_is_known = True
        log.warning(
            "a process that computed a reward ended with %s: %s scored once more in a new process (shown once), "
            "such as the completion %.200r",
            process.exit_code,
            "1 completion is" if len(samples) == 1 else f"{len(samples)} completions are",
            samples[0].completion,
        )

    def _log_once(self, kind: str, what: str, completion: str) -> None:
        key = kind + what.split(":", maxsplit=1)[0]
        if key not in self._seen:
            self._seen.add(key)
            log.warning("a reward failed (shown once a kind): %s, for the completion %.200r", what, completion)


def _score_units(
    process: Process,
    chunk: _Chunk,
    places: Sequence[int],
    limit_s: float,
    begun: set[int],
    done: dict[int, list[Result]],
) -> None:
    """Have units of a chunk scored; note which have begun, as far as the process says so, and the results."""
    process.send([chunk.units[place] for place in places], chunk.progress)
    while not done.keys() >= set(places):
        number, results = process.receive(limit_s)
        if number is not None and results is None:
            begun.add(places[number])
        elif number is not None and results is not None:
            done[places[number]] = results


def _episode_of(sample: Sample) -> int:
    assert sample.turns is not None
    return sample.turns.place
