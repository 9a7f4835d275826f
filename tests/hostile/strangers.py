"""Run files as a stranger might make them: changed, and then sealed again, so that nothing looks damaged."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from esmpi.store.seal import LIBVER, seal

Change = Callable[[h5py.File], None]


def change(path: Path, how: Change) -> None:
    """Change a run file, and seal it again."""
    image = io.BytesIO(path.read_bytes())
    with h5py.File(image, "r+", libver=LIBVER) as file:
        how(file)
    whole = image.getbuffer()
    seal(whole)
    path.write_bytes(whole)


def loop(path: Path) -> None:
    """Make the heap of an HDF5 file's texts endless: its free space, the entry 0, has no size, so none comes after."""
    whole = bytearray(path.read_bytes())
    heap = whole.index(b"GCOL")
    end = heap + int.from_bytes(whole[heap + 8 : heap + 16], "little")
    entry = heap + 16
    while int.from_bytes(whole[entry : entry + 2], "little"):
        size = int.from_bytes(whole[entry + 8 : entry + 16], "little")
        entry += 16 + (size + 7) // 8 * 8
    assert entry < end
    whole[entry + 8 : entry + 16] = bytes(8)
    if path.name == "run.h5":
        view = memoryview(whole)
        seal(view)
        view.release()
    path.write_bytes(whole)


def attribute(name: str, value: Any) -> Change:
    """Replace an attribute."""

    def how(file: h5py.File) -> None:
        if name in file.attrs:
            del file.attrs[name]
        file.attrs[name] = value

    return how


def of_json(name: str, edit: Callable[[Any], Any]) -> Change:
    """Edit the JSON of an attribute; `edit` changes it in place, or returns what stands instead."""

    def how(file: h5py.File) -> None:
        value = json.loads(file.attrs[name])
        edited = edit(value)
        attribute(name, json.dumps(value if edited is None else edited))(file)

    return how


def config(section: str, key: str, value: Any) -> Change:
    """Set a key of the config."""
    return of_json("config", lambda tree: tree[section].update({key: value}))


def put(name: str, values: Any, **how_stored: Any) -> Change:
    """Replace a data set."""

    def how(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, data=values, **how_stored)

    return how


def column(name: str, edit: Callable[[np.ndarray], None]) -> Change:
    """Edit the values of a data set."""

    def how(file: h5py.File) -> None:
        values = file[name][()]
        edit(values)
        file[name][...] = values

    return how


def _external(file: h5py.File) -> None:
    del file["generations/fitness_mean"]
    file.create_dataset("generations/fitness_mean", (12,), "f8", external=[("/etc/passwd", 0, 96)])


def _hidden_members(file: h5py.File) -> None:
    """A group tail, as if members were in segments, which are virtual; there are none, and these are external."""
    shape = file["members/fitness"].shape
    file.create_group("tail")
    del file["members/fitness"]
    file.create_dataset("members/fitness", shape, "f8", external=[("/etc/passwd", 0, 8 * shape[0] * shape[1])])


def _compact_promise(file: h5py.File) -> None:
    """Terabytes that are not stored."""
    for name in file["members"]:
        kind = file["members"][name].dtype
        del file["members"][name]
        file.create_dataset(f"members/{name}", (12, 2**40), kind, chunks=(1, 2**20))


def _virtual(source: str) -> Change:
    def how(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((12,), "f8")
        layout[:] = h5py.VirtualSource(source, "generations/fitness_mean", (12,))
        del file["generations/fitness_mean"]
        file.create_virtual_dataset("generations/fitness_mean", layout)

    return how


def _link(link: Any) -> Change:
    def how(file: h5py.File) -> None:
        del file["generations/fitness_mean"]
        file["generations/fitness_mean"] = link

    return how


def _hard_link(file: h5py.File) -> None:
    for i in range(500):
        file[f"evaluations/again_{i}"] = file["evaluations/kept"]


def _shared_text(file: h5py.File) -> None:
    """An attribute of very many texts, which are all the same one in the file."""
    file.attrs["run_texts"] = np.array(["x" * 1000] * 5, h5py.string_dtype())


def _circle(file: h5py.File) -> None:
    file["evaluations/held_out/inner"] = file["evaluations"]


def _deep(file: h5py.File) -> None:
    group = file["evaluations"]
    for _ in range(50):
        group = group.create_group("inner")


def _many_suites(file: h5py.File) -> None:
    for i in range(1000):
        file[f"evaluations/suite_{i}/generation"] = np.zeros(0, np.int64)


def _named_type(file: h5py.File) -> None:
    file["evaluations/kept/type"] = np.dtype("f8")


def _cut(name: str) -> Change:
    return lambda file: file.__delitem__(name)


REFUSED: dict[str, Change] = {
    "external storage": _external,
    "members that are not in the tail": _hidden_members,
    "external link": _link(h5py.ExternalLink("/etc/passwd", "/")),
    "soft link": _link(h5py.SoftLink("/generations/fitness_std")),
    "hard links": _hard_link,
    "a circle of groups": _circle,
    "deep groups": _deep,
    "virtual over another file": _virtual("/tmp/other.h5"),
    "virtual over itself": _virtual("."),
    "terabytes that are not stored": _compact_promise,
    "compressed": put("generations/fitness_mean", np.zeros(12), compression="gzip"),
    "shuffled": put("generations/fitness_mean", np.zeros(12), shuffle=True, chunks=(12,)),
    "texts as numbers": put("generations/fitness_mean", np.array([b"1"] * 12)),
    "numbers that do not fit": put("generations/tokens", np.zeros(12)),
    "objects as numbers": put("generations/fitness_mean", np.array(["x"] * 12, object), dtype=h5py.string_dtype()),
    "records as numbers": put("generations/fitness_mean", np.zeros(12, [("a", "f8")])),
    "another shape": put("generations/fitness_mean", np.zeros((12, 2))),
    "more rows": put("generations/fitness_mean", np.zeros(13)),
    "a scalar": put("generations/fitness_mean", 0.0),
    "no column": _cut("generations/fitness_mean"),
    "no generations": _cut("generations"),
    "no members": _cut("members"),
    "no evaluations": _cut("evaluations"),
    "a table that is a group": lambda file: (_cut("generations/tokens")(file), file.create_group("generations/tokens")),
    "a group that is a table": lambda file: (_cut("evaluations")(file), put("evaluations", np.zeros(3))(file)),
    "a named type": _named_type,
    "many suites": _many_suites,
    "a suite of no such name": lambda file: file.move("evaluations/kept", "evaluations/a b"),
    "generations of any order": column("generations/generation", lambda values: values[::-1].sort()),
    "a row of another generation": column("generations/generation", lambda values: values.__setitem__(3, 7)),
    "evaluations in disorder": column("evaluations/kept/generation", lambda values: values.__setitem__(0, 9)),
    "shrink": column("generations/shrink", lambda values: values.__setitem__(0, 2)),
    "members of a negative rank": column("members/rank", lambda values: values.__setitem__((0, 0), -(2**31))),
    "members of a huge rank": column("members/rank", lambda values: values.__setitem__((0, 0), 2**31 - 1)),
    "a coefficient without a value": column("members/coefficient", lambda values: values.__setitem__((0, 0), np.nan)),
    "negative tokens": column("members/tokens", lambda values: values.__setitem__((0, 0), -5)),
    "a future format": attribute("format_version", 99),
    "a format that is a text": attribute("format_version", "3"),
    "formats": attribute("format_version", [3, 3]),
    "a future noise": attribute("noise_version", 99),
    "an attribute that is a reference": lambda file: attribute("run_uuid", file["members"].ref)(file),
    "an attribute that is a table": attribute("creator", np.zeros((100, 100))),
    "an attribute of texts": _shared_text,
    "many attributes": lambda file: [file.attrs.__setitem__(f"a{i}", i) for i in range(200)],
    "no JSON": attribute("config", "{"),
    "deep JSON": attribute("events", "[" * 100_000),
    "a number for the config": attribute("config", "5"),
    "null for a section": of_json("config", lambda tree: tree.update(es=None)),
    "no number of generations": of_json("config", lambda tree: tree["es"].pop("generations")),
    "a text for a number of generations": config("es", "generations", "many"),
    "es as a text": of_json("config", lambda tree: tree.update(es="much")),
    "a huge population": config("es", "population_size", 10**30),
    "a text for sigma": config("es", "sigma", "small"),
    "a huge sigma": config("es", "sigma", 10**400),
    "a list for a name": config("run", "name", ["x"]),
    "a text for suites": config("eval", "suites", "all"),
    "ranks": of_json("provenance", lambda starts: starts[0].update(ranks=10**12)),
    "negative ranks": of_json("provenance", lambda starts: starts[0].update(ranks=-1)),
    "ranks in words": of_json("provenance", lambda starts: starts[0].update(ranks="two")),
    "an endless time": of_json("provenance", lambda starts: starts[0].update(unix_time=float("inf"))),
    "packages as a list": of_json("provenance", lambda starts: starts[0].update(packages=["x"])),
    "slurm as a text": of_json("provenance", lambda starts: starts[0].update(slurm="x")),
    "a provenance of numbers": attribute("provenance", "[1]"),
    "an event without a reason": of_json("events", lambda events: events[0].pop("reason")),
    "a theta that comes from the future": of_json(
        "events", lambda events: events[0].update(action="restore", to=10**9)
    ),
    "segments in the tables' place": attribute(
        "segments", json.dumps([{"file": "x", "first": 0, "end": 1, "num_members": 1, "sha256": ""}])
    ),
    "segments that are numbers": attribute("segments", "[5]"),
    "segments without names": attribute("segments", "[{}]"),
    "a fork without a config": attribute("forks", '[{"run_uuid": "x", "generation": 1, "path": "x"}]'),
}
"""Changes after which a file is refused: by every command, as all of them read it in the same way."""

SHOWN: dict[str, Change] = {
    "a start without time, host and packages": attribute("provenance", "[{}]"),
    "no start": attribute("provenance", "[]"),
    "no seed": of_json("config", lambda tree: tree["run"].pop("seed")),
    "no size of the population": of_json("config", lambda tree: tree["es"].pop("population_size")),
    "no sigma": of_json("config", lambda tree: tree["es"].pop("sigma")),
    "nothing but what must be": of_json(
        "config",
        lambda tree: {
            **{"run": {"name": "x"}, "model": {"path": "x"}, "task": {"name": "x"}, "es": {"generations": 1}},
        },
    ),
    "mathematics in a name": config("run", "name", "$\\frac{1$ $^"),
    "mathematics in the model's name": config("model", "path", "$\\frac{1$"),
    "a task of a file": config("task", "name", "/nowhere/stranger.py:reward"),
    "accuracy without a value": column("evaluations/held_out/accuracy", lambda values: values.fill(np.nan)),
    "a huge accuracy": column("evaluations/held_out/accuracy", lambda values: values.fill(1e308)),
    "an endless reward": column("evaluations/held_out/reward_mean", lambda values: values.fill(-np.inf)),
    "a negative number of problems": column("evaluations/held_out/num_problems", lambda values: values.fill(-3)),
    "figures without a value": column("generations/fitness_mean", lambda values: values.fill(np.nan)),
    "figures out of bounds": column("generations/fitness_mean", lambda values: values.fill(1e308)),
    "seconds out of bounds": column("generations/seconds_total", lambda values: values.fill(np.inf)),
    "seconds below zero": column("members/seconds", lambda values: values.fill(-1e30)),
    "times out of bounds": column("generations/unix_time", lambda values: values.fill(1e300)),
    "no suite": lambda file: [file["evaluations"].__delitem__(name) for name in list(file["evaluations"])],
    "an empty suite": lambda file: (
        file["evaluations/kept"].clear() or put("evaluations/kept/generation", np.zeros(0, "i8"))(file)
    ),
    "a suite without the number of samples": lambda file: [
        file["evaluations/kept"].__delitem__(name) for name in ("num_samples", "num_problems")
    ],
    "further attributes": attribute("of_a_later_esmpi", 5),
}
"""Changes after which a file is shown, or refused; nothing else may come of it."""


def not_files(folder: Path) -> dict[str, Callable[[Path], None]]:
    """Return what may stand in the place of a file: each makes it at a path."""
    outside = folder / "outside"
    outside.write_text('{"completion": "of somebody else", "example": {}, "reward": 1}\n')
    return {
        "a pipe": os.mkfifo,
        "an endless device": lambda path: path.symlink_to("/dev/zero"),
        "a folder": lambda path: path.mkdir(),
        "a file of somebody else": lambda path: path.symlink_to(outside),
        "a link to itself": lambda path: path.symlink_to(path),
        "a huge hole": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**43),
    }
