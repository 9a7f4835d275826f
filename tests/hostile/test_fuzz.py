"""A short run of the program that feeds damaged input to readers and graders, and what it would say."""

import os
import sys
import time
from pathlib import Path

import pytest
from support import ROOT

sys.path.append(str(ROOT / "tools"))
import fuzz


def test_nothing_breaks(tmp_path: Path) -> None:
    found, broken = fuzz.fuzz(2, 2, tmp_path, ["run file", "yaml", "jsonl", "model.safetensors", "grader countdown"])
    assert broken == []
    assert min(found.values()) >= fuzz.BATCH
    assert len(found) == 5


def test_what_breaks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception, the end of the process, and a loop: each costs its own input alone."""

    def check(data: bytes) -> None:
        if data == b"raise":
            raise KeyError("x")
        if data == b"die":
            os.abort()
        if data == b"loop":
            end = time.monotonic() + 60
            while time.monotonic() < end:
                pass
        if data == b"refused":
            raise ValueError("x")

    monkeypatch.setattr(fuzz, "CPU_S", 1)
    inputs = [b"good", b"raise", b"refused", b"die", b"good", b"loop", b"good"]
    told = dict(fuzz._try_batch(inputs, check))
    assert told.keys() == {b"raise", b"die", b"loop"}
    assert told[b"raise"] == "KeyError: 'x'"
    assert told[b"die"] == "ended its process: -6"
    assert told[b"loop"] in ("ended its process: -24", "ended its process: -9")
