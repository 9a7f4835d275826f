"""The driver of faults: the real program, with something happening at a chosen call to the file system."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from driver import Drive, Faults
from support import ROOT, TINY_RUN, require

HERE = Path(__file__).parent
OVERRIDES = (
    *("es.population_size=3", "data.num_eval=2", "data.batch_size=4", "run.seed=4"),
    *("eval.every=1", "snapshot.every=1", "snapshot.keep=1", "snapshot.best=true"),
)
NUM_DRIVERS = 2


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared library that lets calls fail, compiled here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    require("cc", compiler is not None, "install a C compiler")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    command = [str(compiler), "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), HERE / "faults.c"]
    subprocess.run([*command, "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def drive(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Drive:
    """Follow chains of faults (see driver.py), half of them in each of two drivers, and return what was seen."""

    def call(chains: Sequence[Faults]) -> list[dict[str, Any]]:
        environment = os.environ | {
            "LD_PRELOAD": str(shim),
            "PYTHONPATH": str(ROOT),
            # no library may make threads before the driver forks
            **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")},
            "TOKENIZERS_PARALLELISM": "false",
        }
        drivers = []
        for i in range(NUM_DRIVERS):
            folder = tmp_path_factory.mktemp("chains")
            plan = {"config": str(TINY_RUN), "overrides": OVERRIDES, "folder": str(folder)}
            (folder / "plan.json").write_text(json.dumps(plan | {"chains": chains[i::NUM_DRIVERS]}))
            command = [sys.executable, str(HERE / "driver.py"), str(folder / "plan.json")]
            out = open(folder / "out", "w+")  # noqa: SIM115 (closed below)
            drivers.append((subprocess.Popen(command, env=environment, stdout=out, cwd=ROOT), out))
        seen = []
        for process, out in drivers:
            assert process.wait(500) == 0
            with out:
                out.seek(0)
                seen += [json.loads(line) for line in out]
        assert len(seen) == len(chains)
        return seen

    return call
