"""Which processors, GPUs and environment a rank gives its vLLM. Needs no vLLM."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT

from esmpi.engines.hf import HfConfig
from esmpi.engines.vllm import VllmConfig
from esmpi.engines.vllm.engine import _share
from esmpi.engines.vllm.gpus import check_gpus
from esmpi.engines.vllm.self_test import _difference
from esmpi.engines.vllm.workers import _without_launcher
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.mpi.comm import Place
from esmpi.weights.model_weights import count_once

LAUNCHERS = {
    "MPICH": ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return which GPUs a rank sees after the preparation: node(visible, local rank, GPUs of a rank)."""
    for name in (variable for names in LAUNCHERS.values() for variable in names):
        monkeypatch.delenv(name, raising=False)

    def prepared(gpus: str, local_rank: int, per_rank: int, launcher: str = "MPICH") -> str:
        size, rank, local = LAUNCHERS[launcher]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        for name, value in ((size, "64"), (rank, str(40 + local_rank)), (local, str(local_rank))):
            monkeypatch.setenv(name, value)
        VllmConfig(tensor_parallel_size=per_rank).prepare()
        return os.environ["CUDA_VISIBLE_DEVICES"]

    return prepared


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_rank_sees_its_own_gpus_before_mpi_starts(
    node: Callable[..., str], launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # all GPUs of the node are shown to all ranks: each takes its own
    assert [node("0,1,2,3", rank, 1, launcher) for rank in range(4)] == ["0", "1", "2", "3"]
    assert [node("4,5,6,7", rank, 2, launcher) for rank in range(2)] == ["4,5", "6,7"]
    # Slurm bound a GPU to each rank: it is its own already
    assert [node(str(rank), rank, 1, launcher) for rank in range(4)] == ["0", "1", "2", "3"]
    # one rank with all GPUs of its node
    assert node("0,1,2,3", 0, 4, launcher) == "0,1,2,3"
    # GPUs, or slices of one, by their UUIDs
    assert node("GPU-8e2a,GPU-77b1", 1, 1, launcher) == "GPU-77b1"
    assert node("MIG-41c0, MIG-5d9e", 1, 1, launcher) == "MIG-5d9e"
    # engine hf takes the GPU of its number itself, but would only find the first slice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-41c0,MIG-5d9e")
    HfConfig().prepare()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-5d9e"
    with pytest.raises(UserError, match="cannot use several slices"):
        check_gpus(2, Place("here", 1, 2, (0,)))
    for device, gpus in (("cpu", "MIG-41c0,MIG-5d9e"), ("auto", "0,1")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        HfConfig(device=device).prepare()  # type: ignore[arg-type]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == gpus
    # a second preparation changes nothing
    assert node(node("0,1,2,3", 2, 1, launcher), 2, 1, launcher) == "2"


def test_gpus_that_are_a_processs_own_stay_visible(node: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "2")
    assert node("0,1", 3, 1) == "0,1"
    check_gpus(1, Place("here", 3, 4, (0,)))
    monkeypatch.delenv("SLURM_GPUS_PER_TASK")
    monkeypatch.delenv("PMI_SIZE")  # no launcher: a notebook, say, which may want the others for something else
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    VllmConfig().prepare()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_a_difference_of_no_numbers_is_infinite() -> None:
    assert _difference([1.0, 2.0], [1.5, 2.0]) == 0.5
    assert _difference([1.0, 2.0], [1.0, math.nan]) == math.inf
    assert _difference([1.0, math.nan], [1.0, math.nan]) == math.inf


def test_too_few_gpus_are_an_error_that_all_ranks_hear_of(node: Callable[..., str]) -> None:
    assert [node("0,1,2", rank, 2) for rank in range(2)] == ["0,1", "0,1,2"]
    check_gpus(2, Place("here", 0, 1, (0,)))
    with pytest.raises(UserError, match="2 ranks on here with 2 GPUs each, but there are only 3"):
        check_gpus(2, Place("here", 1, 2, (0,)))


def test_the_config_prepares_before_mpi_is_loaded(tmp_path: Path) -> None:
    """An MPI library that starts CUDA would make all ranks see what they saw at that moment."""
    program = (
        "import os, sys; from esmpi.mpi import comm, launcher; from esmpi import run\n"
        "def start(started_by):\n"
        "    print('MPI starts with', os.environ['CUDA_VISIBLE_DEVICES']); raise SystemExit(0)\n"
        "comm.start_mpi = start\n"
        "run.main(sys.argv[1:])"
    )
    environment = os.environ | dict.fromkeys(("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"), "3")
    environment |= {"PMI_SIZE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    arguments = [ROOT / "configs" / "quickstart.yaml", "engine.kind=vllm", f"run.output_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert "MPI starts with 3" in done.stdout.splitlines(), done.stderr


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
