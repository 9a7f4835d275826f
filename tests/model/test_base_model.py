"""Reading model folders."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.model.staging import stage, staged_path

TENSORS = {
    "matrix": torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),
    "vector": torch.arange(6.0).bfloat16(),
    "conv": torch.arange(24.0).view(2, 3, 4).half(),
    "scalar": torch.tensor(2.5),
    "packed": torch.zeros(4, 4, dtype=torch.int8),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def test_tensors_are_listed_with_shape_and_type(folder: Path) -> None:
    tensors = BaseModel(folder).tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "matrix": "F32",
        "vector": "BF16",
        "conv": "F16",
        "scalar": "F32",
        "packed": "I8",
    }
    assert tensors["conv"].num_elements == 24
    assert tensors["scalar"].num_elements == 1


def test_rectangles_are_read_as_float32(folder: Path) -> None:
    checkpoint = BaseModel(folder)
    assert torch.equal(checkpoint.read("matrix", (2, 6), (1, 4)), TENSORS["matrix"][2:6, 1:4])
    assert torch.equal(checkpoint.read("vector", (1, 3), (0, 1)), torch.tensor([[1.0], [2.0]]))
    assert torch.equal(checkpoint.read("conv", (1, 2), (2, 5)), torch.tensor([[14.0, 15.0, 16.0]]))
    assert torch.equal(checkpoint.read("scalar", (0, 1), (0, 1)), torch.tensor([[2.5]]))
    assert all(checkpoint.read(name, (0, 1), (0, 1)).dtype == torch.float32 for name in list(TENSORS)[:4])


def test_weights_that_are_tied_count_once(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(10, 4) for name in ("lm_head.weight", "model.embed_tokens.weight")}
    save_file(tensors, tmp_path / "model.safetensors")
    for tied, count in ((True, 40), (False, 80)):
        (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        assert BaseModel(tmp_path).num_weights == count


def test_packed_tensors_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="packed is stored as I8: ES needs unquantized weights"):
        BaseModel(folder).read("packed", (0, 4), (0, 4))


def test_folders_are_found_and_wrong_ones_explained(folder: Path) -> None:
    assert find_model(str(folder)) == folder
    near = folder.with_name(folder.name + "x")
    with pytest.raises(UserError, match="did you mean"):
        find_model(str(near))
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        find_model(str(folder / "empty"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        find_model(str(folder))
    assert find_model("no-such-organisation-here/no-model") is None


def test_a_download_that_was_cut_off_is_not_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--some--model"
    snapshot = cached / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    (snapshot / "config.json").write_text("{}")
    assert find_model("some/model") is None
    (snapshot / "model.safetensors").touch()
    assert find_model("some/model") == snapshot


def test_a_model_that_was_changed_is_copied_anew(folder: Path, tmp_path: Path) -> None:
    stage(folder, before := staged_path(folder, str(tmp_path / "disk")))
    assert {file.name for file in before.iterdir()} == {file.name for file in folder.iterdir() if file.is_file()}
    assert staged_path(folder, str(tmp_path / "disk")) == before
    os.utime(folder / "model.safetensors", ns=(0, 1))  # other weights of the same size
    assert staged_path(folder, str(tmp_path / "disk")) != before


def test_the_place_of_a_copy_may_name_variables_that_are_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODES_DISK", "/scratch/17")
    monkeypatch.delenv("NO_SUCH_DISK", raising=False)
    assert staged_path(folder, "$NODES_DISK/models").parent == Path("/scratch/17/models")
    with pytest.raises(UserError, match=r"model\.stage_to: \$NO_SUCH_DISK/models names a variable that is not set"):
        staged_path(folder, "$NO_SUCH_DISK/models")
