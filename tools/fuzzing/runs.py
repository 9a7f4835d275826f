"""The files of runs that `tools/fuzz.py` fuzzes: run files, segments, snapshots, logs and completions."""

import dataclasses
import io
import json
import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from esmpi.__main__ import main
from esmpi.store.run_file import RunFile, member_samples_path, samples_path
from esmpi.store.seal import LIBVER, checksum, seal
from fuzzing.inputs import Make, Target, json_text, odd_json, of_bytes, of_json, of_json_lines
from fuzzing.samples import example_run, segmented_run


def _run_file(folder: Path) -> Target:
    path = example_run(folder).path

    def check(data: bytes) -> None:
        path.write_bytes(_sealed(data))
        RunFile.open(path)

    return Target(make=of_bytes(path.read_bytes()), check=check)


def _run_file_values(folder: Path) -> Target:
    """Well-formed files with odd values, given to commands that show them."""
    path = example_run(folder).path
    whole = path.read_bytes()
    log = folder / "log.h5"

    def make(rng: random.Random) -> bytes:
        image = io.BytesIO(whole)
        with h5py.File(image, "r+", libver=LIBVER) as file:
            _change_value(file, rng)
        return _sealed(image.getvalue())

    def check(data: bytes) -> None:
        path.write_bytes(data)
        log.unlink(missing_ok=True)
        export = ["export", "--log-only", "--out", str(log)]
        commands = (["inspect"], ["inspect", "--json"], ["report", "--no-plot"], ["watch", "--once"], export)
        main([*commands[sum(data) % len(commands)], str(folder)])
        if log.exists():
            main(["inspect", str(log)])

    return Target(make=make, check=check)


def _log(folder: Path) -> Target:
    example_run(folder / "run")
    log = folder / "log.h5"
    assert main(["export", "--log-only", str(folder / "run"), "--out", str(log)]) == 0

    def check(data: bytes) -> None:
        log.write_bytes(_sealed(data))
        RunFile.open(log)

    return Target(make=of_bytes(log.read_bytes()), check=check)


def _segment(kind: str) -> Make:
    """Segments that the run file lists with the right checksum."""

    def make_target(folder: Path) -> Target:
        run = segmented_run(folder)
        listed: list[Any] = run.segments if kind == "members" else run.generation_segments
        path = run.path.parent / listed[0].file

        def check(data: bytes) -> None:
            whole = _sealed(data)
            path.write_bytes(whole)
            listed[0] = dataclasses.replace(listed[0], sha256=checksum(whole))
            run.write()
            RunFile.open(run.path)

        return Target(make=of_bytes(path.read_bytes()), check=check)

    return make_target


def _snapshot(folder: Path) -> Target:
    import torch

    from esmpi.model.snapshot import Snapshot
    from esmpi.store import snapshot_writer
    from esmpi.store.snapshot_keeper import check_snapshot

    run = example_run(folder)
    path = folder / "snapshots" / "g000000.h5"
    path.parent.mkdir()
    origin = {"generation": 0, "theta_digest": run.digest_after(0), "run_uuid": "x", "config": {}}
    snapshot_writer.write_snapshot(path, {"w": torch.ones(4, 4)}, origin)
    whole = path.read_bytes()
    end = len(whole) - snapshot_writer._SEAL_BYTES

    def check(data: bytes) -> None:
        seal_line = snapshot_writer._seal_line([snapshot_writer._hash([memoryview(data)])])
        path.write_bytes(data + seal_line)
        check_snapshot(path, run)
        with Snapshot(path) as snapshot:
            snapshot.read("w", (0, 4), (0, 4))

    return Target(make=of_bytes(whole[:end]), check=check)


def _samples(folder: Path) -> Target:
    from esmpi.report import samples

    run = example_run(folder)
    first, last = (samples_path(run.path, "held_out", generation) for generation in (0, 12))
    lines = [json.loads(line) for line in last.read_text().splitlines()]

    def check(data: bytes) -> None:
        first.write_bytes(data)
        found = samples.pairs(*(samples.read_samples(run, "held_out", generation) for generation in (0, 12)))
        samples.choose(found, 10**6)
        samples.change_of(found)
        main([*(["report", "--no-plot"], ["inspect"])[len(data) % 2], str(folder)])

    return Target(make=of_json_lines(lines), check=check)


def _member_samples(folder: Path) -> Target:
    from esmpi.record.past import past_of
    from esmpi.record.sinks.base import row_of_sample
    from esmpi.report.member_samples import choose_generations

    run = example_run(folder)
    path = member_samples_path(run.path, 0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    def check(data: bytes) -> None:
        path.write_bytes(data)
        for past in past_of(run, 0):
            for sample in past.samples:
                row_of_sample(sample)
        choose_generations(run, 10**6)

    return Target(make=of_json_lines(lines), check=check)


def _sink(kind: str) -> Make:
    """A log that a run writes on when it resumes."""

    def make_target(folder: Path) -> Target:
        from esmpi.record.sinks.csv import Csv
        from esmpi.record.sinks.jsonl import JsonLines

        path = folder / f"figures.{kind}"
        sink = {"csv": Csv, "jsonl": JsonLines}[kind](folder, {}, 0)
        for generation in range(5):
            sink.write("generation", generation, {"fitness_mean": 0.5, "=x": float("nan")})
        sink.close()
        sample = path.read_bytes()

        def check(data: bytes) -> None:
            path.write_bytes(data)
            again = type(sink)(folder, {}, 5)
            again.write("generation", 5, {"x": 1.0})
            again.close()

        if kind == "csv":
            return Target(make=of_bytes(sample, b'"a\n', b"generation," + b"9" * 5000 + b",x,1\n"), check=check)
        return Target(make=of_json_lines([json.loads(line) for line in sample.splitlines()]), check=check)

    return make_target


def _exported(folder: Path) -> Target:
    """What says of which theta a model folder is."""
    run = example_run(folder)
    (folder / "model").mkdir()
    path = folder / "model" / "esmpi.json"
    origin = {"run_uuid": run.attributes["run_uuid"], "generation": 3, "theta_digest": "0" * 16}

    def check(data: bytes) -> None:
        path.write_bytes(data)
        main(["inspect", str(folder)])

    return Target(make=of_json(origin), check=check)


def _wandb_records(folder: Path) -> Target:
    from esmpi.record.sinks._wandb_files import _records

    record = b"\0\0\0\0\x05\0\x01hello"
    sample = b":W&B\0\0\0" + record * 20

    def check(data: bytes) -> None:
        assert sum(map(len, _records(data))) <= 4 * len(data)

    return Target(make=of_bytes(sample), check=check)


TARGETS: dict[str, Make] = {
    "run file": _run_file,
    "run file values": _run_file_values,
    "log": _log,
    "segment of members": _segment("members"),
    "segment of generations": _segment("generations"),
    "snapshot": _snapshot,
    "samples": _samples,
    "samples of members": _member_samples,
    "figures.csv": _sink("csv"),
    "figures.jsonl": _sink("jsonl"),
    "esmpi.json": _exported,
    "records of W&B": _wandb_records,
}


def _sealed(data: bytes) -> bytes:
    """Return a file with the right seal, as a stranger can make it."""
    whole = bytearray(data)
    if len(whole) > 1024:
        view = memoryview(whole)
        seal(view)
        view.release()
    return bytes(whole)


def _change_value(file: h5py.File, rng: random.Random) -> None:
    """Give an attribute or a table of a run file an odd value of the right type."""
    if rng.random() < 0.6:
        name = rng.choice(list(file.attrs))
        value = file.attrs[name]
        if isinstance(value, str) and value.startswith(("[", "{")):
            file.attrs[name] = json_text(odd_json(json.loads(value), rng))
        elif isinstance(value, str):
            file.attrs[name] = rng.choice(("", "\x1b[2J", "x" * 1000, "é\n"))
        else:
            file.attrs[name] = np.array(rng.choice((0, 1, 2**31 - 1, 5)), value.dtype)
        return
    tables: list[h5py.Dataset] = []
    file.visititems(lambda _, found: tables.append(found) if isinstance(found, h5py.Dataset) else None)
    table = rng.choice([one for one in tables if one.dtype.kind in "biuf"])
    values = table[()]
    kinds = {"f": (np.nan, np.inf, -np.inf, 1e308, -1e30, 0), "i": (0, -1, 1, 127), "u": (0, 1, 255), "b": (0, 1)}
    odd = np.array(rng.choice(kinds[values.dtype.kind])).astype(values.dtype)
    if rng.random() < 0.5 or not values.size:
        values[...] = odd
    else:
        values.flat[rng.randrange(values.size)] = odd
    table[...] = values
