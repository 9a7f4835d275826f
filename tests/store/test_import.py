"""Checkpoints of the public ES code: a .pth with the names and shapes that vLLM gives its parameters."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from esmpi.__main__ import main
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model

BASE = "esmpi:tiny_countdown"


@pytest.fixture
def theta() -> dict[str, torch.Tensor]:
    folder = find_model(BASE)
    assert folder is not None
    generator = torch.Generator().manual_seed(1)
    stored = BaseModel(folder).tensors
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in stored.items()}


def fused(theta: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict as vLLM would have it."""
    state = dict(theta)
    for name in theta:
        for whole, parts in (("qkv_proj", ("q_proj", "k_proj", "v_proj")), ("gate_up_proj", ("gate_proj", "up_proj"))):
            if f".{parts[0]}." in name:
                pieces = [state.pop(name.replace(parts[0], part)) for part in parts]
                state[name.replace(parts[0], whole)] = torch.cat(pieces)
    table = state["model.embed_tokens.weight"]
    state["model.embed_tokens.weight"] = torch.cat([table, torch.zeros(13, table.shape[1])])
    return state


def test_a_checkpoint_with_fused_names_becomes_a_model_folder(theta: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = fused(theta)
    assert any("qkv_proj" in name for name in state)
    torch.save(state, tmp_path / "model.pth")
    out = tmp_path / "out"
    assert main(["import", str(tmp_path / "model.pth"), "--model", BASE, "--out", str(out), "--dtype", "float32"]) == 0
    parameters = dict(AutoModelForCausalLM.from_pretrained(out).named_parameters())
    for name, tensor in theta.items():
        assert torch.equal(parameters[name], tensor), name


def test_what_does_not_fit_is_named(
    theta: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = dict(theta)
    del state["model.norm.weight"]
    state["model.layers.0.mlp.down_proj.weight"] = torch.zeros(3, 3)
    state["stranger"] = torch.zeros(3)
    torch.save(state, tmp_path / "model.pth")
    assert main(["import", str(tmp_path / "model.pth"), "--model", BASE, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "model.norm.weight: missing in the file" in said
    assert "model.layers.0.mlp.down_proj.weight: shape (3, 3), the base model has" in said
    assert "stranger: the base model has no such tensor" in said
    assert not (tmp_path / "out").exists()


def test_a_tied_model_of_unknown_names_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "other", "tie_word_embeddings": true}')
    state = {"wte.weight": torch.ones(4, 2), "lm_head.weight": torch.ones(4, 2)}
    save_file(state, base / "model.safetensors")
    torch.save({"wte.weight": state["wte.weight"]}, tmp_path / "model.pth")
    assert main(["import", str(tmp_path / "model.pth"), "--model", str(base), "--out", str(tmp_path / "out")]) == 2
    assert "tied, but to no embed_tokens.weight" in capsys.readouterr().err


class Payload:
    """A pickle that would run code."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, (f"open({str(self.mark)!r}, 'w')",))


def test_a_file_that_could_run_code_is_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "was here"
    (tmp_path / "model.pth").write_bytes(pickle.dumps(Payload(mark), protocol=2))
    assert main(["import", str(tmp_path / "model.pth"), "--model", BASE, "--out", str(tmp_path / "out")]) == 2
    assert "so it is not loaded" in capsys.readouterr().err
    assert not mark.exists()
