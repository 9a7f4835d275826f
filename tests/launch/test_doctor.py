"""`esmpi doctor` under the mpiexec of another MPI than that of mpi4py: each rank would be a world of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, TINY_RUN, require


def test_doctor_names_a_launcher_that_does_not_fit_once(mpiexec: list[str], tmp_path: Path) -> None:
    libraries = sorted(Path("/usr/lib").glob("*/libmpi.so.40"))
    require("openmpi", bool(libraries), "no libmpi.so.40: apt-get install openmpi-bin")
    version = subprocess.run([*mpiexec, "--version"], capture_output=True, text=True).stdout
    if "HYDRA" not in version:
        pytest.skip("mpiexec is not MPICH's")
    environment = os.environ | {"MPI4PY_MPIABI": "openmpi", "MPI4PY_LIBMPI": str(libraries[0]), "PYTHONPATH": str(ROOT)}
    command = [*mpiexec, "-n", "2", sys.executable, "-m", "esmpi", "doctor", TINY_RUN, f"run.output_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    assert "all is well" not in done.stdout, "a table of one rank would say so"
    assert done.stderr.count("esmpi: mpiexec started 2 ranks, but MPI sees a world of 1") == 1
    assert "does not fit the MPI library (Open MPI" in done.stderr
    assert "Traceback" not in done.stderr
