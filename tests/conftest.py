"""Fixtures that all tests share: the real launcher, and runs of the real program."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

if shutil.which("nvidia-smi") is None:
    # Triton's interpreter runs GPU kernels on a CPU; it looks at this when it is imported, by whoever is first.
    os.environ["TRITON_INTERPRET"] = "1"

from support import GENERATIONS, ROOT, Run, require, serial_digests

FIRST = ("slurm", "vllm", "mpi", "store", "house")
"""Folders in the order in which their tests start, those that take longest first: so no process is left with a long one
at the end. The rest comes after them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a process all tests that share a start: those of a file, and all that need the Slurm cluster.

    `tools/test.sh` runs several at a time: while a job waits for one of Slurm's whole minutes, others compute.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByStart(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if nodeid.startswith("tests/slurm/") else str(super()._split_scope(nodeid))

    return ByStart(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests that take longest start first."""
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(FIRST)))


@pytest.fixture(scope="session")
def mpiexec() -> list[str]:
    """The launcher of the MPI that is installed beside this Python, or on the PATH."""
    path = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    require("mpi", path is not None, "pip install 'esmpi[mpich]'")
    return [str(path)]


@pytest.fixture(scope="session")
def launch(mpiexec: list[str]) -> Run:
    """Run Python with arguments on so many ranks and return what it printed; 0 ranks: without a launcher."""

    def call(arguments: Sequence[str], ranks: int, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        start = [*mpiexec, "-n", str(ranks)] if ranks else []
        command = [*start, sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)

    return call


@pytest.fixture(scope="session")
def digests(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Theta's digest after each generation of an unbroken run of one process."""
    return serial_digests(launch, tmp_path_factory.mktemp("serial"), GENERATIONS)


WATCHED_END = """
import atexit, builtins, os, threading, time

class Kept:
    def __del__(self):
        print("taken apart")

builtins.kept = Kept()
atexit.register(print, "at exit")
if "LATE" in os.environ:
    threading.Thread(target=lambda: (time.sleep(float(os.environ["LATE"])), print("late"))).start()
"""


@pytest.fixture
def watched_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every Python that is started say "at exit", and "taken apart" if it frees its memory piece by piece."""
    folder = tmp_path / "watched_end"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WATCHED_END)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
