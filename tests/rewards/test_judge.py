"""The judge: what it asks a server over HTTP, what it reads from the reply, and what becomes of errors."""

import asyncio
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from esmpi.config.problems import ScoringConfig
from esmpi.errors import UserError
from esmpi.rewards import Judge
from esmpi.scoring import Scorer
from esmpi.tasks import Sample, make_task
from esmpi.tasks.python import PythonTaskConfig

EXAMPLE = {"prompt": "Name a fruit.", "answer": "apple"}


class Server(ThreadingHTTPServer):
    """Answers each request with what `reply` makes of the last message: a text, or a status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.reply: Any = lambda text: "7"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """Speaks as much of the protocol as the judge needs."""

    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body | {"path": self.path})
        self.server.headers.append(dict(self.headers))
        reply = self.server.reply(body["messages"][-1]["content"])
        status = reply if isinstance(reply, int) else 200
        said = (
            {"choices": [{"message": {"role": "assistant", "content": reply}}]} if status == 200 else {"error": "busy"}
        )
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    thread = threading.Thread(target=one.serve_forever, daemon=True)
    thread.start()
    yield one
    one.shutdown()
    one.server_close()


def ask(judge: Judge, completion: str = "An apple.", prompt: Any = "Name a fruit.") -> Any:
    return asyncio.run(judge(prompt, completion, EXAMPLE))


def test_what_it_asks(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE", server.endpoint)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    rubric = "{prompt} -> {completion} ({answer}, {{from 0 to 10}})"
    judge = Judge("$JUDGE/", "org/model", rubric, system="Be strict.", max_tokens=5)
    assert ask(judge) == 7
    [asked] = server.asked
    assert asked == {
        "path": "/v1/chat/completions",
        "model": "org/model",
        "temperature": 0.0,
        "max_tokens": 5,
        "messages": [
            {"role": "system", "content": "Be strict."},
            {"role": "user", "content": "Name a fruit. -> An apple. (apple, {from 0 to 10})"},
        ],
    }
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_a_rubric_may_be_a_function_and_a_prompt_messages(server: Server) -> None:
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    ask(Judge(server.endpoint, "m", "{prompt}|{completion}"), prompt=turns)
    ask(Judge(server.endpoint, "m", lambda prompt, completion, example: [{"role": "user", "content": completion}]))
    assert [asked["messages"][-1]["content"] for asked in server.asked] == ["S\nU|An apple.", "An apple."]


@pytest.mark.parametrize(
    ("reply", "keys", "expected"),
    [
        ("Score: 3 of 10, so I give 8.5", {}, 8.5),
        ("-2", {}, -2),
        ("<score>4</score> of 10", {"parse": r"<score>(\d+)</score>"}, 4),
        ("yes", {"parse": lambda text: {"reward": 1, "sure": text == "yes"}}, {"reward": 1, "sure": True}),
        ("10", {"between": (0, 10)}, 10),
    ],
)
def test_what_it_reads(server: Server, reply: str, keys: dict[str, Any], expected: Any) -> None:
    server.reply = lambda text: reply
    assert ask(Judge(server.endpoint, "m", "{completion}", **keys)) == expected


@pytest.mark.parametrize(
    ("reply", "keys", "expected"),
    [
        ("none at all", {}, "the judge's reply has no reward: 'none at all'"),
        ("11", {"between": (0, 10)}, "the judge's reward 11 is not between 0 and 10"),
        (503, {}, 'answers 503: {"error": "busy"}'),
        ("1", {"endpoint": "$NO_SUCH_VARIABLE"}, "endpoint: $NO_SUCH_VARIABLE names a variable that is not set"),
    ],
)
def test_what_is_no_reward_is_said(server: Server, reply: Any, keys: dict[str, Any], expected: str) -> None:
    server.reply = lambda text: reply
    judge = Judge(**{"endpoint": server.endpoint, "model": "m", "rubric": "{completion}"} | keys)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        ask(judge)
    assert expected in str(caught.value)


def test_a_server_that_is_not_there_is_named() -> None:
    judge = Judge("http://127.0.0.1:9/v1", "m", rubric="{completion}")
    with pytest.raises(
        RuntimeError, match=r"^http://127\.0\.0\.1:9/v1/chat/completions cannot be reached: ConnectError"
    ):
        asyncio.run(judge("p", "c", EXAMPLE))


@pytest.mark.parametrize(
    ("rubric", "expected"),
    [("Rate this.", "lacks {completion}"), ("{completion} {", "braces that are text are doubled: {{ and }}")],
)
def test_a_rubric_that_cannot_work_is_refused(rubric: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        Judge("http://localhost/v1", "m", rubric)
    assert expected in str(caught.value)


FILE = """\
from esmpi.rewards import Judge

quality = Judge({endpoint!r}, "m", "{{completion}}", between=(0, 10))

def short(completion, example):
    return -len(completion)
"""


def test_as_a_reward_of_a_file_beside_another(server: Server, tmp_path: Path) -> None:
    """Many requests are under way at once; one that fails is repeated, and costs its completion if it fails again."""
    together = threading.Barrier(8, timeout=20)
    seen: set[str] = set()

    def reply(text: str) -> Any:
        if text.startswith("meet"):
            together.wait()
        if text == "busy" and text not in seen:
            seen.add(text)
            return 429
        return "no idea" if text == "odd" else str(len(text))

    server.reply = reply
    (tmp_path / "own.py").write_text(FILE.format(endpoint=server.endpoint))
    config = PythonTaskConfig(name=f"{tmp_path}/own.py:quality", rewards={"quality": 1, "short": 0.5})
    task = make_task(config)
    settings = ScoringConfig(retries=1, failure_reward=-9, concurrency=8)
    scorer = Scorer(partial(make_task, config, task.source), settings, scope=task.scope, is_async=task.is_async)
    texts = [*[f"meet {i}" for i in range(8)], "busy", "odd"]
    scored = scorer.submit([Sample(completion=text, example=EXAMPLE) for text in texts]).result(timeout=60)
    scorer.close()
    assert [one.reward for one in scored.scores] == [3.0] * 8 + [2.0, -9]
    assert scored.scores[0].figures == {"quality": 6, "short": -6}
    assert scored.failures == {"raised": 1, "timed_out": 0, "died": 0}
    assert str(scored.error).startswith("ValueError: the judge's reply has no reward: 'no idea' (judge.py, line ")
    assert len(server.asked) == 12
