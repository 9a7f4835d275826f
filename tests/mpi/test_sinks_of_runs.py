"""Sinks show what the run file has, also after a run was resumed."""

import csv
import importlib.util
import json
import signal
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support import TINY_RUN, Run, require, train

KILLED = Path(__file__).parent / "killed_in_sinks.py"
Shown = dict[str, dict[int, Any]]
"""Values by name, with the group in front, and generation."""


def of_tensorboard(folder: Path) -> Shown:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found: Shown = {}
    for name in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        assert len(set(steps)) == len(steps), f"{name} has a step twice"
        found[name] = {event.step: event.value for event in events.Scalars(name)}
    return found


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a W&B file: a head of 7 bytes, and then the format of LevelDB's logs."""
    place, begun = 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + 7 : place + 7 + length]
        place += 7 + length
        begun = part if kind in (1, 2) else begun + part
        if kind in (1, 4):
            yield begun


def of_wandb(folder: Path) -> Shown:
    from wandb.proto import wandb_internal_pb2

    found: Shown = {}
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                row: dict[str, Any] = {}
                for item in record.history.item:
                    key, *inner = [item.key] if item.key else item.nested_key
                    value = json.loads(item.value_json)
                    row[key] = row.get(key, {}) | {inner[0]: value} if inner else value
                for name, value in row.items():
                    if "/" in name:
                        assert row["generation"] not in found.setdefault(name, {}), f"{name} has a step twice"
                        found[name][row["generation"]] = value
    return found


def of_jsonl(folder: Path) -> Shown:
    found: Shown = {}
    for line in (folder / "figures.jsonl").read_text().splitlines():
        row = json.loads(line)
        group, generation = row.pop("group"), row.pop("generation")
        for name, value in row.items():
            assert generation not in found.setdefault(f"{group}/{name}", {})
            found[f"{group}/{name}"][generation] = value
    return found


def of_csv(folder: Path) -> Shown:
    found: Shown = {}
    with (folder / "figures.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            column = found.setdefault(f"{row['group']}/{row['name']}", {})
            assert int(row["generation"]) not in column
            column[int(row["generation"])] = float(row["value"])
    return found


def of_mlflow(folder: Path) -> Shown:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("esmpi")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["es.population_size"] == "7"
    tables = [path.path for path in client.list_artifacts(run.info.run_id, "samples")]
    assert tables == [f"samples/g{generation:06d}.json" for generation in range(5)]
    found: Shown = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        found[name] = {metric.step: metric.value for metric in history}
        assert len(found[name]) == len(history), f"{name} has a step twice"
    return found


def of_trackio(folder: Path) -> Shown:
    from trackio.sqlite_storage import SQLiteStorage

    [name] = SQLiteStorage.get_runs("esmpi")
    found: Shown = {}
    for row in SQLiteStorage.get_logs("esmpi", name):
        for key, value in row.items():
            if "/" in key:
                assert row["step"] // 2 not in found.setdefault(key, {}), f"{key} has a step twice"
                found[key][row["step"] // 2] = value
    return found


READERS = {
    **{"tensorboard": of_tensorboard, "wandb": of_wandb, "jsonl": of_jsonl, "csv": of_csv},
    **{"mlflow": of_mlflow, "trackio": of_trackio},
}


def same(values: Mapping[int, float]) -> object:
    return pytest.approx(values, rel=1e-6)  # TensorBoard has single precision


def test_sinks_show_what_the_run_file_has(launch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = all(importlib.util.find_spec(name) for name in ("tensorboard", "wandb", "mlflow", "trackio"))
    require("mpi", present, "pip install 'esmpi[tensorboard,wandb,mlflow,trackio]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    keys = (f"log.sinks=[{', '.join(READERS)}]", "eval.every=2", "log.samples=1")
    # killed when half of the sinks have a generation, and when none has an evaluation that the run file has
    for group, generation, sinks in (("generation", 2, 3), ("held_out", 4, 0)):
        words = (group, str(generation), str(sinks), TINY_RUN, f"run.output_dir={tmp_path}", *keys, "es.generations=5")
        done = launch([KILLED, *words], 0)
        assert done.returncode == -signal.SIGKILL, done.stderr + done.stdout
    # and half a line, with a figure of a generation that was not committed
    with (tmp_path / "tiny" / "figures.jsonl").open("a") as file:
        file.write('{"group": "generation", "generation": 4, "fitness_mean": 99}\n{"group": "gen')
    run = train(launch, tmp_path, 2, *keys, "es.generations=5")
    means = dict(enumerate(run["generations/fitness_mean"].tolist()))
    evaluated = run["evaluations/held_out/generation"].tolist()
    assert evaluated == [0, 2, 4, 5]
    accuracies = dict(zip(evaluated, run["evaluations/held_out/accuracy"].tolist(), strict=True))
    for name, read in READERS.items():
        shown = read(tmp_path / "tiny")
        assert shown["generation/fitness_mean"] == same(means), name
        assert shown["held_out/accuracy"] == same(accuracies), name
        for column in ("seconds_wait", "tokens", "sigma"):
            assert shown[f"generation/{column}"] == same(dict(enumerate(run[f"generations/{column}"].tolist()))), name
        assert sorted(shown["generation/seconds_idle"]) == sorted(shown["generation/format_mean"]) == list(means), name
        if name in ("wandb", "trackio"):
            histograms, tables = shown["generation/fitness"], shown["generation/samples"]
            assert sorted(histograms) == sorted(tables) == list(means), name
            assert {sum(histogram["values"]) for histogram in histograms.values()} == {7}, name
            assert {table.get("nrows") or len(table["_value"]) for table in tables.values()} == {3}, name
    check_members_of_tensorboard(tmp_path / "tiny", len(means))


def check_members_of_tensorboard(folder: Path, count: int) -> None:
    """Fail unless each generation has a histogram of all members, and the completions of three of them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0, "histograms": 0})
    events.Reload()
    histograms, texts = events.Histograms("generation/fitness"), events.Tensors("generation/samples/text_summary")
    assert [event.step for event in histograms] == [event.step for event in texts] == list(range(count))
    assert {event.histogram_value.num for event in histograms} == {7}
    lines = texts[-1].tensor_proto.string_val[0].decode().splitlines()
    assert sum(line.startswith("    which: ") for line in lines) == 3
    assert all(line.startswith("    ") or not line for line in lines), "nothing is Markdown"
