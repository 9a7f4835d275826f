"""A short run of the program that feeds damaged input to readers and graders, and what it would say."""

import os
import sys
import time
from pathlib import Path

import pytest
from support import ROOT

sys.path.append(str(ROOT / "tools"))
import fuzz
from fuzzing.inputs import Target

NAMES = ["run file", "config", "jsonl", "model.safetensors", "grader countdown"]


def test_nothing_breaks(tmp_path: Path) -> None:
    found = fuzz.fuzz(2, 1, tmp_path, NAMES)
    assert {name: one.broken for name, one in found.items()} == {name: [] for name in NAMES}
    assert min(one.inputs for one in found.values()) >= fuzz.BATCH


def test_what_breaks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception, the end of the process, a loop, and a slow input: each costs its own input alone."""

    def check(data: bytes) -> float:
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
        return 0.5 if data == b"slow" else 0.0

    monkeypatch.setattr(fuzz, "CPU_S", 1)
    inputs = [b"good", b"raise", b"refused", b"die", b"good", b"slow", b"loop", b"good"]
    target = Target(make=lambda rng: b"", check=check, slow_s=0.1, allowed=(ValueError,))
    told = {data: trouble for data, trouble, _ in fuzz._try_batch(inputs, target) if trouble}
    assert told.keys() == {b"raise", b"die", b"loop", b"slow"}
    assert told[b"raise"] == "KeyError: 'x'"
    assert told[b"die"] == "ended its process: -6"
    assert told[b"loop"] in ("ended its process: -24", "ended its process: -9")
    assert told[b"slow"] == "4 bytes took 500.0 ms"
