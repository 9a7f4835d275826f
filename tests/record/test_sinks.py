"""Sinks: looking on must not end a run."""

import builtins
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import require

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


ATTRIBUTES = {"run_uuid": "0123", "config": {"run": {"name": "x"}}}


def test_wandb_is_offline_where_there_is_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    require("mpi", importlib.util.find_spec("wandb") is not None, "pip install 'esmpi[wandb]'")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    sinks = Sinks(["wandb"], tmp_path, ATTRIBUTES, 0)
    sinks.write("generation", 0, {"x": 1.0})
    sinks.close()
    assert f"`wandb sync {tmp_path}/wandb/offline-run-*`" in caplog.text
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_wandb_without_a_key_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("mpi", importlib.util.find_spec("wandb") is not None, "pip install 'esmpi[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"wandb does not start: .*Run `wandb login`, or set WANDB_API_KEY"):
        Sinks(["wandb"], tmp_path, ATTRIBUTES, 0)


def test_a_sink_that_cannot_be_opened_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "figures.jsonl").mkdir()
    with pytest.raises(UserError, match=r"log\.sinks: jsonl cannot be opened: .*figures\.jsonl"):
        Sinks(["jsonl"], tmp_path, ATTRIBUTES, 0)


def test_a_table_keeps_its_rows_when_a_start_is_killed_at_once(tmp_path: Path) -> None:
    first = Sinks(["csv"], tmp_path, ATTRIBUTES, 0)
    for generation in range(3):
        first.write("generation", generation, {"x": float(generation)})
    first.close()
    with (tmp_path / "figures.csv").open("a") as file:
        file.write("generation,3x")
    Sinks(["csv"], tmp_path, ATTRIBUTES, 2)  # which is never closed
    lines = (tmp_path / "figures.csv").read_text().split()
    assert lines == ["group,generation,name,value", "generation,0,x,0.0", "generation,1,x,1.0"]


def test_a_server_that_does_not_answer_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = all(importlib.util.find_spec(name) for name in ("mlflow", "trackio"))
    require("mpi", present, "pip install 'esmpi[mlflow,trackio]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9/?write_token=secret")
    with pytest.raises(UserError, match=r"mlflow: no server answers at MLFLOW_TRACKING_URI=http://127.0.0.1:9$"):
        Sinks(["mlflow"], tmp_path, ATTRIBUTES, 0)
    with pytest.raises(UserError, match=r"trackio: no server answers at TRACKIO_SERVER_URL=http://127.0.0.1:9/$"):
        Sinks(["trackio"], tmp_path, ATTRIBUTES, 0)


def test_members_of_a_failed_generation_and_texts_of_strangers_are_shown(tmp_path: Path) -> None:
    sample = {"which": "best", "member": 1, "fitness": 0.5, "example": {"x": 1}, "prompt": "p", "reward": None}
    sample |= {"completion": "# <b>\n- [x](http://y)", "correct": False, "figures": {"format": 0.25}}
    sinks = Sinks(["tensorboard"], tmp_path, ATTRIBUTES, 0)
    sinks.write_members(0, np.zeros(0), [])
    sinks.write_members(1, np.array([0.5, 0.25]), [sample])
    sinks.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [text] = events.Tensors("generation/samples/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert lines[-2:] == ["    # <b>", "    - [x](http://y)"]
    assert '    problem: {"x": 1}' in lines
    assert [event.step for event in events.Histograms("generation/fitness")] == [1]
