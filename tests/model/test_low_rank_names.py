"""Which weights of a model take part in low-rank noise."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = find_model("esmpi:tiny_countdown")
    assert found is not None
    return Path(shutil.copytree(found, tmp_path / "model"))


def test_matrices_of_the_tiny_model_take_part(folder: Path) -> None:
    base = BaseModel(folder)
    noise = base.low_rank(2)
    assert noise is not None
    assert noise.rank == 2
    rest = base.tensors.keys() - noise.names
    assert rest == {name for name in base.tensors if name.endswith(("norm.weight", ".bias"))}
    assert base.low_rank(0) is None


def test_a_model_without_such_matrices_is_refused(folder: Path) -> None:
    save_file({"conv.weight": torch.zeros(4, 2, 3), "norm.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"es\.noise: low_rank: .* has no matrix: choose full"):
        BaseModel(folder).low_rank(1)
