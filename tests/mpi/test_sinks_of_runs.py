"""Sinks show what the run file has, also after a run was resumed."""

import csv
import importlib.util
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support import Run, require, train

Shown = dict[str, dict[int, float]]
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
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for name, value in row.items():
                    if "/" in name:
                        # a later start may say the same again
                        assert found.setdefault(name, {}).setdefault(row["generation"], value) == value
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


READERS = {"tensorboard": of_tensorboard, "wandb": of_wandb, "jsonl": of_jsonl, "csv": of_csv}


def same(values: Mapping[int, float]) -> object:
    return pytest.approx(values, rel=1e-6)  # TensorBoard has single precision


def test_sinks_show_what_the_run_file_has(launch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = all(importlib.util.find_spec(name) for name in ("tensorboard", "wandb"))
    require("mpi", present, "pip install 'esmpi[tensorboard,wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    keys = (f"log.sinks=[{', '.join(READERS)}]", "eval.every=2")
    train(launch, tmp_path, 2, *keys)
    # what a killed start leaves behind: a figure of a generation that was not committed, and half a line
    with (tmp_path / "tiny" / "figures.jsonl").open("a") as file:
        file.write('{"group": "generation", "generation": 3, "fitness_mean": 99}\n{"group": "gen')
    run = train(launch, tmp_path, 2, *keys, "es.generations=5")
    means = dict(enumerate(run["generations/fitness_mean"].tolist()))
    evaluated = run["evaluations/held_out/generation"].tolist()
    assert evaluated == [0, 2, 3, 4, 5]
    accuracies = dict(zip(evaluated, run["evaluations/held_out/accuracy"].tolist(), strict=True))
    for name, read in READERS.items():
        shown = read(tmp_path / "tiny")
        assert shown["generation/fitness_mean"] == same(means), name
        assert shown["held_out/accuracy"] == same(accuracies), name
