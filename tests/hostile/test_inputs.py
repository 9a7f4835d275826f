"""Model folders, configs and data files of strangers."""

import json
import os
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from esmpi.config.reader import load_config
from esmpi.config.sections import ModelConfig
from esmpi.data.files import read_rows
from esmpi.engines.hf import HfConfig
from esmpi.engines.hf.engine import HfEngine
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.mpi.comm import Place


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(str(files("esmpi") / "assets" / "tiny_countdown"), tmp_path / "model"))


def index(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(content)


def header(size: int, text: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + text)


def pipe(name: str) -> Callable[[Path], object]:
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))


PROMISE = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()


@pytest.mark.parametrize(
    "how",
    [
        index(json.dumps({"weight_map": {"w": "../outside.safetensors"}})),
        index(json.dumps({"weight_map": {"w": "/etc/passwd"}})),
        index(json.dumps({"weight_map": {"w": "pytorch_model.bin"}})),
        index(json.dumps({"weight_map": {"w": 5}})),
        index(json.dumps({"weight_map": ["model.safetensors"]})),
        index(json.dumps({"weight_map": {"w": "missing.safetensors"}})),
        *(index("{}"), index("[]"), index("["), index("[" * 100_000), index("\0"), index("5")),
        *(header(2**63, b"{}"), header(2**40, b"{}"), header(100, b"{}"), header(2, b"{]"), header(0, b"")),
        header(len(PROMISE), PROMISE),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04pickled"),
        lambda folder: os.truncate(folder / "model.safetensors", 1000),
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"),
        *(pipe("config.json"), pipe("model.safetensors.index.json")),
    ],
)
def test_model_folders(how: Callable[[Path], object], model: Path) -> None:
    (model.parent / "outside.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    how(model)
    began = time.process_time()
    with pytest.raises(UserError, match=r"model|not a regular file"):
        BaseModel(model)
    assert time.process_time() - began < 5


def test_files_that_are_links_are_read(model: Path) -> None:
    """As in the hub's cache, where all files of a snapshot are links to blobs elsewhere."""
    (model / "model.safetensors").rename(model.parent / "blob")
    (model / "model.safetensors").symlink_to(model.parent / "blob")
    assert BaseModel(model).num_weights == 822_656


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *(("config.json", {key: value}) for key, value in (("num_attention_heads", 0), ("hidden_size", -1))),
        *(("config.json", {key: value}) for key, value in (("hidden_act", "none-such"), ("vocab_size", "many"))),
        ("config.json", {"rope_scaling": {"rope_type": "none-such"}}),
        ("config.json", {"dtype": "none-such"}),
        ("generation_config.json", {"watermarking_config": {"x": 1}}),
        ("tokenizer_config.json", {"eos_token": {"x": 1}}),
        ("tokenizer_config.json", {"model_max_length": "many"}),
        ("tokenizer.json", None),
    ],
    ids=str,
)
def test_values_that_transformers_cannot_use(name: str, values: dict[str, Any] | None, model: Path) -> None:
    known = json.loads((model / name).read_text()) if values is not None else {}
    (model / name).write_text(json.dumps(known | (values or {})))
    with pytest.raises(UserError, match=r"^model\.path: transformers cannot load "):
        HfEngine(ModelConfig(path=str(model)), HfConfig(device="cpu"), BaseModel(model), Place("here", 0, 1, (0,)))


LEAST = "run: {name: x}\nmodel: {path: y}\nes: {generations: 1}\ntask: {name: countdown}\n"
LAUGHS = "&a0 [x,x,x,x,x,x,x,x,x]" + "".join(f", &a{i + 1} [{','.join([f'*a{i}'] * 9)}]" for i in range(9))


@pytest.mark.parametrize(
    "text",
    [
        LEAST + f"engine: {{kind: vllm, vllm_args: {{x: [{LAUGHS}]}}}}",
        LEAST + "engine: {kind: vllm, vllm_args: &a {x: *a}}",
        LEAST + "run: {name: z}",
        LEAST + f"data: {{num_train: 1{'0' * 400}}}",
        LEAST + f"scoring: {{failure_reward: -1{'0' * 400}}}",
        LEAST + 'data: {columns: {a: ["\\udcff"]}}',
        *(
            "[" * 10_000,
            "{a: " * 10_000,
            "run: !!python/object/apply:os.system ['true']",
            "run: \0",
            "run: !!binary aGk=",
        ),
        *(
            "run: &a {name: *a}",
            "&a [*a]",
            "- " * 10_000,
            "run: {<<: [1, 2]}",
            "? {a: b}\n: c",
            "%YAML 9.9\n---\nrun: x",
        ),
    ],
    ids=lambda text: text[-30:],
)
def test_configs(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(UserError):
        load_config(tmp_path / "config.yaml")
    assert time.process_time() - began < 10


def test_a_config_without_an_end() -> None:
    with pytest.raises(UserError, match=r"/dev/zero has more than 4,194,304 bytes"):
        load_config("/dev/zero")


def test_words_that_are_no_text(tmp_path: Path) -> None:
    """A command line may hold any bytes."""
    (tmp_path / "config.yaml").write_text(LEAST)
    for key in ("run.output_dir", "model.path", "es.sigma"):
        with pytest.raises(UserError, match=f"{key}: must be text in UTF-8"):
            load_config(tmp_path / "config.yaml", [os.fsdecode(f"{key}=".encode() + b"\xff")])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl", b'{"a": "\xff\xfe"}\n'),
        ("rows.jsonl", '{"a": 1}'.encode("utf-16")),
        ("rows.jsonl", b"[" * 100_000),
        ("rows.jsonl", b'{"a": ' * 100_000),
        ("rows.jsonl", b"\0" * 100),
        ("rows.jsonl", b'{"a": "\\ud800"}'),
        ("rows.jsonl", b'{"a": 1' + b"0" * 10_000 + b"}"),
        ("rows.json", b"[" * 100_000),
        ("rows.json", b'{"a": 1}'),
        ("rows.csv", b'a,b\n"never closed,1\n'),
        ("rows.csv", b"a,a\n1,2\n"),
        ("rows.csv", b"a,b\n1\n"),
        ("rows.csv", b""),
        ("rows.csv", b"\xff\xfea,b"),
        ("rows.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1"),
        ("rows.parquet", b""),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:12].hex(),
)
def test_data_files(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"data\.train"):
        read_rows("data.train", str(tmp_path / name), "train", None)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_pipe_is_no_data_file(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"rows{suffix}")
    with pytest.raises(UserError, match="is not a regular file"):
        read_rows("data.train", str(tmp_path / f"rows{suffix}"), "train", None)
