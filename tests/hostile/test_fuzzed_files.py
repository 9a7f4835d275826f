"""Inputs by which `tools/fuzz.py`, or reading with it in mind, has broken a reader."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from made_runs import make_run
from safetensors.numpy import save_file

from esmpi.data.files import read_rows
from esmpi.errors import UserError
from esmpi.launch.sweep import plan_sweep
from esmpi.model.base_model import BaseModel
from esmpi.plugins import digest_of_code
from esmpi.record.past import past_of
from esmpi.record.sinks.base import Sink
from esmpi.record.sinks.csv import Csv
from esmpi.record.sinks.jsonl import JsonLines
from esmpi.report import card
from esmpi.report.member_samples import read_generation
from esmpi.rewards import Judge
from esmpi.store.export import export
from esmpi.store.run_file import member_samples_path
from esmpi.store.state_dict import read_state_dict
from esmpi.tasks.endpoint import _reply

DEEP = "[" * 100_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": np.ones((4, 4), np.float32), "v": np.ones(4, np.float32)}, folder / "model.safetensors")
    return folder


def test_a_table_of_many_columns(tmp_path: Path) -> None:
    """Whether a name is there twice took time that grows with the square of their number: minutes for these."""
    (tmp_path / "x.csv").write_text(",".join(f"c{i}" for i in range(100_000)) + "\n")
    began = time.process_time()
    assert read_rows("data.train", str(tmp_path / "x.csv"), "train", None) == []
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("part", "damaged"),
    [(b"xyz", b"\xff\xff\xff"), (np.int32([0, 3, 4]).tobytes(), np.int32([0, 3, 2**30]).tobytes())],
    ids=["bytes", "an offset"],
)
def test_texts_of_a_saved_data_set_that_are_none(part: bytes, damaged: bytes, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"a": ["xyz", "b"]}).save_to_disk(str(tmp_path / "saved"))
    [path] = (tmp_path / "saved").glob("*.arrow")
    whole = path.read_bytes()
    assert whole.count(part) == 1
    path.write_bytes(whole.replace(part, damaged))
    with pytest.raises(UserError, match=r"data\.train: cannot read .*saved"):
        read_rows("data.train", str(tmp_path / "saved"), "train", None)


@pytest.mark.parametrize("value", [DEEP, '{"which": "best", "member": Infinity}', "5", "\\ud800"], ids=lambda v: v[:9])
def test_completions_of_members(value: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", generations=2, every=2)
    path = member_samples_path(run.path, 0)
    path.write_text(value)
    with pytest.raises(UserError, match="is damaged"):
        read_generation(run, 0)
    assert all(not past.samples for past in past_of(run, 0) if past.generation == 0)


@pytest.mark.parametrize("figures", [5, {"x": "y"}, {"x": None}, {"x": 10**400}], ids=lambda value: str(value)[:12])
def test_figures_of_completions(figures: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", generations=2, every=2)
    path = member_samples_path(run.path, 0)
    line = json.loads(path.read_text().splitlines()[0]) | {"figures": figures}
    path.write_text(json.dumps(line) + "\n")
    assert all(not past.samples for past in past_of(run, 0) if past.generation == 0)


ROW = '{"group": "generation", "generation": %s, "x": 1}'


@pytest.mark.parametrize("line", [DEEP, *(ROW % n for n in ("Infinity", "NaN", "1e999", '"x"', "[]", "1.5"))])
def test_figures_in_json_lines(line: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    path.write_bytes(b"\n".join([(ROW % 0).encode(), line.encode(), b"\xff", (ROW % 1).encode(), b""]))
    sink = JsonLines(tmp_path, {}, 5)
    sink.close()
    assert sink.lacks_from == 2
    assert path.read_text() == f"{ROW % 0}\n{ROW % 1}\n"


@pytest.mark.parametrize(
    "line", ['generation,1,"a', "x" * 200_000, f"generation,{'9' * 5000},x,1", "\0", "generation,٣,x,1"]
)
def test_figures_in_a_table(line: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    good = [f"generation,{generation},x,1.0" for generation in (0, 1)]
    path.write_bytes("\n".join(["group,generation,name,value", good[0], line, good[1], ""]).encode() + b"\xff\n")
    sink = Csv(tmp_path, {}, 5)
    sink.close()
    assert sink.lacks_from == 2
    assert path.read_text().split()[1:] == good


@pytest.mark.parametrize(("sink", "name"), [(Csv, "figures.csv"), (JsonLines, "figures.jsonl")])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_figures_that_are_no_file(sink: type[Sink], name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / name)
    signal.alarm(60)
    try:
        with pytest.raises(UserError, match=f"{name} is not a regular file"):
            sink(tmp_path, {}, 5)
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("unit", ["\n", " \n", "\r\n"], ids=repr)
def test_a_card_with_endless_metadata(unit: str, model: Path) -> None:
    (model / "README.md").write_text("---\n" + unit * 300_000)
    began = time.process_time()
    assert card.license_of(model) == {}
    assert time.process_time() - began < 1
    (model / "README.md").write_text("---\nlicense: mit\n---\n" + unit * 300_000)
    assert card.license_of(model) == {"license": "mit"}


@pytest.mark.parametrize("content", ["[]", "5", DEEP, "{"], ids=lambda content: content[:5])
def test_a_generation_config(content: str, model: Path, tmp_path: Path) -> None:
    (model / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=r"is damaged or incomplete"):
        card.generation_config(make_run(tmp_path / "run", generations=2, every=2), BaseModel(model))


@pytest.mark.parametrize("metadata", [None, [], "x", {"a": 1}])
def test_the_metadata_of_an_index(metadata: Any, model: Path, tmp_path: Path) -> None:
    weight_map = {"w": "model.safetensors", "v": "model.safetensors"}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    theta = {"w": torch.zeros(4, 4), "v": torch.zeros(4)}
    export(BaseModel(model), theta, {}, tmp_path / "out", "float32", {})
    written = json.loads((tmp_path / "out" / index.name).read_text())
    assert written["metadata"] == (metadata if isinstance(metadata, dict) else {}) | {"total_size": 80}


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.tensor(1.0), r"shape \(\)|no such tensor"),
        (torch.ones(4, 4).to_sparse(), "is sparse, quantized"),
        (torch.ones(4, 4, dtype=torch.complex64), "is sparse, quantized"),
        (torch.ones(4, 4, device="meta"), "is sparse, quantized"),
        (torch.ones(1).expand(2**20, 2**20), r"shape \(4, 1048576\)|no such tensor"),
    ],
    ids=["scalar", "sparse", "complex", "meta", "huge"],
)
def test_checkpoints(tensor: torch.Tensor, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"model.embed_tokens.weight": np.ones((4, 4), np.float32)}, folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.qkv_proj.weight"):
        torch.save({name: tensor}, tmp_path / "x.pth")
        with pytest.raises(UserError, match=message):
            read_state_dict(tmp_path / "x.pth", BaseModel(folder))


@pytest.mark.parametrize(
    "body", [DEEP.encode(), b"\xff", b"5", b'{"prompt": ' + DEEP.encode()], ids=lambda b: repr(b[:12])
)
def test_a_request_that_is_none(body: bytes) -> None:
    def ask(prompt: Any) -> "Future[str]":
        raise AssertionError("the model is not asked")

    with pytest.raises(ValueError, match="JSON"):
        asyncio.run(_reply("POST", "/v1/completions", body, ask))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"5",
        DEEP.encode(),
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": 7}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_a_judge_answers(body: bytes) -> None:
    judge = Judge("http://localhost/v1", "x", "Rate {completion}", api_key="")
    answer = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    judge._client = httpx.AsyncClient(transport=answer)
    with pytest.raises(RuntimeError, match=r"answers with"):
        asyncio.run(judge("prompt", "completion", {}))


def test_a_grid_that_is_too_large(tmp_path: Path) -> None:
    config = {"run": {"name": "x"}, "model": {"path": "x"}, "es": {"generations": 1}, "task": {"name": "countdown"}}
    (tmp_path / "x.yaml").write_text(json.dumps(config))
    keys = ("es.sigma", "es.alpha", "sampling.temperature", "sampling.top_p", "es.generations")
    with pytest.raises(UserError, match=r"the grid has 3,200,000 settings, more than 10,000"):
        plan_sweep(tmp_path / "x.yaml", [f"{key}={','.join(map(str, range(20)))}" for key in keys])


@pytest.mark.parametrize("end", ["\udcbc", "[", "{", "&a *a", "x"])
def test_a_range_that_is_none(end: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("{}")
    with pytest.raises(UserError, match="is no range"):
        plan_sweep(tmp_path / "x.yaml", [f"es.sigma=log:{end}:1"])


def test_a_module_with_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    code = b"import " + b"x" * 300 + b"\n"
    assert digest_of_code(str(tmp_path / "task.py"), code)


def test_a_sandbox_under_a_limit_that_cannot_be_raised() -> None:
    """As where a site limits CPU time: the sandbox's own limits are higher, and do not hold then."""
    code = "from esmpi.sandbox import Sandbox\nprint(Sandbox().run('x = 1', ['assert x']).passed)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (40, 40)),
    )
    assert done.stdout == "(True,)\n", done.stderr
