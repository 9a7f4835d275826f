"""The house: which room may import which. Reads every import of esmpi, also those inside functions and for types."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support import ROOT

FLOORS = (
    ("esmpi",),  # the front door: it looks its own names up when they are asked for
    ("__main__",),
    ("commands", "api"),
    ("run",),
    ("arguments",),
    ("probe",),
    ("train",),
    ("setup", "recovery"),
    ("resume", "ensemble", "evaluated"),
    ("evaluate", "batches"),
    ("session",),
    ("episodes",),
    ("launch", "record", "report"),
    ("identity", "trust"),
    ("rewards", "scoring", "store", "harness"),
    ("engines", "tasks"),
    ("weights", "data", "sandbox"),
    ("model", "es"),
    ("stop",),
    ("mpi",),
    ("noise", "config"),
    ("hdf5",),
    ("files", "provenance", "stopwatch", "plugins", "shipped", "progress"),
    ("errors",),
    ("version", "wording", "masking", "assets", "leave"),
)
"""The rooms, the top floor first: a room imports from the floors below it, and from no room beside it."""


STRANGERS = (
    ("tasks", "mpi"),
    ("tasks", "weights"),
    ("tasks", "model"),
    ("data", "mpi"),
    ("model", "mpi"),
    ("store", "engines"),
    ("store", "tasks"),
    ("store", "mpi"),
    ("report", "engines"),
    ("report", "mpi"),
    ("scoring", "engines"),
)
"""Rooms that do not know a room below them: tasks know no MPI, the store knows no engine, and so on."""


def modules(package: Path) -> dict[str, Path]:
    """Return the modules of a package by their full names."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports, wherever in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            wanted = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        else:
            continue
        yield from (module for module in wanted if module in known and module != name)


def arrows(package: Path) -> dict[str, set[str]]:
    """Return for each module of a package those that it imports."""
    known = modules(package)
    return {name: set(imports(name, path, known)) for name, path in known.items()}


def room(module: str) -> str:
    """Return the room that a module is in: a folder of the package, or a module at its top."""
    return module.split(".")[1] if "." in module else module


def pointing_back(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the arrows that do not lead from a floor to a lower one, or lead to a room that must not be known."""
    floor = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}
    return [
        f"{module} imports {other}"
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if room(module) != room(other)
        and (floor[room(module)] >= floor[room(other)] or (room(module), room(other)) in STRANGERS)
    ]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of a circle of imports, none if there is no circle."""
    left = set(graph)
    while free := {
        module
        for module in left
        if not graph[module] & left or not any(module in graph[other] for other in left - {module})
    }:
        left -= free
    return sorted(left)


def test_no_arrow_points_back() -> None:
    assert pointing_back(arrows(ROOT / "esmpi")) == []


def test_there_is_no_circle_not_even_through_imports_inside_functions() -> None:
    assert circle(arrows(ROOT / "esmpi")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from esmpi.engines.hf import HfEngine",
        "def later():\n    import esmpi.engines.hf",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from esmpi.engines import hf",
        "def later():\n    from ..engines.hf import HfEngine",
    ],
)
def test_an_arrow_that_points_back_is_seen(tmp_path: Path, source: str) -> None:
    package = tmp_path / "esmpi"
    for name, text in {
        "__init__": "",
        "noise/__init__": "",
        "noise/cpu": source,
        "engines/__init__": "",
        "engines/hf": "from esmpi.noise import cpu",
    }.items():
        file = package / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    graph = arrows(package)
    assert pointing_back(graph) == ["esmpi.noise.cpu imports esmpi.engines.hf"]
    assert circle(graph) == ["esmpi.engines.hf", "esmpi.noise.cpu"]


def test_every_room_has_a_floor() -> None:
    floors = {name for rooms in FLOORS for name in rooms}
    assert {room(module) for module in modules(ROOT / "esmpi")} == floors
