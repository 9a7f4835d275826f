"""The endpoint: requests of programs with HTTP clients of their own are turns of their episode."""

import json
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support import require

from esmpi.tasks import Score, make_task
from esmpi.tasks.endpoint import endpoint
from esmpi.tasks.env import EnvConfig, EnvTask

CLIENTS = '''
import asyncio, json, os, subprocess, sys
import httpx

seen, replies = [], []


def ask(client, path="chat/completions", **fields):
    """Ask, and return status and body of the reply: in a thread, as programs do that know no coroutines."""
    headers = {"Authorization": f"Bearer {client.api_key}"}
    reply = httpx.post(f"{client.base_url}/{path}", json=fields, headers=headers, timeout=None)
    replies.append((reply.status_code, reply.json()))
    return reply.status_code, reply.json()


def said(text):
    return [{"role": "user", "content": text}]


async def with_openai(client, example):
    import openai
    own = openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key)
    names = [model.id async for model in await own.models.list()]
    parts = [{"type": "text", "text": "first "}, {"type": "text", "text": str(example["i"])}]
    reply = await own.chat.completions.create(model=names[0], messages=[{"role": "user", "content": parts}])
    first = reply.choices[0].message
    try:
        await own.chat.completions.create(model="x", messages=said("streamed"), stream=True)
    except openai.BadRequestError as error:
        seen.append(error.body["message"])
    reply = await own.chat.completions.create(model="x", messages=[*said("first"), first, *said("second")])
    second = reply.choices[0].message.content
    synchronous = openai.OpenAI(base_url=client.base_url, api_key=client.api_key)
    reply = await asyncio.to_thread(
        synchronous.chat.completions.create, model="x", messages=said("third " + second), tools=openai.NOT_GIVEN
    )
    return {"reward": len(reply.choices[0].message.content), "correct": second == "b"}


PROGRAM = """
import json, os, urllib.request
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
for i in range(2):
    body = json.dumps({"messages": [{"role": "user", "content": f"of a process {i}"}]}).encode()
    reply = json.load(urllib.request.urlopen(urllib.request.Request(url, body, headers)))
    print(reply["choices"][0]["message"]["content"])
"""


async def with_a_process(client, example):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, env={**os.environ, **client.environment}, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    return {"reward": float(output.decode().split() == ["a", "b"])}


async def with_text(client, example):
    status, body = await asyncio.to_thread(ask, client, "completions", prompt="Once upon")
    return {"reward": float(status == 200 and body["choices"][0]["text"] == " a time")}


async def at_once(client, example):
    await asyncio.gather(*(asyncio.to_thread(ask, client, messages=said("same")) for _ in range(3)))
    return 1


async def mixed(client, example):
    other = asyncio.create_task(asyncio.to_thread(ask, client, messages=said("outside")))
    while client._outside is None:
        await asyncio.sleep(0)  # so that it sees the request before the engine does
    try:
        await client.complete("inside")
    except RuntimeError as error:
        seen.append(str(error))
    await other
    return 1


async def wrong(client, example):
    for path, fields in (
        ("chat/completions", {"messages": said("x"), "n": 2}),
        ("chat/completions", {"messages": said("x"), "response_format": {"type": "json_object"}}),
        ("chat/completions", {"messages": [{"role": "assistant", "tool_calls": [{}], "content": ""}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("chat/completions", {"messages": []}),
        ("completions", {"prompt": ["one", "two"]}),
        ("embeddings", {}),
    ):
        status, body = await asyncio.to_thread(ask, client, path, **fields)
        seen.append((status, body["error"]["message"]))
    status, _ = await asyncio.to_thread(
        ask, client, messages=said("x"), n=1, stream=False, tools=None, temperature=0.5, max_tokens=3
    )
    seen.append(status)
    return 1.0


ADD = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}}


async def by_tools(create, parallel=True):
    """Ask, do the calls of a reply, and ask again, until there are none."""
    messages = [{"role": "system", "content": "Add."}, *said("What is 1 + 2?")]
    while True:
        reply = (await create(model="x", messages=messages, tools=[ADD], parallel_tool_calls=parallel)).choices[0]
        message = reply.message
        seen.append((reply.finish_reason, message.content, [call.id for call in message.tool_calls or ()]))
        if not message.tool_calls:
            return float(message.content)
        messages.append(message)
        for call in message.tool_calls:
            result = sum(json.loads(call.function.arguments).values())
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})


async def tools_inside(client, example):
    return await by_tools(client.chat.completions.create, **example)


async def tools_outside(client, example):
    import openai
    own = openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key)
    return await by_tools(own.chat.completions.create, **example)


async def wrong_tools(client, example):
    for fields in (
        {"tools": ["add"]},
        {"tools": [ADD], "tool_choice": "required"},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}]},
        {"messages": [{"role": "assistant", "content": "", "function_call": {"name": "add"}}]},
    ):
        _, body = await asyncio.to_thread(ask, client, **{"messages": said("x")} | fields)
        seen.append(body["error"]["message"])
    _, body = await asyncio.to_thread(ask, client, "completions", prompt="x", tools=[ADD])
    seen.append(body["error"]["message"])
    _, body = await asyncio.to_thread(ask, client, messages=said("not described"), tools=[ADD], tool_choice="none")
    return float(body["choices"][0]["message"]["content"] == CALL)


CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


async def endless(client, example):
    while True:
        await asyncio.to_thread(ask, client, messages=said("more"))
'''


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clients") / "clients.py"
    path.write_text(CLIENTS, encoding="utf-8")
    return path


def made(clients: Path, function: str, **keys: Any) -> tuple[EnvTask, list[Any], list[tuple[int, dict[str, Any]]]]:
    """Return an environment, what its program notes down, and what the endpoint replied."""
    task = make_task(EnvConfig(name=f"env:{clients}:{function}", **{"chat_format": "model"} | keys))
    assert isinstance(task, EnvTask)
    module: Any = task._type.module  # type: ignore[attr-defined]
    return task, module.seen, module.replies


def wait_for(replies: list[Any], count: int) -> None:
    ended = time.monotonic() + 30
    while len(replies) < count:
        assert time.monotonic() < ended
        time.sleep(0.01)


def test_requests_of_openais_client_are_turns(clients: Path) -> None:
    require("verifiers", find_spec("openai") is not None, "pip install 'esmpi[env]', which brings openai")
    task, seen, _replies = made(clients, "with_openai")
    episodes = [{"i": i} for i in range(3)]
    said: list[str] = []
    for completion in ("a", "b", "ccc"):  # all episodes take turns, as they do in a run
        prompts = [task.play(example, 0, said) for example in episodes]
        if not said:
            assert prompts == [[{"role": "user", "content": f"first {i}"}] for i in range(3)]
        said.append(completion)
    assert prompts == [[{"role": "user", "content": "third b"}]] * 3
    third = Score(reward=3.0, correct=True, figures={"turns": 3.0})
    assert [task.play(example, 0, said) for example in episodes] == [third] * 3
    refused = "stream=True is not supported here: each request is a turn of an episode, and its reply is one text"
    assert seen == [refused] * 3
    # played again, as after the loss of a process, in which nothing is known of it
    again, *_ = made(clients, "with_openai")
    assert again.play(episodes[1], 0, said[:1]) == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "second"},
    ]
    assert again.play(episodes[1], 0, ["a", "c", "ccc"]) == Score(reward=3.0, correct=False, figures={"turns": 3.0}), (
        "what the model says decides"
    )


def test_a_process_finds_the_endpoint_in_its_environment(clients: Path) -> None:
    task, *_ = made(clients, "with_a_process")
    assert task.play({}, 0, ["a"]) == [{"role": "user", "content": "of a process 1"}]
    assert task.play({}, 0, ["a", "b"]) == Score(reward=1.0, correct=True, figures={"turns": 2.0})


def test_texts_are_completed_as_they_are(clients: Path) -> None:
    task, *_ = made(clients, "with_text", chat_format="none")
    assert task.play({}, 0, []) == "Once upon"
    assert task.play({}, 0, [" a time"]) == Score(reward=1.0, correct=True, figures={"turns": 1.0})


def test_one_request_at_a_time(clients: Path) -> None:
    task, seen, replies = made(clients, "at_once")
    assert task.play({}, 0, []) == [{"role": "user", "content": "same"}]
    wait_for(replies, 2)
    assert task.play({}, 0, ["x"]) == Score(reward=1.0, correct=True, figures={"turns": 1.0})
    assert [status for status, _ in replies] == [400, 400, 200]
    assert all("another request of this episode waits" in body["error"]["message"] for _, body in replies[:2])
    task, seen, replies = made(clients, "mixed")
    assert task.play({}, 0, ["x"]) == Score(reward=1.0, correct=True, figures={"turns": 1.0})
    assert seen == ["a request waits at the endpoint: a program may not ask by the client meanwhile"]


def test_what_cannot_be_is_refused_with_the_reason(clients: Path) -> None:
    task, seen, _replies = made(clients, "wrong")
    with pytest.warns(UserWarning, match="(temperature|max_tokens) of a request has no effect: the config's section"):
        assert task.play({}, 0, ["x"]) == Score(reward=1.0, correct=True, figures={"turns": 1.0})
    assert [one[0] for one in seen[:-1]] == [400] * 6 + [404]
    assert seen[-1] == 200
    for part, (_, message) in zip(
        (
            "n=2 is not",
            "response_format={'type'",
            "are no calls of tools",
            "is no text",
            "must be a list",
            "must be a text",
        ),
        seen[:6],
        strict=True,
    ):
        assert part in message
    assert seen[6][1].startswith("POST /v1/embeddings is not known here: there are /chat/completions")


def call(**arguments: int) -> str:
    return f'<tool_call>\n{{"name": "add", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


@pytest.mark.parametrize("function", ["tools_inside", "tools_outside"])
def test_tools_of_a_request_are_offered_and_called(clients: Path, function: str) -> None:
    require("verifiers", find_spec("openai") is not None, "pip install 'esmpi[env]', which brings openai")
    task, seen, _ = made(clients, function)
    seen.clear()
    [system, user] = task.play({}, 0, [])
    assert isinstance(system, dict)
    assert system["content"].startswith("Add.\n\nYou may call functions.")
    assert '"name": "add"' in system["content"]
    both = "I add.\n" + call(a=1, b=2) + "\n" + call(a=4)
    answered = [
        {"role": "assistant", "content": "I add.\n" + call(a=1, b=2) + "\n" + call(a=4)},
        {"role": "user", "content": "<tool_response>\n3\n</tool_response>"},
        {"role": "user", "content": "<tool_response>\n4\n</tool_response>"},
    ]
    assert task.play({}, 0, [both]) == [system, user, *answered]
    assert len(task.play({}, 0, [both, call(a=7)])) == 7  # type: ignore[arg-type]
    assert task.play({}, 0, [both, call(a=7), "7"]) == Score(reward=7.0, correct=True, figures={"turns": 3.0})
    assert seen == [
        ("tool_calls", "I add.", ["call_0", "call_1"]),
        ("tool_calls", None, ["call_2"]),
        ("stop", "7", []),
    ]
    seen.clear()
    assert len(task.play({"parallel": False}, 0, [both])) == 4, "one of the two"  # type: ignore[arg-type]
    # what is no call that can be read is what the model says
    with pytest.raises(ValueError, match="could not convert string to float: '<tool_call>"):
        task.play({}, 1, ['<tool_call>{"name": "add"'])


def test_what_cannot_be_of_tools_is_refused(clients: Path) -> None:
    task, seen, _ = made(clients, "wrong_tools")
    assert task.play({}, 0, []) == [{"role": "user", "content": "not described"}]
    assert task.play({}, 0, [call(a=1).replace("\n", "")]) == Score(reward=1.0, correct=True, figures={"turns": 1.0})
    for part, message in zip(
        (
            "tools=['add']: each must have the type `function`",
            "tool_choice='required' is not supported here",
            "are no calls of tools",
            "`function_call` is not supported here: use `tool_calls`",
            "tools: a text goes on as it is",
        ),
        seen,
        strict=True,
    ):
        assert part in message


def test_an_episode_that_a_limit_ends_is_told_so(clients: Path) -> None:
    task, _seen, replies = made(clients, "endless", max_turns=2)
    assert task.play({}, 0, ["a", "b"]) == Score(reward=0.0, correct=False, figures={"turns": 2.0})
    wait_for(replies, 3)
    assert [status for status, _ in replies] == [200, 200, 400]
    assert replies[2][1]["error"]["message"].startswith("the episode is over: it has reached a limit")


def test_nobody_asks_without_the_key_of_an_episode() -> None:
    for headers in ({}, {"Authorization": "Bearer guessed"}, {"Authorization": "Basic guessed"}):
        request = urllib.request.Request(f"{endpoint().base_url}/chat/completions", b"{}", headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == 401
        assert "client.api_key" in json.load(caught.value)["error"]["message"]
