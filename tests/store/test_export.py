"""Exported models: transformers loads them, with the very values of theta."""

import errno
import json
import os
from collections import UserDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from esmpi.errors import UserError
from esmpi.files import clean_up
from esmpi.model.base_model import BaseModel
from esmpi.store.export import check_target, export

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ORIGIN = {"run_uuid": "12345678", "run": "here", "generation": 3, "theta_digest": "00ff"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def make_base(folder: Path, family: str, tied: bool, max_shard_size: str = "1GB") -> BaseModel:
    torch.manual_seed(1)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=tied))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "tokenizer.json").write_text('{"kept": "as it was"}')
    (folder / "notes.md").write_text("not copied")
    return BaseModel(folder)


def theta_of(base: BaseModel) -> dict[str, torch.Tensor]:
    """Values that no initialisation has."""
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base.tensors.items()}


def loaded(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return dict(model.named_parameters(remove_duplicate=False))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run" / "model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("family", "shards"), [("llama", "1GB"), ("qwen2", "1GB"), ("llama", "20KB")])
def test_export_loads_with_the_exact_values(
    tmp_path: Path, out: Path, family: str, shards: str, tied: bool, dtype: str
) -> None:
    base = make_base(tmp_path / "base", family, tied, shards)
    assert (HEAD in base.tensors) == (not tied)
    assert len({tensor.file for tensor in base.tensors.values()}) > 1 or shards == "1GB"
    theta = theta_of(base)
    export(base, theta, {HEAD: EMBEDDING} if tied else {}, out, dtype, ORIGIN)
    target = getattr(torch, dtype)
    parameters = loaded(out, target)
    assert parameters.keys() == theta.keys() | {HEAD}
    for name, parameter in parameters.items():
        expected = theta[EMBEDDING if tied and name == HEAD else name]
        assert parameter.dtype == target
        assert torch.equal(parameter, expected.to(target)), name
    exported = BaseModel(out)
    assert exported.tensors.keys() == base.tensors.keys()
    config = exported.config
    assert dtype in (config.get("dtype"), config.get("torch_dtype"))
    assert (out / "tokenizer.json").read_text() == '{"kept": "as it was"}'
    assert not (out / "notes.md").exists()
    assert [entry.name for entry in out.parent.iterdir()] == ["model"]


def test_index_has_the_size_of_the_new_weights(tmp_path: Path, out: Path) -> None:
    base = make_base(tmp_path / "base", "llama", False, "20KB")
    export(base, theta_of(base), {}, out, "bfloat16", ORIGIN)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(tensor.num_elements for tensor in base.tensors.values())


def test_stored_buffers_stay_as_they_were(tmp_path: Path, out: Path) -> None:
    base = make_base(tmp_path / "base", "llama", False)
    file = tmp_path / "base" / "model.safetensors"
    buffer = torch.arange(6, dtype=torch.float32).view(2, 3)
    save_file(load_file(file) | {"model.buffer": buffer}, file, metadata={"format": "pt"})
    theta = theta_of(base)
    export(BaseModel(tmp_path / "base"), theta, {}, out, "float32", ORIGIN)
    stored = load_file(out / "model.safetensors")
    assert torch.equal(stored.pop("model.buffer"), buffer)
    assert stored.keys() == theta.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_tensor_that_is_stored_twice_is_exported_twice(tmp_path: Path, out: Path, dtype: str) -> None:
    """Some published checkpoints hold both names of tied tensors."""
    make_base(tmp_path / "base", "llama", True)
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, file, metadata={"format": "pt"})
    base = BaseModel(tmp_path / "base")
    theta = theta_of(base)
    del theta[HEAD]
    export(base, theta, {HEAD: EMBEDDING}, out, dtype, ORIGIN)
    stored = load_file(out / "model.safetensors")
    expected = theta[EMBEDDING].to(getattr(torch, dtype))
    assert torch.equal(stored[HEAD], expected)
    assert torch.equal(stored[EMBEDDING], expected)
    assert torch.equal(loaded(out, getattr(torch, dtype))[HEAD], expected)


def test_an_older_export_is_replaced_anything_else_is_not(tmp_path: Path, out: Path) -> None:
    base = make_base(tmp_path / "base", "llama", False)
    theta = theta_of(base)
    export(base, theta, {}, out, "float32", ORIGIN)
    (out / "left over").write_text("")
    export(base, {name: 2 * tensor for name, tensor in theta.items()}, {}, out, "float32", ORIGIN)
    assert not (out / "left over").exists()
    stored = load_file(out / "model.safetensors")
    assert all(torch.equal(stored[name], 2 * tensor) for name, tensor in theta.items())
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and was not written by esmpi"):
        export(base, theta, {}, foreign, "float32", ORIGIN)
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_an_export_that_fails_leaves_the_older_one(tmp_path: Path, out: Path) -> None:
    base = make_base(tmp_path / "base", "llama", False)
    theta = theta_of(base)
    export(base, theta, {}, out, "float32", ORIGIN)
    before = (out / "model.safetensors").read_bytes()

    class Breaks(UserDict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            if name == list(theta)[3]:
                raise RuntimeError("a worker died")
            return super().__getitem__(name)

    with pytest.raises(RuntimeError, match="a worker died"):
        export(base, Breaks(theta), {}, out, "float32", ORIGIN)
    assert (out / "model.safetensors").read_bytes() == before
    assert [entry.name for entry in out.parent.iterdir()] == ["model"]


def test_the_older_export_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base", "llama", False)
    theta = theta_of(base)
    export(base, theta, {}, out, "float32", ORIGIN)
    before, replace = (out / "model.safetensors").read_bytes(), os.replace

    def fail(source: Path, target: Path) -> None:
        if target == out and ".old." not in source.name:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(UserError, match="what was there before is still there"):
            export(base, {name: 2 * tensor for name, tensor in theta.items()}, {}, out, "float32", ORIGIN)
    assert (out / "model.safetensors").read_bytes() == before
    assert [entry.name for entry in out.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("next_start", [clean_up, lambda directory: check_target(directory / "model")])
def test_a_kill_between_the_renames_loses_no_export(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, next_start: Callable[[Path], None]
) -> None:
    base = make_base(tmp_path / "base", "llama", False)
    export(base, theta_of(base), {}, out, "float32", ORIGIN)
    before, replace = (out / "model.safetensors").read_bytes(), os.replace

    class Killed(BaseException):
        pass

    def die(source: Path, target: Path) -> None:
        if target == out:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(Killed):
            export(base, theta_of(base), {}, out, "float32", ORIGIN)
    assert not out.exists()
    next_start(out.parent)
    assert (out / "model.safetensors").read_bytes() == before
    assert [entry.name for entry in out.parent.iterdir()] == ["model"]


def test_an_export_says_which_theta_it_is_and_all_may_read_it(tmp_path: Path, out: Path) -> None:
    base = make_base(tmp_path / "base", "llama", False)
    export(base, theta_of(base), {}, out, "float32", ORIGIN)
    assert json.loads((out / "esmpi.json").read_text()) == ORIGIN | {"dtype": "float32"}
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode


def test_a_place_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        check_target(tmp_path / "file" / "out")
