"""Programs as environments: a coroutine that asks the model, and returns a reward.

`async def solve(client, example)` in a user's file becomes an environment. `client` looks like OpenAI's `AsyncOpenAI`:
its `chat.completions.create(messages=...)` waits until the engine has answered, together with the requests of all other
episodes.
"""

from __future__ import annotations

import asyncio
import copy
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from esmpi.data.problem import Example, Part, Prompt
from esmpi.tasks.environments.base import Answer, Environment

if TYPE_CHECKING:
    import numpy as np

_SILENT = {"model", "timeout", "user"}
"""Arguments of a request that change nothing here."""


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process. The programs of all its episodes share it."""
    loop = asyncio.new_event_loop()
    # a program that is never continued, because a limit or another process ended its episode, is no error
    loop.set_exception_handler(lambda _, __: None)
    return loop


class ModelClient:
    """What a program asks the model with. One request at a time is answered, in the order in which they were made."""

    def __init__(self) -> None:
        self.requests: deque[tuple[Prompt, asyncio.Future[str]]] = deque()
        """Those that wait for an answer."""
        self.asked = asyncio.Event()
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    async def complete(self, prompt: Prompt) -> str:
        """Return the model's completion of a text or of messages."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.requests.append((copy.deepcopy(prompt), answer))
        self.asked.set()
        return await answer

    async def _create(self, *, messages: Sequence[dict[str, str]], n: int = 1, **arguments: Any) -> SimpleNamespace:
        if n != 1 or arguments.get("stream") or arguments.get("tools"):
            raise ValueError("n, stream and tools are not supported here: ask several times, or write an Environment")
        for name in arguments.keys() - _SILENT:
            warnings.warn(f"{name} of a request has no effect: the config's section sampling has it", stacklevel=2)
        text = await self.complete(list(messages))
        message = SimpleNamespace(role="assistant", content=text, tool_calls=None)
        return SimpleNamespace(choices=[SimpleNamespace(index=0, message=message, finish_reason="stop")])


class Program(Environment):
    """An episode is a call of a coroutine function. Subclasses say which."""

    function: ClassVar[Callable[..., Awaitable[Any]]]
    module: ClassVar[ModuleType]

    def __init__(self, **params: Any):
        self._params = params

    def reset(self, example: Example, seed: int) -> Prompt:
        async def work() -> Any:
            return await type(self).function(self._client, example, **self._params)

        self._client = ModelClient()
        self._task = _loop().create_task(work())
        found = self._go_on()
        if "prompt" not in found:
            raise ValueError("the program returned without asking the model")
        prompt: Prompt = found["prompt"]
        return prompt

    def step(self, completion: str) -> Answer:
        _, answer = self._client.requests.popleft()
        answer.set_result(completion)
        return self._go_on()

    def finish(self) -> float:
        self._task.cancel()
        _loop().run_until_complete(asyncio.gather(self._task, return_exceptions=True))
        return 0.0

    def _go_on(self) -> dict[str, Any]:
        """Let the program go on until it asks the model or returns."""

        async def until_it_asks() -> None:
            while not (self._client.requests or self._task.done()):
                self._client.asked.clear()
                asked = asyncio.ensure_future(self._client.asked.wait())
                await asyncio.wait([asked, self._task], return_when=asyncio.FIRST_COMPLETED)
                asked.cancel()

        _loop().run_until_complete(until_it_asks())
        if self._client.requests and not self._task.done():
            return {"prompt": self._client.requests[0][0]}
        result = self._task.result()
        return dict(result) if isinstance(result, dict) else {"reward": result}

    def problems(self, part: Part) -> list[Example]:
        found = getattr(self.module, {"train": "train", "eval": "evaluation"}[part], None)
        if found is None:
            return super().problems(part)
        return list(found() if callable(found) else found)

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
