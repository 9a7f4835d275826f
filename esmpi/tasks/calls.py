"""Calls of coroutines: so many at once and a second, each within a time limit, and again if it fails."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0


class OutOfTimeError(Exception):
    """A call took longer than its time limit."""


class Calls:
    """Calls the coroutines of rewards. Made in the event loop that runs them.

    Parameters
    ----------
    concurrency : int
        Most calls that are under way at once.
    time_limit_s : float
        Of each call.
    retries : int
        How often a call that raised or ran out of time is made again, after 1 s, 2 s, 4 s, ..., at most 60 s.
    per_second : float, optional
        Most calls that begin in a second.
    """

    def __init__(self, concurrency: int, time_limit_s: float, retries: int = 0, per_second: float | None = None):
        self._gate = asyncio.Semaphore(concurrency)
        self._time_limit_s = time_limit_s
        self._waits = [min(_FIRST_WAIT_S * 2**i, _LONGEST_WAIT_S) for i in range(retries)]
        self._interval_s = 1 / per_second if per_second else 0.0
        self._next = 0.0

    async def __call__(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """Return what a coroutine returns; `function` makes it, for each attempt anew.

        Raises
        ------
        OutOfTimeError
            If the last attempt took too long. It is cancelled, but nobody waits for its end.
        BaseException
            What the last attempt raised.
        """
        for wait_s in [*self._waits, None]:
            async with self._gate:
                await self._turn()
                result, error = await self._attempt(function)
            if error is None:
                return result
            if wait_s is None:
                raise error
            await asyncio.sleep(wait_s)
        raise AssertionError

    async def _turn(self) -> None:
        now = asyncio.get_running_loop().time()
        begin = max(now, self._next)
        self._next = begin + self._interval_s
        if begin > now:
            await asyncio.sleep(begin - now)

    async def _attempt(self, function: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
        async def outcome() -> tuple[Any, BaseException | None]:
            try:
                return await function(), None
            except BaseException as error:  # SystemExit, too, would otherwise end the loop
                return None, error

        task = asyncio.ensure_future(outcome())
        done, _ = await asyncio.wait({task}, timeout=self._time_limit_s)
        if not done:
            task.cancel()  # it may catch this, so nobody waits for it
            return None, OutOfTimeError(f"no reward after {self._time_limit_s:g} s")
        return task.result()


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a function, or an object that can be called, is a coroutine function."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
