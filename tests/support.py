"""What tests in several folders use."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY_RUN = ROOT / "tests" / "tiny.yaml"

Run = Callable[..., subprocess.CompletedProcess[str]]


def require(part: str, present: bool, how: str) -> None:
    """Skip the test if a real part is missing, or fail if ESMPI_REQUIRE names it (CI does)."""
    if present:
        return
    message = f"{part} is missing: {how}"
    if part in os.environ.get("ESMPI_REQUIRE", "").split(","):
        pytest.fail(message)
    pytest.skip(message)
