"""A language model behind an OpenAI-compatible endpoint, such as `vllm serve`, as a reward."""

import math
import os
import re
import reprlib
import string
from collections.abc import Callable, Mapping
from typing import Any

from esmpi.data.problem import Example, Prompt
from esmpi.errors import UserError, said
from esmpi.tasks.answers import MAX_TAGGED_TEXT
from esmpi.tasks.base import load_extra

_NUMBER = r"([-+]?(?:\d+(?:\.\d+)?|\.\d+))(?:\s*(?:/|out of)\s*\d+(?:\.\d+)?)?"
"""A number, or what stands before "/ 10" or "out of 10"."""
_LONGEST_TEXT = 200


class Judge:
    """Asks a language model about each completion, and reads the reward from its reply.

    An object of this class is a reward function, as a coroutine: `scoring.concurrency` says how many requests are under
    way at once, `scoring.time_limit_s` how long one may take, `scoring.retries` how often it is repeated.

    Parameters
    ----------
    endpoint : str
        Address of the server, up to and including `/v1`. `$NAME` stands for an environment variable, as the server of a
        job is rarely on the same node twice.
    model : str
        Name under which the server has the model.
    rubric : str or callable
        What the model is asked: a text with `{completion}`, `{prompt}` and columns of the example in braces, where
        braces that are text are doubled; or a function of prompt, completion and example that returns a text, or
        messages with `role` and `content`.
    parse : str or callable
        How the reply becomes the reward: a regular expression, whose last match is the number (its first group, if it
        has one); or a function of the reply that returns what a reward function may return. By default, the last
        number, or what stands before "/ 10" or "out of 10".
    between : (float, float), optional
        The least and the largest reward. A reply outside of it is an error, as one without a number is.
    system : str, optional
        A system message.
    api_key : str, optional
        By default `$OPENAI_API_KEY`, if there is one.
    **body
        Further fields of the request, such as `max_tokens`. The temperature is 0 by default.

    Raises
    ------
    UserError
        If httpx is not installed, or the rubric is not a valid template.
    """

    __name__ = "judge"

    def __init__(
        self,
        endpoint: str,
        model: str,
        rubric: str | Callable[[Prompt, str, Example], Any],
        parse: str | Callable[[str], Any] = _NUMBER,
        between: tuple[float, float] | None = None,
        system: str | None = None,
        api_key: str | None = None,
        **body: Any,
    ):
        self._httpx = load_extra("httpx", "judge")
        self._endpoint, self._api_key = endpoint, api_key
        self._rubric, self._parse, self._between, self._system = rubric, parse, between, system
        self._body = {"model": model, "temperature": 0.0, **body}
        self._client: Any = None
        if isinstance(rubric, str):
            try:
                names = [name for _, name, _, _ in string.Formatter().parse(rubric)]
            except ValueError as error:
                raise UserError(f"judge: rubric: {error}; braces that are text are doubled: {{{{ and }}}}") from None
            if "completion" not in names:
                raise UserError("judge: rubric: lacks {completion}, the text to be judged")

    async def __call__(self, prompt: Prompt, completion: str, example: Example) -> Any:
        """Return the reward of a completion; raise RuntimeError or ValueError for a reply without one."""
        if self._client is None:  # one for all requests, and made in the loop that uses it
            limits = self._httpx.Limits(max_connections=None)
            self._client = self._httpx.AsyncClient(headers=self._headers(), timeout=None, limits=limits)
        url = f"{_expanded('endpoint', self._endpoint).rstrip('/')}/chat/completions"
        body = self._body | {"messages": self._messages(prompt, completion, example)}
        try:
            response = await self._client.post(url, json=body)
        except self._httpx.HTTPError as error:
            raise RuntimeError(f"{url} cannot be reached: {said(error)}") from error
        if response.status_code != 200:
            raise RuntimeError(f"{url} answers {response.status_code}: {response.text[:_LONGEST_TEXT]}")
        return self._read(_text_of(url, response))

    def _messages(self, prompt: Prompt, completion: str, example: Example) -> list[Mapping[str, str]]:
        if not isinstance(self._rubric, str):
            asked = self._rubric(prompt, completion, example)
        else:
            text = prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
            asked = self._rubric.format_map({**example, "prompt": text, "completion": completion})
        turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        return [*([{"role": "system", "content": self._system}] if self._system else []), *turns]

    def _read(self, reply: str) -> Any:
        if not isinstance(self._parse, str):
            result = self._parse(reply)
            reward = result.get("reward") if isinstance(result, Mapping) else result
        else:
            found = list(re.finditer(self._parse, reply[-MAX_TAGGED_TEXT:]))
            if not found:
                raise ValueError(f"the judge's reply has no reward: {reprlib.repr(reply)}")
            result = reward = float(found[-1][1] if found[-1].re.groups else found[-1][0])
        low, high = self._between or (-math.inf, math.inf)
        if isinstance(reward, int | float) and not low <= reward <= high:
            raise ValueError(f"the judge's reward {reward:g} is not between {low:g} and {high:g}")
        return result

    def _headers(self) -> dict[str, str]:
        key = os.environ.get("OPENAI_API_KEY") if self._api_key is None else _expanded("api_key", self._api_key)
        return {"Authorization": f"Bearer {key}"} if key else {}


def _text_of(url: str, response: Any) -> str:
    """Return the text of a reply; raise RuntimeError if there is none."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise RuntimeError(
            f"{url} answers with what is no reply: {said(error)}: {response.text[:_LONGEST_TEXT]}"
        ) from None
    if not isinstance(content, str | None):
        raise RuntimeError(f"{url} answers with {reprlib.repr(content)}, which is no text")
    return content or ""


def _expanded(name: str, text: str) -> str:
    found = os.path.expandvars(text)
    if "$" in found:
        raise RuntimeError(f"judge: {name}: {text} names a variable that is not set")
    return found
