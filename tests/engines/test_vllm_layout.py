"""Which processors, GPUs and environment a rank gives its vLLM. Needs no vLLM."""

import os

import pytest

from esmpi.engines.vllm import VllmConfig
from esmpi.engines.vllm.engine import _set_environment, _share, _without_launcher
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.mpi.comm import Place
from esmpi.weights.model_weights import count_once


def visible(monkeypatch: pytest.MonkeyPatch, gpus: str, local_rank: int, num_local_ranks: int, per_rank: int) -> str:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)
    place = Place("here", local_rank, num_local_ranks, (0, 1))
    _set_environment(VllmConfig(), place, [[0]] * per_rank)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_rank_takes_the_gpus_that_slurm_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # all GPUs of the node are shown to all ranks: each takes its own
    assert [visible(monkeypatch, "0,1,2,3", rank, 4, 1) for rank in range(4)] == ["0", "1", "2", "3"]
    assert [visible(monkeypatch, "4,5,6,7", rank, 2, 2) for rank in range(2)] == ["4,5", "6,7"]
    # Slurm bound a GPU to each rank: it is its own already
    assert [visible(monkeypatch, str(rank), rank, 4, 1) for rank in range(4)] == ["0", "1", "2", "3"]
    # one rank with all GPUs of its node
    assert visible(monkeypatch, "0,1,2,3", 0, 1, 4) == "0,1,2,3"
    with pytest.raises(UserError, match="but there are only 3"):
        visible(monkeypatch, "0,1,2", 1, 2, 2)


def test_cores_are_dealt_out() -> None:
    assert _share([0, 1, 2, 3], 2) == [[0, 1], [2, 3]]
    assert _share([4, 5, 6], 2) == [[4], [5]]
    assert _share([7], 2) == [[7], [7]]


def test_the_launcher_is_hidden_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID", "MPI_LOCALRANKID"):
        monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    with _without_launcher():
        assert not [key for key in os.environ if key.startswith(("PMI", "OMPI_", "SLURM", "MPI_"))]
        os.environ["VLLM_LEFT_BEHIND"] = "1"
    assert {key: value for key, value in os.environ.items() if key != "VLLM_LEFT_BEHIND"} == before
    del os.environ["VLLM_LEFT_BEHIND"]


def test_what_several_workers_hold_counts_once() -> None:
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    checkpoint = BaseModel(folder)
    norm, down = "model.norm.weight", "model.layers.0.mlp.down_proj.weight"
    left, right = (down, (0, 128), (0, 192)), (down, (0, 128), (192, 384))
    whole = (norm, (0, 128), (0, 1))
    assert count_once([[whole, left], [whole, right]], checkpoint) == [[0, 1], [1]]
    with pytest.raises(UserError, match=r"each element of model\.layers\.0\.mlp\.down_proj\.weight exactly once"):
        count_once([[whole, left], [whole, left]], checkpoint)
    with pytest.raises(UserError, match="exactly once"):
        count_once([[left], [(down, (0, 128), (190, 384))]], checkpoint)
