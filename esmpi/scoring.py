"""Score completions beside generation: one member's are scored while the engine makes the next one's.

Rewards run in processes of their own: one that hangs, crashes or eats memory costs a completion and not the run.
"""

import ctypes
import logging
import math
import multiprocessing
import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from esmpi.config.sections import ScoringConfig
from esmpi.es.fitness import Fitness
from esmpi.es.population import FAILURES
from esmpi.tasks import Example, Score, Task

log = logging.getLogger(__name__)

_LARGEST_REWARD = 1e100
"""Rewards of this size or more are treated as mistakes, so that sums cannot overflow."""
_CHUNK = 32
"""Completions that a process gets at once: enough to hide the pipe, few enough to share out evenly."""
_LONGEST_TEXT = 500
"""Characters of an error that are shown."""
_START_LIMIT_S = 300.0
_Result = tuple[Score, str | None] | str
"""Score and answer of a completion, or what went wrong."""
_KILLED_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_starting = threading.Lock()


@dataclass(kw_only=True)
class Scored:
    """The scores of one list of completions."""

    scores: list[Score]
    answers: list[str | None] = field(default_factory=list)
    """What the task reads as each completion's answer; all None if the scorer was not asked for answers."""
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    """How many completions have the failure reward, by kind."""
    spans: list[tuple[float, float]] = field(default_factory=list)
    """When a process began and ended with a part of it, by `time.perf_counter`."""

    @property
    def num_failed(self) -> int:
        """Completions whose reward could not be computed."""
        return sum(self.failures.values())

    def prompt_rewards(self, how: Fitness) -> np.ndarray:
        """Return the reward of each prompt, (prompts,) float64; all NaN if no completion could be scored.

        The samples of a prompt stand side by side.
        """
        if self.num_failed == len(self.scores):
            return np.full(len(self.scores) // how.num_samples, np.nan)
        rewards, correct = [score.reward for score in self.scores], [score.correct for score in self.scores]
        return how.of_prompts(rewards, correct, self.answers)

    def fitness(self, how: Fitness) -> float:
        """Return the mean reward of the prompts, exactly rounded; NaN if no completion could be scored."""
        rewards = self.prompt_rewards(how)
        return math.fsum(rewards) / len(rewards)


@dataclass
class _Batch:
    """Completions that were submitted together."""

    scored: Scored
    future: "Future[Scored]"
    left: int


@dataclass
class _Chunk:
    """A part of a batch."""

    batch: _Batch
    start: int
    items: list[tuple[str, Example]]


class Scorer:
    """A pool of processes that score.

    Parameters
    ----------
    make_task : callable
        Makes the task, here and, pickled, in each process.
    config : ScoringConfig
    with_answers : bool
        Whether to ask the task for the answers, too. It must have some.
    """

    def __init__(self, make_task: Callable[[], Task], config: ScoringConfig, with_answers: bool = False):
        self._start_process = partial(_Process, make_task, config.memory_gib, with_answers)
        self._config = config
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._threads = [
            threading.Thread(target=self._run, daemon=True, name=f"esmpi-scorer-{i}")
            for i in range(config.num_processes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, completions: Sequence[str], examples: Sequence[Example]) -> "Future[Scored]":
        """Start scoring completions, texts, one for each example."""
        items = list(zip(completions, examples, strict=True))
        failed = Score(reward=self._config.failure_reward, correct=False)
        scored = Scored(scores=[failed] * len(items), answers=[None] * len(items))
        batch = _Batch(scored, Future(), len(items))
        if not items:
            batch.future.set_result(scored)
        for start in range(0, len(items), _CHUNK):
            self._chunks.put(_Chunk(batch, start, items[start : start + _CHUNK]))
        return batch.future

    def close(self) -> None:
        """End the processes."""
        for _ in self._threads:
            self._chunks.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        """Feed one process, and replace it when it is lost. Runs in a thread for each."""
        process = self._start_process()
        try:
            while (chunk := self._chunks.get()) is not None:
                try:
                    process = self._score(process, chunk)
                except Exception as error:  # a fault of the pool itself: raised where the result is awaited
                    if not chunk.batch.future.done():  # another part of the batch may have met the same
                        chunk.batch.future.set_exception(error)
        finally:
            process.end()

    def _score(self, process: "_Process", chunk: _Chunk) -> "_Process":
        """Score a chunk; return the process that is there afterwards."""
        started = time.perf_counter()
        results: list[tuple[str, _Result]] = []
        while len(results) < len(chunk.items):
            try:
                process.send(chunk.items[len(results) :])
                while len(results) < len(chunk.items):
                    results.append(process.receive(self._config.time_limit_s))
            except TimeoutError:
                results.append(("timed_out", f"no reward after {self._config.time_limit_s:g} s"))
                process = self._replace(process)
            except (EOFError, OSError):
                results.append(("died", f"the process that computed the reward ended with {process.exit_code}"))
                process = self._replace(process)
        with self._lock:
            scored = chunk.batch.scored
            for number, (kind, what) in enumerate(results):
                if isinstance(what, tuple):
                    scored.scores[chunk.start + number], scored.answers[chunk.start + number] = what
                else:
                    scored.failures[kind] += 1
                    self._log_once(kind, what, chunk.items[number][0])
            scored.spans.append((started, time.perf_counter()))
            chunk.batch.left -= len(results)
            if chunk.batch.left == 0:
                chunk.batch.future.set_result(scored)
        return process

    def _replace(self, process: "_Process") -> "_Process":
        process.end()
        return self._start_process()

    def _log_once(self, kind: str, what: str, completion: str) -> None:
        key = kind + what.split(":", maxsplit=1)[0]
        if key not in self._seen:
            self._seen.add(key)
            log.warning("a reward failed (shown once a kind): %s, for the completion %.200r", what, completion)


class _Process:
    """A process that scores, and the pipe to it."""

    def __init__(self, make_task: Callable[[], Task], memory_gib: float, with_answers: bool):
        # Not forked: this process has threads, and perhaps a GPU and MPI, which a fork does not survive.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, make_task, int(memory_gib * 2**30), os.getpid(), with_answers)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with _without_main():
            self._process.start()
        theirs.close()  # so that the pipe ends when the process does
        self._ready = False

    @property
    def exit_code(self) -> int | None:
        """How the process ended, once it has closed its pipe; minus the number of the signal that killed it."""
        self._process.join(1)
        return self._process.exitcode

    def send(self, items: list[tuple[str, Example]]) -> None:
        """Give the process completions to score, with their examples."""
        if not self._ready:
            try:
                self.receive(_START_LIMIT_S)
            except TimeoutError as error:
                raise RuntimeError(
                    f"a process for rewards cannot start: it was not ready after {_START_LIMIT_S:.0f} s"
                ) from error
            except (EOFError, OSError) as error:
                raise RuntimeError(f"a process for rewards cannot start: it ended with {self.exit_code}") from error
            self._ready = True
        self._pipe.send(items)

    def receive(self, limit_s: float) -> tuple[str, _Result]:
        """Return what the process says next: ("ok", (score, answer)), or a kind of failure and its text."""
        if not self._pipe.poll(limit_s):
            raise TimeoutError
        said: tuple[str, _Result] = self._pipe.recv()
        return said

    def end(self) -> None:
        """Kill the process, and the processes that a reward has started."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError, PermissionError):  # killed before it had a group of its own
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._pipe.close()


@contextmanager
def _without_main() -> Iterator[None]:
    """Let a process that is started in the block not import the main program, which may be a script without a guard.

    Nothing in a task's config is defined there. multiprocessing looks at these two attributes when it starts a process.
    """
    main = sys.modules["__main__"]
    with _starting:
        hidden: dict[str, Any] = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
        main.__spec__ = None
        try:
            yield
        finally:
            vars(main).update(hidden)


def _serve(
    pipe: Connection, make_task: Callable[[], Task], memory: int, parent: int, with_answers: bool = False
) -> None:
    """Score what comes through the pipe until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the run, which ends this process by itself
    if os.path.exists("/proc"):  # Linux: a reward that hangs must not outlive a run that was killed
        ctypes.CDLL(None).prctl(_KILLED_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            return
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    task = make_task()
    this = os.getpid()
    with suppress(EOFError, ConnectionError):  # the run has closed its end, perhaps before it read our last message
        pipe.send(("ready", ""))
        while True:
            for completion, example in pipe.recv():
                result = _score(task, completion, example, with_answers)
                if os.getpid() != this:
                    os._exit(0)  # a process that the reward forked off came back: the result is its parent's to give
                pipe.send(result)


def _score(task: Task, completion: str, example: Example, with_answers: bool) -> tuple[str, _Result]:
    try:
        score = task.score(completion, example)
        if not abs(score.reward) < _LARGEST_REWARD:  # NaN, too, is not
            raise ValueError(f"reward is {score.reward}")
        answer = task.answer(completion, example) if with_answers else None
    except BaseException as error:  # a reward may raise anything, SystemExit as well: it costs one completion
        return "raised", _described(error)
    return "ok", (score, answer)


def _described(error: BaseException) -> str:
    """Return an error that a reward raised in one line of bounded length, with the place."""
    words = " ".join(traceback.format_exception_only(error)[-1].split())  # works even if __str__ raises
    places = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(places[-1].filename)}, line {places[-1].lineno})" if places else ""
    return f"{words[:_LONGEST_TEXT]}{place}"
