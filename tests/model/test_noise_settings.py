"""Which weights of a model have noise, and by what scale."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.model.noise_settings import NoiseSettings
from esmpi.noise.deviation import standard_deviation
from esmpi.noise.format import FULL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = find_model("esmpi:tiny_countdown")
    assert found is not None
    return Path(shutil.copytree(found, tmp_path / "model"))


def test_all_tensors_have_full_rank_noise_by_default(folder: Path) -> None:
    base = BaseModel(folder)
    settings = NoiseSettings.of({})  # a run file of an esmpi that had none of the keys
    assert settings.is_default
    assert settings.names(base) == [name for name in base.tensors if name != "lm_head.weight"]
    assert settings.noise(base) == FULL


def test_matrices_have_low_rank_noise(folder: Path) -> None:
    base = BaseModel(folder)
    settings = NoiseSettings.of({"noise": "low_rank", "rank": 2})
    noise = settings.noise(base)
    assert noise.rank == 2
    without = {name for name, tensor in base.tensors.items() if noise.scale(name, tensor.shape) == 0}
    assert without == {name for name in base.tensors if name.endswith(("norm.weight", ".bias"))}
    assert without == base.tensors.keys() - set(settings.names(base))


def test_a_model_without_matrices_is_refused(folder: Path) -> None:
    save_file({"conv.weight": torch.zeros(4, 2, 3), "norm.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"es\.noise: low_rank: no matrix of .* takes part: choose full"):
        NoiseSettings(rank=1).noise(BaseModel(folder))


@pytest.mark.parametrize("rank", [0, 1])
def test_patterns_choose_tensors(folder: Path, rank: int) -> None:
    base = BaseModel(folder)
    settings = NoiseSettings(rank, include=("*.mlp.*", "*.self_attn.*"), exclude=("*.3.*", "*.bias"))
    names = settings.names(base)
    assert names
    assert all((".mlp." in name or ".self_attn." in name) and ".3." not in name for name in names)
    noise = settings.noise(base)
    assert {name for name, tensor in base.tensors.items() if noise.scale(name, tensor.shape)} == set(names)
    count = sum(base.tensors[name].num_elements for name in names)
    words = f"{len(names)} of {len(base.tensors)} tensors with {count:,} weights, {count / base.num_weights:.1%} of all"
    assert f"on {words}" in settings.describe(base)


def test_bad_patterns_are_refused(folder: Path) -> None:
    base = BaseModel(folder)
    with pytest.raises(UserError, match=r"es\.include: 'q_proj' matches no tensor of .*; names are such as model\."):
        NoiseSettings(include=("q_proj",)).names(base)
    with pytest.raises(UserError, match=r"es\.exclude: 'visual\.\*' matches no tensor"):
        NoiseSettings(exclude=("visual.*",)).noise(base)
    with pytest.raises(UserError, match="no tensor is left that has noise"):
        NoiseSettings(exclude=("*",)).noise(base)


def test_the_scale_of_a_tensor_is_its_standard_deviation(folder: Path) -> None:
    base = BaseModel(folder)
    noise = NoiseSettings(exclude=("*embed_tokens*",), sigma_per_tensor="std").noise(base)
    stored = load_file(folder / "model.safetensors")
    assert noise.scales is not None
    assert noise.scales.keys() == stored.keys() - {"model.embed_tokens.weight"}
    for name, scale in noise.scales.items():
        assert scale == np.float32(scale)
        assert scale == pytest.approx(stored[name].double().std(correction=0).item(), rel=1e-6)


def test_a_deviation_has_the_same_bits_however_the_tensor_is_read() -> None:
    values = np.random.default_rng(5).normal(3, 0.1, 10_007).astype(np.float32)

    def in_parts(size: int) -> Callable[[], Iterator[np.ndarray]]:
        return lambda: (values[i : i + size] for i in range(0, len(values), size))

    def total(of: np.ndarray) -> float:
        lanes = [0.0] * 32
        for place, value in enumerate(of.tolist()):
            lanes[place % 32] += value
        return sum(lanes)

    mean = total(values.astype(np.float64)) / len(values)
    expected = np.float32(math.sqrt(total((values.astype(np.float64) - mean) ** 2) / len(values)))
    whole = standard_deviation(in_parts(len(values)))
    assert whole == expected
    assert whole == pytest.approx(values.astype(np.float64).std(), rel=1e-7)
    assert {standard_deviation(in_parts(size)) for size in (1, 31, 32, 500, 4097)} == {whole}
    assert standard_deviation(lambda: iter(())) == 0.0
    assert standard_deviation(lambda: iter([np.full(99, 0.1, np.float32)])) < 1e-8
