"""The tool of long runs: processes that it kills lose nothing, and leave nothing behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from support import ROOT, require

PNG = b"\x89PNG"


def test_a_run_that_is_killed_ends_with_the_same_theta(tmp_path: Path) -> None:
    require("mpi", shutil.which("mpiexec") is not None, "pip install 'esmpi[mpich]'")
    plot = tmp_path / "long.png"
    command = [sys.executable, ROOT / "tools/long_run.py", "--generations", "40", "--kill-every", "20", "--plot", plot]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["same_theta"]
    assert found["updates"] >= 4
    assert found["generations"] == 40
    assert found["kills"] == 1
    assert found["starts"] == 2
    assert found["left_over"] == 0
    assert min(found["memory_mb"]) > 0
    assert plot.read_bytes().startswith(PNG)
