"""An HTTP server with the API of OpenAI's, by which programs that bring a client of their own ask the model.

It is in the process that plays the episodes, and listens on 127.0.0.1 only. Each episode has a key of its own, so that
a request is a turn of that episode, as one by `esmpi.tasks.programs.ModelClient` is.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import reprlib
import secrets
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from http import HTTPStatus
from typing import Any

from esmpi.data.problem import Prompt
from esmpi.tasks import openai_messages

Ask = Callable[[Prompt], "Future[str]"]
"""Makes a request a turn of an episode; raises ValueError if it cannot be one."""

_HOST = "127.0.0.1"
_lock = threading.Lock()
_LARGEST_BODY = 2**24
_SILENT = {"model", "timeout", "user"}
"""Fields of a request that change nothing here."""
_KNOWN = {"messages", "prompt", *openai_messages.FIELDS}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (),
    "stream_options": (),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "logprobs": (),
    "top_logprobs": (),
    "echo": (),
    "suffix": ("",),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
}
"""Fields that would change what a reply consists of, with the values besides null and false that mean the plain one."""


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for fields of a request that cannot be honoured; warn of those that have no effect."""
    for name, value in fields.items():
        if name in _PLAIN:
            if value is not None and value is not False and value not in _PLAIN[name]:
                raise ValueError(
                    f"{name}={reprlib.repr(value)} is not supported here: each request is a turn of an episode, and "
                    f"its reply is one text"
                )
        elif name not in _SILENT | _KNOWN:
            warnings.warn(f"{name} of a request has no effect: the config's section sampling has it", stacklevel=3)


class Endpoint:
    """The server. It begins to listen when it is made, in a thread."""

    def __init__(self) -> None:
        self._asks: dict[str, Ask] = {}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="esmpi-endpoint").start()
        listening = asyncio.start_server(self._serve, _HOST)
        server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.base_url = f"http://{_HOST}:{server.sockets[0].getsockname()[1]}/v1"
        for name in ("NO_PROXY", "no_proxy"):  # a site's proxy does not know this machine's own address
            known = os.environ.get(name, "")
            if _HOST not in known:
                os.environ[name] = f"{known},{_HOST}" if known else _HOST

    def admit(self, ask: Ask) -> str:
        """Return a key by which requests are turns of an episode, until it is dismissed."""
        key = f"esmpi-{secrets.token_hex(16)}"
        self._asks[key] = ask
        return key

    def dismiss(self, key: str) -> None:
        """Refuse requests with a key from now on."""
        self._asks.pop(key, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            keep = True
            while keep:
                status, reply, keep = await self._next(reader, writer)
                body = json.dumps(reply).encode()
                writer.write(
                    f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        writer.close()

    async def _next(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[HTTPStatus, dict[str, Any], bool]:
        """Read a request; return status and body of its reply, and whether the connection stays open."""
        first, _, rest = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        try:
            method, target, _ = first.decode("ascii").split()
            headers = http.client.parse_headers(io.BytesIO(rest))
            length = int(headers.get("Content-Length", "0"))
        except (ValueError, http.client.HTTPException) as error:
            return *_refused(HTTPStatus.BAD_REQUEST, f"this is no request of HTTP: {error}"), False
        if "Transfer-Encoding" in headers or not 0 <= length <= _LARGEST_BODY:
            what = f"a request needs a Content-Length of at most {_LARGEST_BODY}"
            return *_refused(HTTPStatus.LENGTH_REQUIRED, what), False
        if headers.get("Expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(length)
        keep = headers.get("Connection", "").lower() != "close"
        scheme, _, key = headers.get("Authorization", "").partition(" ")
        ask = self._asks.get(key.strip()) if scheme.lower() == "bearer" else None
        if ask is None:
            what = "the API key must be that of an episode that is under way: client.api_key"
            return *_refused(HTTPStatus.UNAUTHORIZED, what), keep
        try:
            return HTTPStatus.OK, await _reply(method, target.partition("?")[0], body, ask), keep
        except LookupError as error:
            return *_refused(HTTPStatus.NOT_FOUND, str(error.args[0])), keep
        except ValueError as error:
            return *_refused(HTTPStatus.BAD_REQUEST, str(error)), keep


async def _reply(method: str, path: str, body: bytes, ask: Ask) -> dict[str, Any]:
    """Return the body of a reply; LookupError if there is no such path, ValueError if the request cannot be met."""
    if (method, path) == ("GET", "/v1/models"):
        return {"object": "list", "data": [{"id": "esmpi", "object": "model", "created": 0, "owned_by": "esmpi"}]}
    if method != "POST" or path not in ("/v1/chat/completions", "/v1/completions"):
        raise LookupError(f"{method} {path} is not known here: there are /chat/completions, /completions and /models")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("the body must be a JSON object")
    check_fields(fields)
    name = reprlib.repr(fields.get("model", "esmpi"))[1:-1]
    if path == "/v1/completions":
        prompt = fields.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise ValueError(f"prompt={reprlib.repr(prompt)}: it must be a text")
        if fields.get("tools"):
            raise ValueError("tools: a text goes on as it is; ask /chat/completions for calls of tools")
        text = await asyncio.wrap_future(ask(prompt))
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        return {"id": "cmpl-esmpi", "object": "text_completion", "created": 0, "model": name, "choices": [choice]}
    messages = openai_messages.plain_messages(fields.get("messages"), openai_messages.tools_offered(fields))
    choice = openai_messages.choice_of(await asyncio.wrap_future(ask(messages)), fields) | {"logprobs": None}
    return {"id": "chatcmpl-esmpi", "object": "chat.completion", "created": 0, "model": name, "choices": [choice]}


def _refused(status: HTTPStatus, message: str) -> tuple[HTTPStatus, dict[str, Any]]:
    return status, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def endpoint() -> Endpoint:
    """Return this process's server, which begins to listen when it is first asked for."""
    with _lock:
        return _only()


@cache
def _only() -> Endpoint:
    return Endpoint()
