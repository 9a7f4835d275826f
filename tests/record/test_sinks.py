"""Sinks: looking on must not end a run."""

import builtins
from pathlib import Path
from typing import Any

import pytest

from esmpi.errors import UserError
from esmpi.record import sinks as sinks_module
from esmpi.record.sinks import Sink, Sinks


class Broken(Sink):
    """Fails at the second figure, as a sink on a full disk would."""

    def __init__(self, directory: Path, attributes: Any, first: int):
        self.count = 0

    def write(self, group: str, generation: int, figures: Any) -> None:
        self.count += 1
        if self.count > 1:
            raise OSError("disk full")

    def close(self) -> None:
        raise OSError("disk full")


def test_a_sink_that_fails_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sinks_module, "find_sink", lambda name: Broken)
    sinks = Sinks(["tensorboard"], tmp_path, {}, 0)
    for generation in range(4):
        sinks.write("generation", generation, {"x": 1.0})
    assert caplog.text.count("disk full") == 1
    Sinks(["tensorboard"], tmp_path, {}, 0).close()
    assert "could not be closed" in caplog.text


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without_wandb(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "wandb":
            raise ImportError("no wandb")
        return really(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_wandb)
    with pytest.raises(UserError, match=r"pip install 'esmpi\[wandb\]'"):
        Sinks(["wandb"], tmp_path, {}, 0)
