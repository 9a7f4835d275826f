"""What tests in several folders use."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from esmpi.engines import Request

ROOT = Path(__file__).parents[1]
TINY_RUN = ROOT / "tests" / "tiny.yaml"

VLLM_SMALL = {"max_model_len": 256, "max_num_seqs": 16, "enforce_eager": True}
"""Keys of the engine section with which vLLM starts fast and is large enough for the tests."""

GENERATIONS = 6
"""Of the run that others are compared with: see the fixture `digests`."""

LEAST_CONFIG = {
    "run": {"name": "x"},
    "model": {"path": "m"},
    "es": {"generations": 3},
    "task": {"name": "countdown"},
}
"""What any run file says of its config."""


def requests(prompts: Sequence[str], seed: int = 0) -> list[Request]:
    """Return prompts as an engine takes them, each with a seed of its own."""
    return [Request(prompt=prompt, seed=seed + i) for i, prompt in enumerate(prompts)]


Run = Callable[..., subprocess.CompletedProcess[str]]
Columns = dict[str, np.ndarray]


def sweep(full: int, sample: int) -> int:
    """Return how many cases a large sweep has: all of them with ESMPI_FULL=1 in the environment, else a sample."""
    return full if os.environ.get("ESMPI_FULL") == "1" else sample


def require(part: str, present: bool, how: str) -> None:
    """Skip the test if a real part is missing, or fail if ESMPI_REQUIRE names it (CI does)."""
    if present:
        return
    message = f"{part} is missing: {how}"
    if part in os.environ.get("ESMPI_REQUIRE", "").split(","):
        pytest.fail(message)
    pytest.skip(message)


def train(
    launch: Run, output: Path, ranks: int, *overrides: str, program: Sequence[str | Path] = ("-m", "esmpi.run")
) -> Columns:
    """Train the tiny config on so many ranks and return the columns of its run file."""
    done = launch([*program, TINY_RUN, f"run.output_dir={output}", *overrides], ranks)
    assert done.returncode == 0, done.stderr + done.stdout
    return read(output / "tiny")


def pieces(terminal: int) -> Iterator[bytes]:
    """Yield what is written to a terminal, until nobody has it open any more, and close it."""
    try:
        while piece := os.read(terminal, 65536):
            yield piece
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    os.close(terminal)


def read(directory: Path) -> Columns:
    """Return the columns of the run file in a run directory, by path: `members/fitness`, ..."""
    columns: Columns = {}
    with h5py.File(directory / "run.h5", "r") as file:
        file.visititems(lambda name, item: columns.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return columns


_SAME = (
    "generations/theta_digest",
    *(f"members/{column}" for column in ("seed", "sign", "status", "fitness", "coefficient", "tokens")),
    *(f"evaluations/held_out/{column}" for column in ("generation", "accuracy", "reward_mean", "tokens_mean")),
)


def assert_same_run(directory: Path, other: Path) -> None:
    """Compare all that must not depend on how the runs of two directories were made: bits and completions."""
    one, two = read(directory), read(other)
    for column in _SAME:
        np.testing.assert_array_equal(one[column], two[column], err_msg=column)
    assert samples(directory) == samples(other)


def samples(directory: Path) -> dict[str, str]:
    """Return the evaluated samples of a run, by file."""
    return {path.name: path.read_text() for path in sorted((directory / "eval").iterdir())}


def read_digests(directory: Path) -> list[int]:
    """Return theta's digest after each generation of the run in a directory."""
    with h5py.File(directory / "run.h5", "r") as file:
        return file["generations/theta_digest"][()].tolist()


def serial_digests(launch: Run, output: Path, generations: int) -> list[int]:
    """Return theta's digest after each generation of an unbroken run of one process."""
    done = launch(
        ["-m", "esmpi.run", TINY_RUN, f"run.output_dir={output}", f"es.generations={generations}", "data.num_eval=2"], 0
    )
    assert done.returncode == 0, done.stderr
    return read_digests(output / "tiny")
