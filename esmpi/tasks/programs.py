"""Programs as environments: a coroutine that asks the model, and returns a reward.

`async def solve(client, example)` in a user's file becomes an environment. `client` looks like OpenAI's `AsyncOpenAI`:
its `chat.completions.create(messages=...)` waits until the engine has answered, together with the requests of all other
episodes.
"""

from __future__ import annotations

import asyncio
import copy
import reprlib
import resource
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from numbers import Real
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from esmpi.data.problem import Example, Part, Prompt
from esmpi.tasks._problems import problems_of
from esmpi.tasks.endpoint import check_fields, endpoint
from esmpi.tasks.environments.base import Answer, Environment
from esmpi.tasks.openai_messages import choice_of, plain_messages, tools_offered

if TYPE_CHECKING:
    import numpy as np

_OVER = "the episode is over: it has reached a limit, or its program has ended"
_ROUNDS = 10
"""Turns of the event loop in which a program must make those of its requests that belong together."""


class Message(dict[str, Any]):
    """A reply as OpenAI's client gives it, with attributes, which is a chat message as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            if name == "tool_calls":  # the client's reply has it in any case
                return None
            raise AttributeError(name) from None


def _with_attributes(value: Any) -> Any:
    """Return what JSON can hold with its objects as `Message`."""
    if isinstance(value, dict):
        return Message({name: _with_attributes(one) for name, one in value.items()})
    return [_with_attributes(one) for one in value] if isinstance(value, list) else value


class ModelClient:
    """What a program asks the model with. One request at a time is answered, in the order in which they were made.

    A program that brings a client of its own finds an endpoint in `base_url` and `api_key`. It answers one request at a
    time, as the order of several would depend on chance.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.requests: deque[tuple[Prompt, asyncio.Future[str]]] = deque()
        """Those that wait for an answer."""
        self.asked = asyncio.Event()
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))
        self._loop = loop
        self._lock = threading.Lock()
        self._key: str | None = None
        self._outside: Future[str] | None = None
        """What waits for an answer through the endpoint."""

    @property
    def base_url(self) -> str:
        """Address of an OpenAI-compatible endpoint whose requests are turns of this episode, up to `/v1`."""
        return endpoint().base_url

    @property
    def api_key(self) -> str:
        """The episode's key there."""
        with self._lock:
            if self._key is None:
                self._key = endpoint().admit(self._ask_from_outside)
            return self._key

    @property
    def environment(self) -> dict[str, str]:
        """Both as environment variables, for programs that read `OPENAI_BASE_URL` and `OPENAI_API_KEY`."""
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": self.api_key}

    def waiting(self) -> bool:
        """Return whether a request waits, after those were dropped whose program waits for them no more."""
        while self.requests and self.requests[0][1].done():
            self.requests.popleft()
        return bool(self.requests)

    def answer(self, completion: str) -> None:
        """Answer the first request that waits."""
        assert self.waiting()
        _, answer = self.requests.popleft()
        answer.set_result(completion)
        with self._lock:
            outside, self._outside = self._outside, None
        if outside is not None:
            outside.set_result(completion)

    def close(self) -> None:
        """Answer no more: the episode is over."""
        if self._key is not None:
            endpoint().dismiss(self._key)
        with self._lock:
            outside, self._outside = self._outside, None
        if outside is not None:
            outside.set_exception(ValueError(_OVER))

    async def complete(self, prompt: Prompt) -> str:
        """Return the model's completion of a text or of messages."""
        with self._lock:
            if self._outside is not None:
                raise RuntimeError("a request waits at the endpoint: a program may not ask by the client meanwhile")
            answer = self._enqueue(copy.deepcopy(prompt))
        self.asked.set()
        return await answer

    def _enqueue(self, prompt: Prompt) -> asyncio.Future[str]:
        answer: asyncio.Future[str] = self._loop.create_future()
        self.requests.append((prompt, answer))
        return answer

    def _ask_from_outside(self, prompt: Prompt) -> Future[str]:
        """Make a request of the endpoint a turn; called in its thread."""
        with self._lock:
            if self._outside is not None or any(not answer.done() for _, answer in tuple(self.requests)):
                raise ValueError(
                    "another request of this episode waits for its answer: ask one after the other, as the order of "
                    "several would depend on chance"
                )
            self._enqueue(prompt)
            self._outside = outside = Future[str]()
            try:
                self._loop.call_soon_threadsafe(self.asked.set)
            except RuntimeError:  # it is closed
                raise ValueError(_OVER) from None
        return outside

    async def _create(self, *, messages: Sequence[dict[str, str]], **arguments: Any) -> SimpleNamespace:
        check_fields(arguments)
        text = await self.complete(plain_messages(messages, tools_offered(arguments)))
        return SimpleNamespace(choices=[_with_attributes(choice_of(text, {"messages": messages, **arguments}))])


class Program(Environment):
    """An episode is a call of a coroutine function. Subclasses say which."""

    function: ClassVar[Callable[..., Awaitable[Any]]]
    module: ClassVar[ModuleType]

    def __init__(self, **params: Any):
        self._params = params

    def reset(self, example: Example, seed: int) -> Prompt:
        async def work() -> Any:
            return await type(self).function(self._client, example, **self._params)

        # each event loop has files
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        # of this episode alone, so that the order of its requests depends on no other one
        self._loop = asyncio.new_event_loop()
        # a program that is never continued, because a limit or another process ended its episode, is no error
        self._loop.set_exception_handler(lambda _, __: None)
        self._client = ModelClient(self._loop)
        self._task = self._loop.create_task(work())
        found = self._go_on()
        if "prompt" not in found:
            raise ValueError("the program returned without asking the model")
        prompt: Prompt = found["prompt"]
        return prompt

    def step(self, completion: str) -> Answer:
        self._client.answer(completion)
        return self._go_on()

    def finish(self) -> float:
        self._end()
        return 0.0

    def close(self) -> None:
        if hasattr(self, "_loop"):
            self._end()

    def _end(self) -> None:
        if not self._loop.is_closed():
            self._client.close()
            self._task.cancel()
            self._loop.run_until_complete(asyncio.gather(self._task, return_exceptions=True))
            self._loop.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the process
            self.close()

    def _go_on(self) -> dict[str, Any]:
        """Let the program go on until it asks the model or returns."""

        async def until_it_asks() -> None:
            while not (self._client.waiting() or self._task.done()):
                self._client.asked.clear()
                asked = asyncio.ensure_future(self._client.asked.wait())
                await asyncio.wait([asked, self._task], return_when=asyncio.FIRST_COMPLETED)
                asked.cancel()
                for _ in range(_ROUNDS):
                    await asyncio.sleep(0)

        self._loop.run_until_complete(until_it_asks())
        if not self._task.done():
            return {"prompt": self._client.requests[0][0]}
        result = self._task.result()
        self._end()
        if not isinstance(result, dict | Real):
            raise TypeError(f"the program returned {reprlib.repr(result)}, which is no number or dict")
        return dict(result) if isinstance(result, dict) else {"reward": result}

    def problems(self, part: Part) -> list[Example]:
        return problems_of(self.module, part)

    def key(self, example: Example) -> Hashable:
        return self.module.key(example) if hasattr(self.module, "key") else None

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        made: Callable[[], Example] = (
            self.module.generator(rng) if hasattr(self.module, "generator") else super().generator(rng)
        )
        return made


def as_environment(function: Callable[..., Awaitable[Any]], module: ModuleType) -> type[Program]:
    """Return the environment whose episodes are calls of a coroutine function of a user's file."""
    made: type[Program] = type(function.__name__, (Program,), {"function": staticmethod(function), "module": module})
    return made
