"""What tests of tasks share."""

import sys
from pathlib import Path

import pytest
from own_tasks import Write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file and return the name of the task with a function of it."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(text: str, function: str = "reward", file: str = "mine.py") -> str:
        (tmp_path / file).write_text(text)
        return f"{tmp_path / file}:{function}"

    return call
