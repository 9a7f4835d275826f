"""The readers that `tools/fuzz.py` fuzzes: of files, of what comes over the network, and of words of a command line."""

import asyncio
import io
import json
import os
import random
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from esmpi.config.overrides import overrides_of
from esmpi.config.reader import load_config, parse_config
from esmpi.data.files import read_rows
from esmpi.errors import UserError
from fuzzing import models, runs
from fuzzing.inputs import Make, Target, damaged, of_bytes, of_json, of_json_lines
from fuzzing.samples import CONFIG


def _config(folder: Path) -> Target:
    samples = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))]
    path = folder / "config.yaml"
    return Target(make=of_bytes(*samples), check=_written(path, load_config))


def _config_values(folder: Path) -> Target:
    path = folder / "config.yaml"
    full = parse_config(CONFIG).to_dict()
    return Target(make=of_json(full), check=_written(path, load_config))


def _override(folder: Path) -> Target:
    words = [b"es.sigma=1e-3", b'engine.vllm_args={"a": [1, 2]}', b"data.train=x.jsonl", b"run.name=x y"]
    return Target(make=of_bytes(*words), check=lambda data: _walk(overrides_of([_text(data)])))


def _sweep(folder: Path) -> Target:
    """The words of a sweep, with the config that it changes, up to the names of its runs."""
    from esmpi.launch.sweep import plan_sweep

    path = folder / "config.yaml"
    path.write_text(json.dumps(CONFIG))
    samples = [
        b"es.sigma=1e-3,3e-3\nes.alpha=1,2,3",
        b"es.sigma=log:1e-4:1e-2\nrun.seed=1,2",
        b'es.exclude=["a"],["b","c"]\nsampling.temperature=uniform:0:1',
        b"es.population_size=8,16\nmodel.path='x,y',z",
    ]

    def check(data: bytes) -> None:
        words = _text(data).split("\n")
        plan_sweep(path, words)
        plan_sweep(path, words, num_draws=3)

    return Target(make=of_bytes(*samples), check=check)


def _sweep_log(folder: Path) -> Target:
    from esmpi.launch.sweep import last_words

    sample = b"esmpi: started\n[rank 0] x\nesmpi: model.path: no such model\nValueError: x\n" * 20
    path = folder / "x.log"
    return Target(make=of_bytes(sample), check=_written(path, last_words))


def _rows(ending: str, sample: bytes, structured: Any = None) -> Make:
    def make_target(folder: Path) -> Target:
        path = folder / f"data.{ending}"

        def check(data: bytes) -> None:
            path.write_bytes(data)
            read_rows("data.train", str(path), "train", None)

        make = of_bytes(sample)
        if structured is not None:
            odd = of_json_lines(structured) if ending == "jsonl" else of_json(structured)
            return Target(make=lambda rng: rng.choice((make, odd))(rng), check=check)
        return Target(make=make, check=check)

    return make_target


def _csv(folder: Path) -> Target:
    """Tables, some of them very wide or long."""
    path = folder / "data.csv"
    plain = of_bytes(b'a,b\n1,"x"\n"[1, 2]",\n')

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.8:
            return plain(rng)
        cells = b",".join(b"%d" % (i if rng.random() < 0.999 else 0) for i in range(rng.choice((50, 5000, 50_000))))
        return rng.choice((b"\n", b"\r")).join([cells] * rng.choice((1, 2, 3)))

    def check(data: bytes) -> None:
        path.write_bytes(data)
        read_rows("data.train", str(path), "train", None)

    return Target(make=make, check=check)


def _parquet(folder: Path) -> Target:
    import datetime

    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    _cached_in(folder)
    rows = {
        "problem": ["1 + 1", "é", None],
        "n": [1, 2, 3],
        "x": [0.5, None, 1.5],
        "list": [["a"], [], None],
        "inner": [{"a": 1}, {"a": 2}, None],
        "day": [datetime.date(2026, 1, 1)] * 3,
    }
    samples = []
    for compression in ("none", "snappy"):
        file = io.BytesIO()
        parquet.write_table(pyarrow.table(rows), file, compression=compression, store_schema=False)
        samples.append(file.getvalue())
    count = iter(range(10**9))

    def check(data: bytes) -> None:
        path = folder / f"data{next(count)}.parquet"
        path.write_bytes(data)
        try:
            read_rows("data.train", str(path), "train", None)
        finally:
            path.unlink()

    return Target(make=of_bytes(*samples), check=check)


def _saved_data_set(name: str) -> Make:
    def make_target(folder: Path) -> Target:
        import datasets

        _cached_in(folder)
        datasets.disable_progress_bars()
        saved = folder / "saved"
        datasets.Dataset.from_dict({"problem": ["a", "b"], "n": [1, 2]}).save_to_disk(str(saved))
        path = saved / name

        def check(data: bytes) -> None:
            path.write_bytes(data)
            read_rows("data.train", str(saved), "train", None)

        data = path.read_bytes()
        return Target(make=of_json(json.loads(data)) if name.endswith("json") else of_bytes(data), check=check)

    return make_target


def _task_file(folder: Path) -> Target:
    """A file of the user's own, whose imports are looked for."""
    from esmpi.plugins import digest_of_code

    path = folder / "task.py"
    code = [
        "import json",
        "from . import x",
        "from .. import *",
        "import a.b.c as d",
        "def f(x, y):",
        "    return 1",
        "",
    ]
    sample = "\n".join(code).encode()

    def check(data: bytes) -> None:
        digest_of_code(str(path), data)

    return Target(make=of_bytes(sample), check=check)


def _request(folder: Path) -> Target:
    """Requests to the server by which programs ask the model."""
    from esmpi.tasks.endpoint import Endpoint

    body = json.dumps({"model": "x", "messages": [{"role": "user", "content": [{"text": "hi"}]}], "n": 1})
    plain = json.dumps({"prompt": "hi", "stream": False})
    made: list[tuple[Endpoint, str, list[Any]]] = []

    def make(rng: random.Random) -> bytes:
        path, text = rng.choice((("chat/completions", body), ("completions", plain)))
        content = of_json(json.loads(text))(rng)
        head = (
            f"POST /v1/{path} HTTP/1.1\r\nAuthorization: Bearer KEY\r\nContent-Length: {len(content)}\r\n"
            f"Connection: close\r\n\r\n"
        ).encode()
        return (damaged(head, rng) if rng.random() < 0.4 else head) + content

    def check(data: bytes) -> None:
        if not made:  # threads do not survive a fork
            server, wrong = Endpoint(), list[Any]()
            server._loop.set_exception_handler(lambda loop, context: wrong.append(context))
            made.append((server, server.admit(lambda prompt: _answered()), wrong))
        [(server, key, wrong)] = made
        host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(data.replace(b"KEY", key.encode()))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), server._loop).result(5)
        if wrong:
            raise RuntimeError(f"{wrong[0].get('message')}: {wrong[0].get('exception')!r}")

    return Target(make=make, check=check, allowed=(UserError, ConnectionError))


def _answered() -> "Future[str]":
    future: Future[str] = Future()
    future.set_result("hello")
    return future


def _judge(folder: Path) -> Target:
    """What a judge's server answers; a reply without a reward is RuntimeError or ValueError."""
    import httpx

    from esmpi.rewards import Judge

    sample = {"choices": [{"message": {"role": "assistant", "content": "I give it 7 / 10."}}], "usage": {"tokens": 5}}
    odd = of_json(sample)

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.7:
            return odd(rng)
        unit = rng.choice(("7 ", "1.", "-", "9", "7 / ", "+.", "1 out of ", "٣", " ", "5/"))
        text = unit * rng.choice((10, 1000, 100_000))
        return json.dumps({"choices": [{"message": {"content": text}}]}).encode()

    def check(data: bytes) -> None:
        judge = Judge("http://localhost/v1", "x", "Rate {completion}", api_key="")
        answer = httpx.MockTransport(lambda request: httpx.Response(200, content=data))
        judge._client = httpx.AsyncClient(transport=answer)
        assert isinstance(asyncio.run(judge("prompt", "completion", {})), float)

    return Target(make=make, check=check, allowed=(UserError, RuntimeError, ValueError))


TARGETS: dict[str, Make] = {
    "config": _config,
    "config values": _config_values,
    "override": _override,
    "sweep": _sweep,
    "sweep log": _sweep_log,
    "jsonl": _rows("jsonl", b'{"problem": "1 + 1", "answer": ["2"], "n": 1.5}\n' * 3, [{"a": "x", "b": [1, {}]}] * 3),
    "json": _rows("json", b'[{"problem": "1 + 1", "answer": ["2"], "n": 1.5}]', [{"a": "x", "b": [1, {}]}] * 3),
    "csv": _csv,
    "parquet": _parquet,
    "saved data set": _saved_data_set("data-00000-of-00001.arrow"),
    "state of a saved data set": _saved_data_set("state.json"),
    "info of a saved data set": _saved_data_set("dataset_info.json"),
    "task file": _task_file,
    "request": _request,
    "judge": _judge,
    **runs.TARGETS,
    **models.TARGETS,
}


def _cached_in(folder: Path) -> None:
    """Let the library `datasets` keep what it makes of files in a folder that goes away."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    tempfile.tempdir = None


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _walk(values: object) -> None:
    repr(values)


def _written(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return check
