"""A bit that flips in the memory of one rank is found, named, and repaired if the config says so."""

from pathlib import Path

import numpy as np
import pytest
from flipping import TENSOR, flip
from support import TINY_RUN, Columns, Run, read, read_digests, train

from esmpi.config.reader import parse_config
from esmpi.engines.hf import HfConfig
from esmpi.engines.hf.engine import HfEngine
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.model.noise_settings import NoiseSettings
from esmpi.mpi.comm import Place
from esmpi.mpi.nodes import host_name
from esmpi.weights.model_weights import Perturbation

FLIPPING = Path(__file__).parent / "flipping.py"
SMALL = (
    *("engine.check_every=1", "data.num_eval=2", "data.batch_size=4", "es.population_size=4", "es.generations=2"),
    *("es.sigma=1e-2", "sampling.max_tokens=40", "eval.every=1", "run.export_dtype=none"),
)
LOW_RANK = "es.noise=low_rank"


@pytest.fixture(scope="module")
def undisturbed(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Columns]:
    """Runs of one process in which nothing flips, by the kind of noise."""
    output = tmp_path_factory.mktemp("undisturbed")
    runs = {
        "full": train(launch, output / "full", 0, *SMALL),
        "low rank": train(launch, output / "low_rank", 0, *SMALL, LOW_RANK),
    }
    for columns in runs.values():
        assert len(set(columns["generations/theta_digest"].tolist())) == 2, "theta has to change"
    return runs


@pytest.mark.parametrize(
    ("what", "ranks", "rank", "keys", "said"),
    [
        ("theta", 2, 1, [], f"generation 2: theta has changed on rank 1 (HOST): {TENSOR}"),
        # alone, no other rank can tell that theta is wrong, nor could it after the update
        ("early", 0, 0, [], "generation 2: theta has changed on rank 0 (HOST)"),
        ("live", 2, 1, [LOW_RANK], f"generation 2: live weights have changed on rank 1 (HOST): {TENSOR}"),
        (
            "live-evaluation",
            0,
            0,
            [],
            f"held_out at generation 0: live weights have changed on rank 0 (HOST): {TENSOR}",
        ),
        ("updated", 2, 1, ["engine.check_every=0"], f"on ranks [1] (HOST); they differ in {TENSOR}"),
    ],
)
def test_a_flipped_bit_is_named_and_repaired(
    launch: Run,
    tmp_path: Path,
    undisturbed: dict[str, Columns],
    what: str,
    ranks: int,
    rank: int,
    keys: list[str],
    said: str,
) -> None:
    mine = (*SMALL, *keys, f"run.output_dir={tmp_path}", "run.on_desync=repair")
    done = launch([FLIPPING, what, rank, TINY_RUN, *mine], ranks)
    assert done.returncode == 0, done.stderr
    assert f"{said.replace('HOST', host_name())}. Theta of generation" in done.stdout
    expected, columns = undisturbed["low rank" if LOW_RANK in keys else "full"], read(tmp_path / "tiny")
    for name in ("generations/theta_digest", "members/fitness", "evaluations/held_out/reward_mean"):
        np.testing.assert_array_equal(columns[name], expected[name])


def test_a_flipped_bit_ends_the_run_by_default(launch: Run, tmp_path: Path, undisturbed: dict[str, Columns]) -> None:
    done = launch([FLIPPING, "theta", 1, TINY_RUN, *SMALL, f"run.output_dir={tmp_path}"], 2)
    assert done.returncode == 1, done.stderr
    assert f"esmpi: generation 2: theta has changed on rank 1 ({host_name()}): {TENSOR}. " in done.stderr
    assert "rerun the same command" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_digests(tmp_path / "tiny") == undisturbed["full"]["generations/theta_digest"][:1].tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "fp8"])
def test_live_weights_of_any_type_are_compared(dtype: str) -> None:
    quantization = dtype if dtype in ("int8", "fp8") else "none"
    sections = {
        "run": {"name": "x"},
        "model": {"path": "esmpi:tiny_countdown", "dtype": "bfloat16" if quantization != "none" else dtype},
        "es": {"generations": 1},
        "task": {"name": "countdown"},
    }
    sections["model"]["quantization"] = quantization
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    config, base = parse_config(sections), BaseModel(folder)
    engine = HfEngine(config.model, HfConfig(num_threads=1, device="cpu"), base, Place("here", 0, 1, (0,)))
    weights = engine.weights
    noise = NoiseSettings().noise(base)
    weights.restore()
    assert weights.damaged() == []
    for write in (weights.restore, lambda: weights.perturb([Perturbation(3, 0.01, noise)]), weights.show_base):
        write()
        assert weights.damaged() == []
        for bit in (0, 7):
            layer = engine._model.get_submodule(TENSOR.removesuffix(".weight"))
            flip(layer.weight.data if quantization == "none" else layer.numbers.data, 11, bit)
            assert weights.damaged() == [TENSOR]
            assert weights.damaged() == [], "written again"
    weights.close()
