"""Fixtures that all tests share: the real launcher, and runs of the real program."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# As the program itself has it: threads that wait for work must not take the cores from the other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if shutil.which("nvidia-smi") is None:
    # Triton's interpreter runs GPU kernels on a CPU; it looks at this when it is imported, by whoever is first.
    os.environ["TRITON_INTERPRET"] = "1"

from forks import Forks
from support import GENERATIONS, ROOT, Run, require, serial_digests

# hypothesis makes the same examples each time and leaves no files behind
settings.register_profile("tests", database=None, deadline=None, derandomize=True, max_examples=200)
settings.load_profile("tests")

FIRST = ("vllm", "slurm", "faults", "mpi", "store", "house")
"""Folders in the order in which their tests start, those that take longest first: so no process is left with a long one
at the end. The rest comes after them."""


TOGETHER = {"slurm": "network", "mpi/test_two_hosts.py": "network", "vllm": "vllm"}
"""Folders and files whose tests run in one process. There is one Slurm cluster, whose jobs would take the network that
the test of two hosts makes and cuts; and vLLM engines of one thread all take the same core."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a process all tests of a file, or of a folder of `TOGETHER`, at a time.

    `tools/test.sh` has several processes: while a job waits for one of Slurm's whole minutes, others compute.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByStart(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            parts = nodeid.split("::", maxsplit=1)[0].split("/")[1:]
            return TOGETHER.get("/".join(parts), TOGETHER.get(parts[0], str(super()._split_scope(nodeid))))

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
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reward model: the tiny model with a head of random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from esmpi.model.find import find_model

    base = find_model("esmpi:tiny_countdown")
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight)
    folder = tmp_path_factory.mktemp("reward_model")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def forks() -> Iterator[dict[str, Forks]]:
    """The servers that start programs as forks, by the engine."""
    servers = {engine: Forks(engine) for engine in ("hf", "vllm")}
    yield servers
    for server in servers.values():
        server.close()


@pytest.fixture(scope="session")
def launch(mpiexec: list[str], forks: dict[str, Forks]) -> Run:
    """Run Python with arguments on so many ranks and return what it printed; 0 ranks: without a launcher."""

    def call(arguments: Sequence[str], ranks: int, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        arguments = [str(word) for word in arguments]
        server = forks["vllm" if "engine.kind=vllm" in arguments else "hf"]
        as_fork = server.can_start(arguments)
        if as_fork and ranks == 0:
            return server.run(arguments, timeout_s)
        start = [*mpiexec, "-n", str(ranks)] if ranks else []
        command = [*start, *(server.command(arguments) if as_fork else [sys.executable, *arguments])]
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
