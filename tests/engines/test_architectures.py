"""Engine hf with small models of many architectures: live weights, outputs, digests and exports; and odd checkpoints.

tools/try_architectures.py compares them with engine vllm, which takes too long to be a test.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import ROOT

sys.path.append(str(ROOT / "tools"))

from architectures import MODELS, make
from try_architectures import trial, verdict

from esmpi.model.base_model import BaseModel


@pytest.mark.parametrize("name", MODELS)
def test_an_architecture_works(tmp_path: Path, name: str) -> None:
    found = trial("hf", make(name, tmp_path / "model"))
    assert verdict(found) == "works"
    assert found["waves"] == "yes" or found["waves"].startswith(("one at a time, for ", "refused: engine.wave_size: "))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["gpt_neox", "mixtral"])
def test_files_of_other_types_in_pieces(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    path = make(name, tmp_path / "model", dtype, shard="100KB")
    assert len(list(Path(path).glob("*.safetensors"))) > 1
    assert verdict(trial("hf", path, rank=0)) == "works"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mixtral"])
def test_tied_and_untied_heads(tmp_path: Path, name: str, tied: bool) -> None:
    path = make(name, tmp_path / "model", tie_word_embeddings=tied)
    heads = [tensor for tensor in BaseModel(Path(path)).tensors if tensor.startswith(("lm_head", "embed_out"))]
    assert len(heads) == (0 if tied else 1)
    assert verdict(trial("hf", path, rank=0)) == "works"


def test_a_tied_head_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    path = make("gpt2", tmp_path / "model")
    once = trial("hf", path, rank=0)
    file = Path(path) / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    twice = trial("hf", path, rank=0)
    assert verdict(twice) == "works"
    assert twice == once
    base = BaseModel(Path(path))
    assert base.tied_to(sorted(base.tensors.keys() - {"lm_head.weight"})) == {
        "lm_head.weight": "transformer.wte.weight"
    }


def test_a_checkpoint_without_a_weight_is_refused_by_its_name(tmp_path: Path) -> None:
    path = make("mixtral", tmp_path / "model")
    file = Path(path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    refused = trial("hf", path)["refused"]
    assert refused == "engine: parameter lm_head.weight is not filled from the checkpoint: ES could not perturb it"


def test_a_quantized_checkpoint_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    path = make("qwen2", tmp_path / "model")
    config = Path(path) / "config.json"
    keys = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    config.write_text(json.dumps(keys))
    (Path(path) / "tokenizer.json").unlink()  # nothing of the folder is needed for this
    for kind in ("hf", "vllm"):
        assert trial(kind, path)["refused"] == f"model.path: {path} is quantized: ES needs unquantized weights"
