"""A process that scores, and the pipe to it."""

import asyncio
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from esmpi.config.problems import ScoringConfig
from esmpi.errors import UserError
from esmpi.scoring.output import Output, take
from esmpi.stop.signals import SIGNALS, held_back
from esmpi.tasks import Calls, OutOfTimeError, Progress, Sample, Score, Task, _rewards, python
from esmpi.tasks._chance import seed_generators

_LARGEST_REWARD = 1e100
"""Rewards of this size or more are treated as mistakes, so that sums cannot overflow."""
_LONGEST_TEXT = 500
"""Characters of an error that are shown."""
_START_LIMIT_S = 300.0
_KILLED_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_HASH_SEED = "PYTHONHASHSEED"
_CHECKERS = (__file__, _rewards.__file__, python.__file__)
"""Files that say what is wrong with what a reward returned."""
_starting = threading.Lock()

Result = tuple[str, tuple[Score, str | None] | str]
"""What became of a completion: "ok" with its score and answer; or a kind of failure, and what went wrong."""
Unit = Sequence[Sample]
"""What a task scores at once."""
Message = tuple[int | None, list[Result] | None]
"""What a process says: the place of a unit, and what became of its completions; without results, the unit has begun,
which only a task with coroutines says; without a place, the process is alive."""


class Process:
    """A process that scores.

    Parameters
    ----------
    make_task : callable
        Makes the task in the process. It is pickled.
    config : ScoringConfig
    num_processes : int
        How many processes of all ranks share `scoring.rate_limit`.
    with_answers : bool
        Whether to ask the task for the answers, too.
    """

    def __init__(
        self, make_task: Callable[[], Task], config: ScoringConfig, num_processes: int = 1, with_answers: bool = False
    ):
        # Not forked: this process has threads, and perhaps a GPU and MPI, which a fork does not survive.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._output = Output(context)
        arguments = (theirs, make_task, config, num_processes, os.getpid(), with_answers, self._output.theirs)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        with _without_main(), _with_hash_seed(), held_back():
            self._process.start()
        theirs.close()  # so that the pipe ends when the process does
        self._output.begin()
        self._memory_gib = config.memory_gib
        self._ready = False

    @property
    def exit_code(self) -> int | None:
        """How the process ended, once it has closed its pipe; minus the number of the signal that killed it."""
        self._process.join(1)
        return self._process.exitcode

    def send(self, units: Sequence[Unit], progress: Progress) -> None:
        """Give the process units to score, each at once.

        Raises
        ------
        UserError
            If it cannot start.
        """
        if not self._ready:
            try:
                problem = self._next(_START_LIMIT_S)
            except TimeoutError as error:
                raise UserError(
                    f"a process for rewards cannot start: it was not ready after {_START_LIMIT_S:.0f} s"
                ) from error
            except (EOFError, OSError) as error:
                raise UserError(f"a process for rewards cannot start: it ended with {self.exit_code}") from error
            if isinstance(problem, str):
                limit = f". It may have {self._memory_gib:g} GiB, scoring.memory_gib" if "emory" in problem else ""
                raise UserError(f"a process for rewards cannot start: {problem}{limit}")
            self._ready = True
        self._pipe.send((units, progress))

    def receive(self, limit_s: float) -> Message:
        """Return what the process says next.

        Raises
        ------
        TimeoutError
            If the process says nothing for so long.
        EOFError, OSError
            If it has ended.
        """
        message: Message = self._next(limit_s)
        if message[1] is not None:
            self._output.renew()
        return message

    def _next(self, limit_s: float) -> Any:
        if not self._pipe.poll(limit_s):
            raise TimeoutError
        return self._pipe.recv()

    def end(self) -> None:
        """Kill the process, and the processes that a reward has started."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError, PermissionError):  # killed before it had a group of its own
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._output.end()


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


@contextmanager
def _with_hash_seed() -> Iterator[None]:
    """Let a process that is started in the block have the same order of sets as all others, unless the user chose one.

    A reward that goes through a set of texts would otherwise differ from process to process.
    """
    if _HASH_SEED in os.environ:
        yield
        return
    os.putenv(_HASH_SEED, "0")  # for the new process alone: other threads may be reading os.environ
    try:
        yield
    finally:
        os.unsetenv(_HASH_SEED)


def serve(
    pipe: Connection,
    make_task: Callable[[], Task],
    config: ScoringConfig,
    num_processes: int,
    parent: int,
    with_answers: bool = False,
    output: tuple[Connection, Connection] | None = None,
) -> None:
    """Score what comes through the pipe until it closes: the program of a process that scores."""
    if output is not None:
        take(output)
    _act_as_plain_python()
    if os.path.exists("/proc"):  # Linux: a reward that hangs must not outlive a run that was killed
        ctypes.CDLL(None).prctl(_KILLED_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            return
    os.setsid()
    memory = int(config.memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    try:
        task = make_task()
        task.prepare()
    except BaseException as error:  # of the user's own code, or for lack of memory
        pipe.send(str(error) if isinstance(error, UserError) else _described(error))
        return
    this, folder = os.getpid(), os.getcwd()

    def say(place: int | None, results: list[Result] | None = None) -> None:
        if os.getpid() != this:
            os._exit(0)  # a process that the reward forked off came back: the result is its parent's to give
        pipe.send((place, results))

    with suppress(EOFError, ConnectionError):  # the run has closed its end, perhaps before it read our last message
        say(None)
        if task.is_async:
            with asyncio.Runner() as runner:  # one loop for all, as rewards keep connections open
                _serve_async(runner, pipe, task, config, num_processes, folder, with_answers, say)
        while True:
            units, progress = pipe.recv()
            for place, unit in enumerate(units):
                _begin_alike(folder, [unit], progress)
                try:
                    results = _results(task, unit, task.score_together(unit, progress), with_answers)
                except BaseException as error:  # a reward may raise anything, SystemExit as well
                    results = [("raised", _described(error))] * len(unit)
                say(place, results)


def _act_as_plain_python() -> None:
    """Heed no signals, and let rewards start processes as they would in a program of their own.

    Signals are meant for the run, which ends this process by itself. They are not ignored by `SIG_IGN`, because
    processes that a reward starts would inherit that, and could not be terminated.
    """
    _take_signals(_do_nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked until now
    hold, release = (partial(signal.pthread_sigmask, how, SIGNALS) for how in (signal.SIG_BLOCK, signal.SIG_UNBLOCK))
    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=_heed_signals)
    # otherwise multiprocessing refuses processes, and would look for a reward's functions in a module of its own
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # private
    multiprocessing.set_start_method("fork", force=True)


def _do_nothing(*_: object) -> None:
    pass


def _take_signals(handler: Callable[..., None] | signal.Handlers) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _heed_signals() -> None:
    _take_signals(signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _begin_alike(folder: str, units: Sequence[Unit], progress: Progress) -> None:
    """Undo what a reward may have done to the next one's surroundings."""
    with suppress(OSError):  # the folder is gone
        os.chdir(folder)
    signal.alarm(0)
    _take_signals(_do_nothing)
    seed_generators(progress.generation, [sample.completion for unit in units for sample in unit])


def _serve_async(
    runner: asyncio.Runner,
    pipe: Connection,
    task: Task,
    config: ScoringConfig,
    num_processes: int,
    folder: str,
    with_answers: bool,
    say: Callable[..., None],
) -> None:
    """Do as `serve` does, with several units under way at once."""
    per_second = None if config.rate_limit is None else config.rate_limit / num_processes

    async def begin() -> Calls:
        return Calls(config.concurrency, config.time_limit_s, config.retries, per_second)

    call = runner.run(begin())

    async def score_all(units: Sequence[Unit], progress: Progress) -> None:
        gate = asyncio.Semaphore(config.concurrency)

        async def score(place: int, unit: Unit) -> None:
            async with gate:
                say(place)
                try:
                    results = _results(task, unit, await task.score_async(unit, progress, call), with_answers)
                except BaseException as error:
                    results = [("raised", _described(error))] * len(unit)
                say(place, results)

        async def beat() -> None:
            # a loop that is blocked for longer than the time limit says nothing, and is given up
            while True:
                await asyncio.sleep(min(1.0, config.time_limit_s / 4))
                say(None)

        pulse = asyncio.ensure_future(beat())
        await asyncio.gather(*(score(place, unit) for place, unit in enumerate(units)))
        pulse.cancel()

    while True:
        units, progress = pipe.recv()
        _begin_alike(folder, units, progress)
        runner.run(score_all(units, progress))


def _results(task: Task, unit: Unit, scores: Sequence[Score | BaseException], with_answers: bool) -> list[Result]:
    if len(scores) != len(unit):
        raise ValueError(f"task {task.name} gives {len(scores)} scores for {len(unit)} completions")
    return [_result(task, sample, score, with_answers) for sample, score in zip(unit, scores, strict=True)]


def _result(task: Task, sample: Sample, score: Score | BaseException, with_answers: bool) -> Result:
    fate = score
    if not isinstance(score, BaseException):
        try:
            if score.reward is not None and not abs(score.reward) < _LARGEST_REWARD:  # NaN, too, is not
                raise ValueError(f"reward is {score.reward}")
            return "ok", (score, task.answer(sample.completion, sample.example) if with_answers else None)
        except BaseException as error:
            fate = error
    assert isinstance(fate, BaseException)
    return ("timed_out", str(fate)) if isinstance(fate, OutOfTimeError) else ("raised", _described(fate))


def _described(error: BaseException) -> str:
    """Return an error that a reward raised in one line of bounded length, with the place."""
    words = " ".join(traceback.format_exception_only(error)[-1].split())  # works even if __str__ raises
    # where esmpi says what is wrong with a reward, there is no line, or it is the reward's own
    places = [place for place in traceback.extract_tb(error.__traceback__) if place.filename not in _CHECKERS]
    place = f" ({os.path.basename(places[-1].filename)}, line {places[-1].lineno})" if places else ""
    return f"{words[:_LONGEST_TEXT]}{place}"
